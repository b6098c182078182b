"""Requests that no browser sends, and several on one connection."""

import http.client
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from conftest import Script, port_of, starting_scripts
from stock_service import ALL, LINE, NOT_ALLOWED, confirmed, exchange, get, left, send


@pytest.fixture(scope="module")
def service(shared_redis) -> Iterator[tuple[Script, int]]:
    """One service for all the abuse; what it must not say is looked for at the end."""
    with starting_scripts() as start:
        script = start("9_stock.py", shared_redis.url, PORT="0")
        yield script, port_of(script)
        script.stop(signal.SIGTERM)
        assert script.end() == 0
        assert len(script.lines) == 1
        assert "Traceback" not in "\n".join(script.errors)


ABUSE = {
    "a request line of 100 kB": (b"GET /%b%b\r\n" % (b"a" * 100_000, LINE), 414),
    "an empty request line": (b"\r\n", None),
    "ten empty request lines": (b"\r\n" * 10, None),
    "a header of 100 kB": (b"GET /%bX: %b" % (LINE, b"a" * 100_000), 431),
    "more than 100 headers": (b"GET /%b%b\r\n" % (LINE, b"X: y\r\n" * 101), 431),
    "a header without a name": (b"GET /%b: x\r\nX\r\n y\r\n\r\n" % LINE, 404),
    "a NUL in a header": (b"GET /%bX: \0\r\n\r\n" % LINE, 404),
    "bytes beyond ASCII in a header": (b"GET /%bX: \xff\r\n\r\n" % LINE, 404),
    "a length that is none": (b"GET /%bContent-Length: -x\r\n\r\n" % LINE, 404),
    "a folder up": (b"GET /../list_products%b\r\n" % LINE, 404),
    "a folder up, escaped": (b"GET /%%2e%%2e/list_products%b\r\n" % LINE, 404),
    "an escape that is none": (b"GET /%%zz%%%b\r\n" % LINE, 404),
    "a raw NUL": (b"GET /list_products/1\0%b\r\n" % LINE, 404),
    "an escaped NUL": (b"GET /list_products/1%%00%b\r\n" % LINE, 404),
    "a raw byte beyond UTF-8": (b"GET /list_products/\xff%b\r\n" % LINE, 404),
    "an escaped byte beyond UTF-8": (b"GET /list_products/%%ff%b\r\n" % LINE, 404),
    "an escaped line break": (b"GET /list_products/1%%0d%%0a%b\r\n" % LINE, 404),
    "an id of 5,000 digits": (
        b"GET /reserve_product/%b%b\r\n" % (b"9" * 5000, LINE),
        404,
    ),
    "a negative id": (b"GET /reserve_product/-1%b\r\n" % LINE, 404),
    "an id in Arabic digits": (b"GET /reserve_product/%%D9%%A1%b\r\n" % LINE, 404),
    "an id with a fraction": (b"GET /reserve_product/1.0%b\r\n" % LINE, 404),
    "an id with a leading zero": (b"GET /reserve_product/01%b\r\n" % LINE, 404),
    "an empty id": (b"GET /reserve_product/%b\r\n" % LINE, 404),
    "a query string": (b"GET /list_products/1?a=/b&c%b\r\n" % LINE, 200),
    "an escaped question mark": (b"GET /list_products/1%%3F%b\r\n" % LINE, 404),
    "a path without a slash": (b"GET list_products%b\r\n" % LINE, 404),
    "a body": (b"POST /list_products%bContent-Length: 3\r\n\r\na=b" % LINE, 405),
    "a body that is shorter than it says": (
        b"POST /list_products%bContent-Length: 1000\r\n\r\na=b" % LINE,
        405,
    ),
    "a body of a length that it does not say": (
        b"POST /%bTransfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n" % LINE,
        405,
    ),
    "PUT": (b"PUT /list_products%b\r\n" % LINE, 405),
    "DELETE": (b"DELETE /list_products/1%b\r\n" % LINE, 405),
    "OPTIONS": (b"OPTIONS *%b\r\n" % LINE, 405),
    "TRACE": (b"TRACE /%b\r\n" % LINE, 405),
    "CONNECT": (b"CONNECT localhost:80%b\r\n" % LINE, 405),
    "a method that is none": (b"BREW /list_products%b\r\n" % LINE, 405),
    "a method in small letters": (b"get /list_products%b\r\n" % LINE, 405),
    "another method in HTTP/0.9": (b"POST /list_products\r\n\r\n", 400),
    "HTTP/9.9": (b"GET /list_products HTTP/9.9\r\n\r\n", 505),
    "a version that is none": (b"GET /list_products HTTP/one\r\n\r\n", 400),
    "another protocol": (b"GET /list_products ICY/1.1\r\n\r\n", 400),
    "one word": (b"HELLO\r\n\r\n", 400),
    "quotes and backslashes": (b'"\\" \\"{}" \' "\r\n\r\n', 400),
    "TLS": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03 \xff\r\n\r\n", 400),
}


@pytest.mark.parametrize(("request_", "status"), ABUSE.values(), ids=ABUSE)
def test_answers_in_json_or_closes_the_connection_on(service, request_, status):
    script, port = service
    answer = exchange(port, request_)
    assert (answer and answer.status) == status
    assert status != 405 or answer.headers["Allow"] == "GET, HEAD"
    assert get(port, "/list_products").body == ALL
    assert "Traceback" not in "\n".join(script.errors)


def test_clients_that_leave_before_the_answer_are_no_error(service, shared_redis):
    script, port = service
    for request_ in b"", b"GET /list_products/1%b\r\n" % LINE, b"HELLO\r\n\r\n":
        shared_redis.client.client_pause(100)  # so they have left when it answers
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                # The connection is not just ended but reset.
                linger = b"\x01\0\0\0" + b"\0" * 4
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(request_)
        assert get(port, "/list_products/1").status == 200  # after the pause
    assert "Traceback" not in "\n".join(script.errors)


def test_a_connection_stays_open_between_requests_whatever_the_answers(
    serve, redis_server
):
    _, port = serve(redis_server.url)
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.connect()
        address = connection.sock.getsockname()
        for method, path, status in [
            ("GET", "/list_products/1", 200),
            ("HEAD", "/list_products/1", 200),
            ("GET", "/reserve_product/1", 200),
            ("GET", "/nowhere", 404),
            ("DELETE", "/list_products", 405),
            ("GET", "/list_products/1", 200),
        ]:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode()
            assert response.status == status
            assert connection.sock.getsockname() == address
        assert body == left(1, 3)


def test_requests_sent_at_once_are_answered_in_their_order(serve, redis_server):
    _, port = serve(redis_server.url)
    requests = b"GET /list_products/1%b\r\nGET /reserve_product/1%b\r\n" % (LINE, LINE)
    received = send(port, requests, and_end=True).decode()
    assert received.count("HTTP/1.1 200 OK") == 2
    assert received.index(left(1, 4)) < received.index(confirmed(1))


KEPT = [
    "HTTP/1.1",
    "HTTP/1.1\r\nConnection: keep-alive",
    "HTTP/1.1\r\nConnection: TE",
    "HTTP/1.1\r\nConnection: closed",
]
CLOSED = [
    "HTTP/1.1\r\nConnection: close",
    "HTTP/1.1\r\nCONNECTION:CLOSE",
    "HTTP/1.1\r\nConnection: TE, close",
    "HTTP/1.1\r\nConnection: close, TE",
    "HTTP/1.1\r\nconnection: te ,Close",
    "HTTP/1.1\r\nConnection: keep-alive, close",
    "HTTP/1.1\r\nConnection: TE\r\nConnection: close",
    "HTTP/1.1\r\nConnection: close\r\nConnection: keep-alive",
    "HTTP/1.0",
    "HTTP/1.0\r\nConnection: keep-alive",  # `ab -k`, which waits for the end
    "HTTP/1.0\r\nConnection: Keep-Alive\r\nKeep-Alive: timeout=60",
]
AND_CLOSE = b"\r\nConnection: close\r\n"


@pytest.mark.parametrize("head", KEPT)
def test_a_connection_is_kept_for_the_next_request(service, head):
    _, port = service
    requests = f"GET /list_products {head}\r\n\r\nGET / HTTP/1.0\r\n\r\n"
    received = send(port, requests.encode())  # the second ends it
    first, second = received.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 OK\r\n") and AND_CLOSE not in first
    assert second.startswith(b"404 Not Found\r\n") and AND_CLOSE in second


@pytest.mark.parametrize("head", CLOSED)
def test_a_client_that_asks_to_close_is_not_kept_waiting(service, head):
    _, port = service
    request = f"GET /list_products {head}\r\n\r\n".encode()
    received = send(port, request)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n") and AND_CLOSE in received
    assert received.endswith(b"\r\n\r\n" + ALL.encode())
    assert send(port, request * 2).count(b"HTTP/1.1 ") == 1


def test_the_end_of_a_connection_does_not_wait_for_the_client_to_end_it(service):
    _, port = service
    begin = time.monotonic()
    for _ in range(20):
        send(port, b"GET /list_products HTTP/1.0\r\n\r\n")
    assert time.monotonic() - begin < 5


HALVES = {
    "in a path": b"GET /reserve_product/1",  # of /reserve_product/12, say
    "in a version": b"GET /reserve_product/1 HTTP/1.",
    "after the first line": b"GET /reserve_product/1 HTTP/1.1\r\n",
    "after a header": b"GET /reserve_product/1%b" % LINE,
    "in the name of a header": b"GET /reserve_product/1%bConnec" % LINE,
    "in the value of a header": b"GET /reserve_product/1%bConnection: clo" % LINE,
    "in the empty line": b"GET /reserve_product/1%b\r" % LINE,
    "after the first line of HTTP/0.9": b"GET /reserve_product/1\r\n",
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_a_request_is_not_answered(service, shared_redis, half):
    _, port = service
    assert send(port, half, and_end=True) == b""
    assert not shared_redis.client.exists("item.1")


def test_half_a_request_sells_nothing_whether_client_or_service_ends(
    serve, shared_redis
):
    script, port = serve(shared_redis.url)
    with ExitStack() as stack:
        for half in HALVES.values():
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(half)
            connection = socket.create_connection(("127.0.0.1", port))
            stack.enter_context(connection).sendall(half)
        get(port, "/list_products")  # so the connections before this one are accepted
        script.stop(signal.SIGTERM)
        assert script.end() == 0
    assert not shared_redis.client.exists("item.1")
    assert script.errors == []


def test_the_answer_to_a_post_of_3_mb_arrives_whole(service):
    _, port = service
    body = b"x" * 3_000_000
    request = b"POST /list_products%bContent-Length: 3000000\r\n\r\n" % LINE + body
    for _ in range(20):
        for answer in exchange(port, request), get(port, "/", "POST", body):
            assert (answer.status, answer.body) == (405, NOT_ALLOWED)


HIDDEN = b"GET /reserve_product/1%b\r\n" % LINE
LENGTH = b"%d" % len(HIDDEN)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
BODIES = {
    "a body": b"Content-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
    "in small letters": b"content-length: %b\r\n\r\n" % LENGTH + HIDDEN,
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "an unknown encoding": b"Transfer-Encoding: x\r\n\r\n" + HIDDEN,
    "two lengths": b"Content-Length: 0\r\nContent-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
    "a length of nothing": b"Content-Length: 0\r\n\r\n" + HIDDEN,
    "a negative length": b"Content-Length: -1\r\n\r\n" + HIDDEN,
    "a space before the colon": b"Content-Length : %b\r\n\r\n" % LENGTH + HIDDEN,
    "a folded name": b"X: y\r\n\tContent-Length: 1\r\nContent-Length\r\n : 9\r\n\r\n"
    + HIDDEN,
    "bare line feeds": b"Content-Length: %b\n\n" % LENGTH + HIDDEN,
    "on a kept connection": b"Connection: keep-alive\r\nContent-Length: %b\r\n\r\n"
    % LENGTH
    + HIDDEN,
    "a folded header": b"X: y\r\n Content-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
    "a fold of no header": b" Content-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
    "a folded value": b"Content-Length:\r\n %b\r\n\r\n" % LENGTH + HIDDEN,
    "a control character": b"\x0bContent-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
    "after no header": b"X\r\nContent-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
    # Python's parser takes a bare carriage return for the end of a line.
    "after two returns": b"X: y\r\r\nContent-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
    "after a bare return": b"X: y\r\n\rContent-Length: %b\r\n\r\n" % LENGTH + HIDDEN,
}


@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD", b"BREW"])
@pytest.mark.parametrize("rest", BODIES.values(), ids=BODIES)
def test_a_request_hidden_in_a_body_is_never_answered(
    service, shared_redis, method, rest
):
    _, port = service
    request = b"%b /list_products HTTP/1.1\r\n" % method + rest
    received = send(port, request)
    assert received.count(b"HTTP/1.1 ") == 1
    assert AND_CLOSE in received
    assert not shared_redis.client.exists("item.1")
