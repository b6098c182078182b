"""Task 12, the stock service: its WSGI application alone, then processes that serve it."""

import http.client
import importlib
import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from email.message import Message
from email.parser import Parser
from importlib.util import find_spec
from threading import Barrier, Event, Thread
from typing import NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import fakeredis
import pytest
from conftest import (
    ROOT,
    RedisServer,
    Script,
    ends_not_connected,
    free_port,
    require_redis_server,
    wait_until,
)

stock = importlib.import_module("9_stock")

QUANTITIES = {1: 4, 2: 10, 3: 2, 4: 5}
SUITCASES = {
    1: '{"itemId":1,"itemName":"Suitcase 250","price":50,"initialAvailableQuantity":4',
    2: '{"itemId":2,"itemName":"Suitcase 450","price":100,"initialAvailableQuantity":10',
    3: '{"itemId":3,"itemName":"Suitcase 650","price":350,"initialAvailableQuantity":2',
    4: '{"itemId":4,"itemName":"Suitcase 1050","price":550,"initialAvailableQuantity":5',
}
ALL = "[" + ",".join(start + "}" for start in SUITCASES.values()) + "]"
NO_PRODUCT = '{"status":"Product not found"}'
NOT_FOUND = '{"status":"Not found"}'
NOT_ALLOWED = '{"status":"Method not allowed"}'
AWAY = '{"status":"Stock is not available right now"}'
LINE = b" HTTP/1.1\r\nHost: localhost\r\n"  # what follows a path


def left(item_id: int, units: int) -> str:
    return SUITCASES[item_id] + f',"currentQuantity":{units}}}'


def confirmed(item_id: int) -> str:
    return f'{{"status":"Reservation confirmed","itemId":{item_id}}}'


def sold_out(item_id: int) -> str:
    return f'{{"status":"Not enough stock available","itemId":{item_id}}}'


# The contract's table, in an order that begins with an empty Redis.
TABLE = [
    ("GET", "/list_products", 200, ALL),
    ("GET", "/list_products/1", 200, left(1, 4)),
    ("GET", "/list_products/2", 200, left(2, 10)),
    ("GET", "/list_products/3", 200, left(3, 2)),
    ("GET", "/list_products/4", 200, left(4, 5)),
    ("GET", "/list_products/12", 404, NO_PRODUCT),
    ("GET", "/reserve_product/3", 200, confirmed(3)),
    ("GET", "/list_products/3", 200, left(3, 1)),
    ("GET", "/reserve_product/3", 200, confirmed(3)),
    ("GET", "/reserve_product/3", 200, sold_out(3)),
    ("GET", "/list_products/3", 200, left(3, 0)),
    ("GET", "/reserve_product/1", 200, confirmed(1)),
    ("GET", "/reserve_product/12", 404, NO_PRODUCT),
    ("GET", "/reserve_product/abc", 404, NO_PRODUCT),
    ("GET", "/", 404, NOT_FOUND),
    ("POST", "/reserve_product/1", 405, NOT_ALLOWED),
]


class Answer(NamedTuple):
    status: int
    headers: Message
    body: str


def check(answer: Answer) -> Answer:
    """Make sure that an answer is JSON and says so, and return it."""
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert json.loads(answer.body)
    return answer


# 1. The application alone: no server, no sockets.


@pytest.fixture
def fake(monkeypatch) -> fakeredis.FakeRedis:
    """An empty fakeredis that the application uses."""
    client = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    monkeypatch.setattr(stock, "client", lambda: client)
    return client


def call(method: str, path: str) -> Answer:
    """Call the application as a strict WSGI server does."""
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SCRIPT_NAME": "",
    }
    setup_testing_defaults(environ)
    head = {}

    def start_response(status, headers, exc_info=None):
        head.update(status=status, headers=headers)
        return lambda data: None

    with closing(validator(stock.app)(environ, start_response)) as parts:
        body = b"".join(parts).decode()
    headers = Message()
    for name, value in head["headers"]:
        headers[name] = value
    return Answer(int(head["status"].split()[0]), headers, body)


def test_every_answer_of_the_table_to_the_byte(fake):
    for method, path, status, body in TABLE:
        answer = check(call(method, path))
        assert (path, answer.status, answer.body) == (path, status, body)


@pytest.mark.parametrize(("item_id", "quantity"), QUANTITIES.items())
def test_a_product_gives_as_many_confirmations_as_it_has_units(fake, item_id, quantity):
    bodies = [call("GET", f"/reserve_product/{item_id}").body for _ in range(12)]
    assert bodies[:quantity] == [confirmed(item_id)] * quantity
    assert bodies[quantity:] == [sold_out(item_id)] * (12 - quantity)
    assert fake.get(f"item.{item_id}") == str(quantity).encode()
    assert fake.keys() == [f"item.{item_id}".encode()]


def test_a_lost_race_is_tried_again_also_in_an_except_block(fake, monkeypatch):
    read = stock.get_current_reserved_stock_by_id

    def read_and_lose_once(item_id, connection=None):
        reserved = read(item_id, connection)
        if connection and not reserved:
            fake.set("item.1", 1)
        return reserved

    monkeypatch.setattr(stock, "get_current_reserved_stock_by_id", read_and_lose_once)
    try:
        raise KeyError
    except KeyError:
        assert stock.reserve_one(stock.get_item_by_id(1))
    assert fake.get("item.1") == b"2"


def test_reservations_of_another_service_on_the_same_redis_count(fake):
    fake.set("item.1", "3")  # as the JavaScript twin writes it
    assert call("GET", "/list_products/1").body == left(1, 1)
    assert call("GET", "/reserve_product/1").body == confirmed(1)
    assert call("GET", "/reserve_product/1").body == sold_out(1)


def test_more_reservations_than_units_are_no_error(fake):
    fake.set("item.1", "5")  # the JavaScript twin oversells
    assert call("GET", "/list_products/1").body == left(1, -1)
    assert call("GET", "/reserve_product/1").body == sold_out(1)


def test_head_is_get_without_the_body(fake):
    fake.mset({"item.1": 4, "item.3": 1})  # so that no request changes the next one
    for path in dict.fromkeys(path for _, path, _, _ in TABLE if "serve" not in path):
        get, head = call("GET", path), call("HEAD", path)
        assert (head.status, head.body) == (get.status, "")
        assert head.headers.items() == get.headers.items()


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get"]
)
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")  # of the validator
def test_another_method_is_405_and_names_those_allowed(fake, method):
    for path in "/list_products", "/reserve_product/1", "/nowhere":
        answer = check(call(method, path))
        assert (answer.status, answer.body) == (405, NOT_ALLOWED)
        assert answer.headers["Allow"] == "GET, HEAD"
    assert not fake.exists("item.1")


@pytest.mark.parametrize("route", ["list_products", "reserve_product"])
@pytest.mark.parametrize(
    "item_id",
    ["0", "5", "-1", "+1", "1.0", "01", "1e0", "1 ", " 1", "1_0", "True", "9" * 5000]
    # Other digits than ASCII's, as WSGI spells them: each byte of UTF-8 a character.
    + [digit.encode().decode("latin-1") for digit in "١１¹①"],
)
def test_only_an_id_as_the_list_spells_it_is_a_product(fake, route, item_id):
    answer = check(call("GET", f"/{route}/{item_id}"))
    assert (answer.status, answer.body) == (404, NO_PRODUCT)
    assert not fake.keys()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/list_product",
        "/List_Products",
        "/list_products/1/",
        "/reserve_product",
    ]
    + [
        "/list_products/1/2",
        "/../list_products",
        "/\xff",
        "/\0",
        "/api/list_products/1",
    ],
)
def test_another_path_is_404(fake, path):
    answer = check(call("GET", path))
    assert (answer.status, answer.body) == (404, NOT_FOUND)


def test_an_unforeseen_error_is_500_and_logged_with_its_traceback(fake, caplog):
    fake.set("item.1", "three")
    for path in "/list_products/1", "/reserve_product/1":
        answer = check(call("GET", path))
        assert (answer.status, answer.body) == (
            500,
            '{"status":"Internal server error"}',
        )
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, ValueError]


def test_without_redis_stock_is_503_and_the_list_is_not(monkeypatch):
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    monkeypatch.setattr(stock, "client", stock.client.__wrapped__)  # not the cached one
    for path in "/list_products/1", "/reserve_product/1":
        answer = check(call("GET", path))
        assert (answer.status, answer.body) == (503, AWAY)
    for path, status in ("/list_products", 200), ("/reserve_product/12", 404):
        assert check(call("GET", path)).status == status


def test_list_products_holds_the_products():
    assert json.dumps(stock.list_products, separators=(",", ":")) == ALL


def test_get_item_by_id_finds_a_product_or_none():
    for product in stock.list_products:
        assert stock.get_item_by_id(product["itemId"]) is product
        assert stock.get_item_by_id(str(product["itemId"])) is product
    assert stock.get_item_by_id(12) is None


def test_reserve_stock_by_id_sets_the_number_of_reserved_units(fake):
    stock.reserve_stock_by_id(1, 3)
    assert fake.get("item.1") == b"3"
    stock.reserve_stock_by_id(1, 2)
    assert fake.get("item.1") == b"2"


def test_get_current_reserved_stock_by_id_is_0_when_there_is_none(fake):
    assert stock.get_current_reserved_stock_by_id(1) == 0
    fake.set("item.1", 3)
    assert stock.get_current_reserved_stock_by_id(1) == 3
    assert stock.get_current_reserved_stock_by_id(2) == 0


# 2. `python 9_stock.py`: its start.


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory) -> Iterator[RedisServer]:
    """A Redis for the tests that don't change it."""
    require_redis_server()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def port_of(script: Script) -> int:
    """Wait until the service listens, and return its port."""
    script.wait_for("API available on localhost port ")
    return int(script.lines[0].split()[-1])


@pytest.fixture
def serve(start) -> Callable[..., tuple[Script, int]]:
    """A function that starts the service on a free port; it returns script and port."""

    def serve(url: str, port: int = 0, **options) -> tuple[Script, int]:
        script = start("9_stock.py", url, PORT=str(port), **options)
        return script, port_of(script)

    return serve


def get(port: int, path: str, method: str = "GET", body: bytes | None = None) -> Answer:
    """Ask the service on `port`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read().decode())
    return answer if method == "HEAD" else check(answer)


def get_at_once(port: int, paths: list[str]) -> list[Answer]:
    """Ask for all the paths at once."""
    count = len(paths)
    with ThreadPoolExecutor(count, initializer=Barrier(count).wait) as pool:
        return list(pool.map(get, [port] * count, paths))


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


def test_starts_only_if_redis_is_there(start):
    script = start("9_stock.py", f"redis://127.0.0.1:{free_port()}", PORT="0")
    assert "refused" in ends_not_connected(script)


def test_starts_only_with_a_well_formed_url(start):
    script = start("9_stock.py", "localhost:6379", PORT="0")
    assert "redis://" in ends_not_connected(script)


def test_starts_only_with_the_password_of_redis(start, serve, start_redis):
    redis = start_redis("--requirepass", "secret")
    without = start("9_stock.py", redis.url, PORT="0")
    wrong = start("9_stock.py", redis.url.replace("://", "://:secreT@"), PORT="0")
    assert "authenticated" in ends_not_connected(without)
    assert "password" in ends_not_connected(wrong)
    _, port = serve(redis.url.replace("://", "://:secret@"))
    assert get(port, "/reserve_product/1").body == confirmed(1)


def test_starts_only_if_redis_answers(start, redis_server):
    with frozen(redis_server):
        script = start("9_stock.py", redis_server.url, PORT="0")
        ends_not_connected(script)


# 3. Load.


@contextmanager
def serving(server: str, url: str) -> Iterator[list[int]]:
    """Serve the application with two processes on one Redis; yield their ports."""
    commands = {
        "granian": ["--interface", "wsgi", "--workers", "2", "--port", "{}"],
        "gunicorn": ["--workers", "2", "--threads", "8", "--bind", "127.0.0.1:{}"],
    }
    with ExitStack() as stack:
        if server in commands:
            port = free_port()
            options = [option.format(port) for option in commands[server]]
            command = sys.executable, "-m", server, *options, "9_stock:app"
            script = Script(*command, cwd=ROOT, REDIS_URL=url)
            stack.callback(script.kill)
            wait_until(lambda: listens(port))
            yield [port]
        else:
            scripts = [
                Script(sys.executable, str(ROOT / server), REDIS_URL=url, PORT="0")
                for _ in range(2)
            ]
            for script in scripts:
                stack.callback(script.kill)
            yield [port_of(script) for script in scripts]


def waiting(redis: RedisServer) -> int:
    """Return how many clients a paused Redis lets wait."""
    return sum("b" in client["flags"] for client in redis.client.client_list())


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


# Other servers than the script's are no package of the project: tested if installed.
SERVERS = ["9_stock.py", *(name for name in ("granian", "gunicorn") if find_spec(name))]


@pytest.mark.parametrize("server", SERVERS)
def test_no_unit_is_sold_twice_by_two_processes_to_64_clients(redis_server, server):
    with serving(server, redis_server.url) as ports:

        def reserve(number: int) -> tuple[int, str]:
            item_id, port = number % 4 + 1, ports[number // 4 % len(ports)]
            return get(port, f"/reserve_product/{item_id}")[::2]

        with ThreadPoolExecutor(64, initializer=Barrier(64).wait) as pool:
            answers = Counter(pool.map(reserve, range(2000)))
    expected = {}
    for item_id, quantity in QUANTITIES.items():
        expected[200, confirmed(item_id)] = quantity
        expected[200, sold_out(item_id)] = 500 - quantity
        assert redis_server.client.get(f"item.{item_id}") == str(quantity)
    assert answers == expected


def test_a_reservation_keeps_the_client_that_it_began_with(redis_server, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    stock.client.cache_clear()
    redis_server.client.client_pause(10_000, all=False)  # those who write wait
    with ThreadPoolExecutor(1) as pool:
        reservation = pool.submit(call, "GET", "/reserve_product/1")
        wait_until(lambda: waiting(redis_server) == 1)
        # As a thread does that makes the first client at the same time.
        stock.client.cache_clear()
        redis_server.client.client_unpause()
        assert reservation.result().body == confirmed(1)


def test_every_one_of_150_requests_at_once_waits_for_a_slow_redis(serve, redis_server):
    script, port = serve(redis_server.url)
    redis_server.client.client_pause(500)
    answers = get_at_once(port, ["/list_products/1"] * 150)
    assert Counter(answer.status for answer in answers) == {200: 150}
    assert script.errors == []


def test_connections_without_a_request_keep_nobody_waiting_and_are_dropped(
    serve, shared_redis
):
    script, port = serve(shared_redis.url)
    with ExitStack() as stack:
        connections = []
        for begin in [b"", b"GET /lis", b"GET /%bX: " % LINE, b"GET /%b" % LINE] * 50:
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            connections.append(stack.enter_context(connection))
            connection.sendall(begin)
        assert get(port, "/list_products").status == 200
        for connection in connections:
            assert connection.recv(1) == b""
    assert script.errors == []


# 4. Restarts and failures.


def test_reservations_survive_a_restart_of_the_service(serve, redis_server):
    script, port = serve(redis_server.url)
    for _ in range(3):
        assert get(port, "/reserve_product/1").body == confirmed(1)
    script.stop(signal.SIGTERM)
    assert script.end() == 0
    serve(redis_server.url, port)
    assert get(port, "/list_products/1").body == left(1, 1)


@contextmanager
def frozen(redis: RedisServer) -> Iterator[None]:
    """Make a Redis hang: it accepts connections and never answers."""
    redis.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.process.send_signal(signal.SIGCONT)


def assert_stock_is_away(port: int) -> None:
    """Make sure that 20 clients at once are told so, in seconds, not in minutes."""
    begin = time.monotonic()
    answers = get_at_once(port, ["/list_products/1", "/reserve_product/1"] * 10)
    assert time.monotonic() - begin < 4
    assert {(answer.status, answer.body) for answer in answers} == {(503, AWAY)}
    assert get(port, "/list_products").status == 200


def test_redis_that_stops_and_starts_again_is_503_for_that_time(serve, redis_server):
    script, port = serve(redis_server.url)
    get_at_once(port, ["/list_products/1"] * 20)  # leaves connections that will be dead
    assert get(port, "/reserve_product/1").body == confirmed(1)
    redis_server.stop()
    assert_stock_is_away(port)
    redis_server.start()
    answers = get_at_once(port, ["/list_products/1"] * 20)
    assert {answer.body for answer in answers} == {left(1, 3)}
    assert len(script.lines) == 1
    assert all(line.startswith("Stock is not available") for line in script.errors)


def test_a_restart_of_redis_between_two_requests_shows_nowhere(serve, redis_server):
    script, port = serve(redis_server.url)
    get_at_once(port, ["/list_products/1"] * 20)
    redis_server.stop()
    redis_server.start()
    assert get(port, "/reserve_product/1").body == confirmed(1)
    answers = get_at_once(port, ["/list_products/1"] * 20)
    assert {answer.body for answer in answers} == {left(1, 3)}
    assert script.errors == []


def test_redis_that_hangs_is_503_for_that_time(serve, redis_server):
    script, port = serve(redis_server.url)
    assert get(port, "/reserve_product/1").body == confirmed(1)
    with frozen(redis_server):
        assert_stock_is_away(port)
    assert get(port, "/list_products/1").body == left(1, 3)
    assert all(line.startswith("Stock is not available") for line in script.errors)


def test_redis_that_takes_no_writes_is_503_and_is_asked_once(serve, redis_server):
    script, port = serve(redis_server.url)
    redis_server.client.client_pause(10_000, all=False)
    begin = time.monotonic()
    answer = get(port, "/reserve_product/1")
    assert time.monotonic() - begin < 4
    assert (answer.status, answer.body) == (503, AWAY)
    redis_server.client.client_unpause()
    assert get(port, "/reserve_product/1").body == confirmed(1)
    assert len(script.errors) == 1


def test_redis_that_is_full_is_503_and_reserves_nothing(serve, redis_server):
    _, port = serve(redis_server.url)
    redis_server.client.config_set("maxmemory", 1)
    answer = get(port, "/reserve_product/1")
    assert (answer.status, answer.body) == (503, AWAY)
    assert get(port, "/list_products/1").body == left(1, 4)
    redis_server.client.config_set("maxmemory", 0)
    assert not redis_server.client.exists("item.1")
    assert get(port, "/reserve_product/1").body == confirmed(1)


# 5. Requests that no browser sends.


@pytest.fixture(scope="module")
def service(shared_redis) -> Iterator[tuple[Script, int]]:
    """One service for all the abuse; what it must not say is looked for at the end."""
    command = sys.executable, str(ROOT / "9_stock.py")
    script = Script(*command, REDIS_URL=shared_redis.url, PORT="0")
    try:
        yield script, port_of(script)
        script.stop(signal.SIGTERM)
        assert script.end() == 0
        assert len(script.lines) == 1
        assert "Traceback" not in "\n".join(script.errors)
    finally:
        script.kill()


def exchange(port: int, request: bytes) -> Answer | None:
    """Send bytes as they are; return the answer, None if the connection is closed."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass  # closed before all was sent or read
    if not received:
        return None
    head, _, body = received.decode("latin-1").partition("\r\n\r\n")
    status_line, _, headers = head.partition("\r\n")
    version, status, _ = status_line.split(" ", 2)
    assert version == "HTTP/1.0"
    return check(Answer(int(status), Parser().parsestr(headers), body))


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
    "HTTP/0.9": (b"GET /list_products\r\n\r\n", 200),
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


def test_clients_that_leave_before_the_answer_are_no_error(service):
    script, port = service
    for request_ in b"", b"GET /list_products/1%b" % LINE, b"HELLO\r\n\r\n":
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                # The connection is not just ended but reset.
                linger = b"\x01\0\0\0" + b"\0" * 4
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(request_)
    assert get(port, "/list_products").body == ALL
    assert "Traceback" not in "\n".join(script.errors)


# 6. The end.

STOPS = signal.SIGINT, signal.SIGTERM


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
    assert time.monotonic() - begin < 5


def test_ctrl_c_and_sigterm_end_it_at_rest(start, shared_redis):
    services = serve_two(start, shared_redis.url)
    assert_end_well(services)
    assert [script.errors for script, _ in services] == [[], []]


def test_ctrl_c_and_sigterm_end_it_with_idle_connections_open(start, shared_redis):
    services = serve_two(start, shared_redis.url)
    with ExitStack() as stack:
        for begin in [b"", b"GET /list_pro"] * 10:
            for _, port in services:
                connection = socket.create_connection(("127.0.0.1", port))
                stack.enter_context(connection).sendall(begin)
        assert_end_well(services)


def test_ctrl_c_and_sigterm_end_it_after_the_answer_in_hand(start, redis_server):
    services = serve_two(start, redis_server.url)
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

    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(ask, port) for _, port in services * 6]
        wait_until(lambda: asked() > 200)
        assert_end_well(services)
        assert sum(count.result() for count in answers) == asked()


def test_a_second_ctrl_c_ends_it_whatever_a_client_does(serve, shared_redis):
    script, port = serve(shared_redis.url)
    dribbles = Event()

    def dribble() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while script.process.poll() is None:
                connection.sendall(b"G")
                dribbles.set()
                time.sleep(0.1)  # never idle, never done

    Thread(target=dribble, daemon=True).start()
    wait_until(dribbles.is_set)
    get(port, "/list_products")  # so the connection before this one is accepted
    script.stop(signal.SIGINT)
    wait_until(lambda: not listens(port))
    script.stop(signal.SIGINT)
    assert script.end() == -signal.SIGINT
    assert len(script.lines) == 1
    assert script.errors == []
