"""`python 9_stock.py` as a process: its start, its port, idle connections, its end."""

import http.client
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from threading import Event, Thread

import pytest
import scenarios
from conftest import (
    Script,
    free_port,
    port_of,
    start_service,
    wait_until,
)
from stock_service import AWAY, LINE, TABLE, get, listens, waiting

scenario = scenarios.Scenarios()


def test_the_process_answers_by_the_table_as_well(serve, redis_server, tmp_path):
    script, port = serve(redis_server.url, cwd=tmp_path)
    for method, path, status, body in TABLE:
        answer = get(port, path, method)
        assert (path, answer.status, answer.body) == (path, status, body)
    assert get(port, "/list_products", "HEAD").body == ""
    assert script.lines == [f"API available on localhost port {port}"]
    assert script.errors == []
    assert sorted(redis_server.client.keys()) == ["item.1", "item.3"]


def test_an_unforeseen_error_has_its_traceback_on_standard_error_only(
    serve, redis_server
):
    redis_server.client.set("item.1", "three")
    script, port = serve(redis_server.url)
    answer = get(port, "/list_products/1")
    assert (answer.status, answer.body) == (500, '{"status":"Internal server error"}')
    wait_until(lambda: any("ValueError" in line for line in script.errors))
    assert len(script.lines) == 1


def test_port_chooses_the_port_of_the_loopback_address(serve, shared_redis):
    port = free_port()
    script, _ = serve(shared_redis.url, port)
    assert script.lines == [f"API available on localhost port {port}"]
    assert get(port, "/list_products").status == 200
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


def test_without_port_it_is_1245(start, shared_redis, monkeypatch):
    monkeypatch.delenv("PORT", raising=False)
    script = start("9_stock.py", shared_redis.url)
    wait_until(lambda: script.lines or script.errors)
    # The second is right as well: on this machine something else has that port.
    said = (script.lines + script.errors)[0]
    assert said.startswith(
        ("API available on localhost port 1245", "Can't listen on port 1245: ")
    )


def test_a_port_that_is_taken_is_one_clear_line(serve, start, shared_redis):
    _, port = serve(shared_redis.url)
    second = start("9_stock.py", shared_redis.url, PORT=str(port))
    assert second.end() == 1
    assert second.lines == []
    (error,) = second.errors
    assert f"port {port}" in error and "in use" in error
    assert get(port, "/list_products").status == 200


def test_a_port_that_is_none_is_one_clear_line(start, shared_redis):
    ports = ["", "http", "-1", "65536"]
    scripts = [start("9_stock.py", shared_redis.url, PORT=port) for port in ports]
    for port, script in zip(ports, scripts):
        assert script.end() == 1
        assert script.lines == []
        (error,) = script.errors
        assert error.startswith(f"Can't listen on port {port}: ")


STOPS = signal.SIGINT, signal.SIGTERM
REQUEST = b"GET /list_products%b\r\n" % LINE


def serve_two(start: Callable[..., Script], url: str) -> list[tuple[Script, int]]:
    """Start two services, one for each way to stop it; return scripts and ports."""
    scripts = [start("9_stock.py", url, PORT="0") for _ in STOPS]
    return [(script, port_of(script)) for script in scripts]


def assert_end_well(services: list[tuple[Script, int]]) -> None:
    """Stop the services, and make sure that they end in time and without noise."""
    begin = time.monotonic()
    for signum, (script, _) in zip(STOPS * 2, services):
        script.stop(signum)
    for signum, (script, _) in zip(STOPS * 2, services):
        assert (signum, script.end()) == (signum, 0)
        assert len(script.lines) == 1
        assert "Traceback" not in "\n".join(script.errors)
    assert time.monotonic() - begin < 3


@scenario
def ctrl_c_and_sigterm_end_it_at_rest(start, start_redis):
    services = serve_two(start, start_redis().url)
    assert_end_well(services)
    assert [script.errors for script, _ in services] == [[], []]


@scenario
def ctrl_c_and_sigterm_end_it_with_idle_connections_open(start, start_redis):
    services = serve_two(start, start_redis().url)
    with ExitStack() as stack:
        for begin in [b"", b"GET /list_pro", REQUEST] * 17:
            for _, port in services:
                connection = socket.create_connection(("127.0.0.1", port))
                stack.enter_context(connection).sendall(begin)
                if begin == REQUEST:
                    assert connection.recv(65536)
        assert_end_well(services)


@scenario
def ctrl_c_and_sigterm_end_it_while_50_clients_send_much_and_read_nothing(
    start, start_redis
):
    services = serve_two(start, start_redis().url)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _, port in services * 50
        ]
        for _, port in services:
            get(port, "/list_products")  # so those before this one are accepted
        for connection in connections:
            connection.sendall(REQUEST * 2000)
        assert_end_well(services)


@scenario.given(end=b"\r\n\r\n")
@scenario.given(end=b"\r\nExpect: 100-continue\r\n\r\n")
def ctrl_c_and_sigterm_end_it_while_an_answer_finds_no_room(start, start_redis, end):
    services = serve_two(start, start_redis().url)
    request = REQUEST.replace(b"\r\n\r\n", end)
    with ExitStack() as stack:
        for _, port in services:
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):  # the service reads no more of it
                connection.sendall(request * 100_000)
        assert_end_well(services)


@scenario
def ctrl_c_and_sigterm_end_it_after_the_answer_in_hand(start, start_redis):
    redis_server = start_redis()
    services = serve_two(start, redis_server.url)
    redis_server.require(6, 2)
    redis_server.client.client_pause(10_000, all=False)  # those who write wait
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(get, port, "/reserve_product/1") for _, port in services]
        wait_until(lambda: waiting(redis_server) == 2)
        assert_end_well(services)
        for answer in answers:
            assert answer.result()[::2] == (503, AWAY)


def test_ctrl_c_and_sigterm_under_load_lose_no_answer(start, redis_server):
    services = serve_two(start, redis_server.url) + serve_two(start, redis_server.url)

    def asked() -> int:
        """Return how often a service has asked Redis for the stock."""
        statistics = redis_server.client.info("commandstats")
        return statistics.get("cmdstat_get", {"calls": 0})["calls"]

    def ask(port: int) -> int:
        """Ask until the service is gone; return how many answers came."""
        answers = 0
        while True:
            try:
                answers += get(port, "/list_products/1").status == 200
            except (OSError, http.client.HTTPException):
                if not listens(port):
                    return answers

    def ask_on(port: int) -> int:
        """Do the same on one connection."""
        answers = 0
        connection = http.client.HTTPConnection("127.0.0.1", port)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            while True:
                connection.request("GET", "/list_products/1")
                response = connection.getresponse()
                response.read()
                answers += response.status == 200
        return answers

    with ThreadPoolExecutor(24) as pool:
        answers = [
            pool.submit(function, port)
            for _, port in services
            for function in (ask, ask_on) * 3
        ]
        wait_until(lambda: asked() > 200)
        assert_end_well(services)
        assert sum(count.result() for count in answers) == asked()


@scenario.given(data=b"G", times=1)
@scenario.given(data=b"GET /list_products/1%b\r\n" % LINE, times=100)
def one_ctrl_c_ends_it_whatever_a_client_sends(start, start_redis, data, times):
    script, port = start_service(start, start_redis().url)
    sends = Event()

    def send() -> None:
        address = "127.0.0.1", port
        with suppress(OSError), socket.create_connection(address) as connection:
            Thread(target=read, args=[connection], daemon=True).start()
            while True:  # until the service ends
                connection.sendall(data * times)
                sends.set()
                time.sleep(0.001)  # never idle, never done

    def read(connection: socket.socket) -> None:
        with suppress(OSError):
            while connection.recv(1 << 20):
                pass

    Thread(target=send, daemon=True).start()
    wait_until(sends.is_set)
    get(port, "/list_products")  # so the connection before this one is accepted
    script.stop(signal.SIGINT)
    assert script.end(timeout=3) == 0
    assert len(script.lines) == 1
    assert script.errors == []


@scenario
def connections_without_a_whole_request_hinder_nobody_and_are_dropped(
    start, start_redis
):
    script, port = start_service(start, start_redis().url)
    with ExitStack() as stack:
        connections = []
        for begin in [b"", b"GET /lis", b"GET /%bX: " % LINE, b"GET /%b" % LINE] * 50:
            connection = socket.create_connection(("127.0.0.1", port), timeout=8)
            connections.append(stack.enter_context(connection))
            connection.sendall(begin)
        assert get(port, "/list_products").status == 200
        for connection in connections:
            assert connection.recv(1) == b""
    assert script.errors == []


@scenario
def clients_that_never_stop_sending_get_their_answer_and_are_closed(start, start_redis):
    script, port = start_service(start, start_redis().url)

    def post() -> int:
        """Send a body without end; return how long the service bore it, in seconds."""
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /%bTransfer-Encoding: chunked\r\n\r\n" % LINE)
            assert connection.recv(65536).startswith(b"HTTP/1.1 405")
            with suppress(ConnectionError):
                while time.monotonic() - begin < 8:
                    connection.sendall(b"x" * 1000)
        return time.monotonic() - begin

    with ThreadPoolExecutor(8) as pool:
        for seconds in [pool.submit(post) for _ in range(8)]:
            assert 0.9 < seconds.result() < 8
    assert script.errors == []


@pytest.mark.parametrize("scenario", scenario.collected)
def test_that(scenario, outcomes):
    outcomes[scenario].result()
