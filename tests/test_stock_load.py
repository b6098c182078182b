"""9_stock.py with many clients at once, and with a Redis that is away, hung or full."""

import http.client
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from select import select
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Barrier, Event, Thread

import pytest
import scenarios
from conftest import (
    ROOT,
    RedisServer,
    Script,
    free_port,
    port_of,
    start_service,
    starting_scripts,
    wait_until,
)
from stock_service import (
    AWAY,
    QUANTITIES,
    confirmed,
    get,
    get_at_once,
    left,
    listens,
    sold_out,
)

scenario = scenarios.Scenarios()


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
            stack.enter_context(Script(*command, cwd=ROOT, REDIS_URL=url))
            wait_until(lambda: listens(port))
            yield [port]
        else:
            start = stack.enter_context(starting_scripts())
            scripts = [start(server, url, PORT="0") for _ in range(2)]
            yield [port_of(script) for script in scripts]


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


def test_every_one_of_150_requests_at_once_waits_for_a_slow_redis(serve, redis_server):
    script, port = serve(redis_server.url)
    redis_server.client.client_pause(200)
    answers = get_at_once(port, ["/list_products/1"] * 150)
    assert Counter(answer.status for answer in answers) == {200: 150}
    assert script.errors == []


@scenario
def reservations_survive_a_restart_of_the_service(start, start_redis):
    redis_server = start_redis()
    script, port = start_service(start, redis_server.url)
    for _ in range(3):
        assert get(port, "/reserve_product/1").body == confirmed(1)
    script.stop(signal.SIGTERM)
    assert script.end() == 0
    start_service(start, redis_server.url, port)
    assert get(port, "/list_products/1").body == left(1, 1)


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


@contextmanager
def frozen(redis: RedisServer) -> Iterator[None]:
    """Make a Redis hang: it accepts connections and never answers."""
    redis.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.process.send_signal(signal.SIGCONT)


def test_redis_that_hangs_is_503_for_that_time(serve, redis_server):
    script, port = serve(redis_server.url)
    assert get(port, "/reserve_product/1").body == confirmed(1)
    with frozen(redis_server):
        assert_stock_is_away(port)
    assert get(port, "/list_products/1").body == left(1, 3)
    assert all(line.startswith("Stock is not available") for line in script.errors)


@scenario
def redis_that_takes_no_writes_is_503_and_is_asked_once(start, start_redis):
    redis_server = start_redis()
    script, port = start_service(start, redis_server.url)
    redis_server.require(6, 2)
    redis_server.client.client_pause(10_000, all=False)
    begin = time.monotonic()
    answer = get(port, "/reserve_product/1")
    assert time.monotonic() - begin < 4
    assert (answer.status, answer.body) == (503, AWAY)
    redis_server.client.client_unpause()
    assert get(port, "/reserve_product/1").body == confirmed(1)
    wait_until(lambda: script.errors)
    assert len(script.errors) == 1


@scenario
def redis_that_is_full_is_503_and_reserves_nothing(start, start_redis):
    redis_server = start_redis()
    _, port = start_service(start, redis_server.url)
    redis_server.client.config_set("maxmemory", 1)
    answer = get(port, "/reserve_product/1")
    assert (answer.status, answer.body) == (503, AWAY)
    assert get(port, "/list_products/1").body == left(1, 4)
    redis_server.client.config_set("maxmemory", 0)
    assert not redis_server.client.exists("item.1")
    assert get(port, "/reserve_product/1").body == confirmed(1)


@scenario
def a_connection_outlives_the_absence_of_redis(start, start_redis):
    redis_server = start_redis()
    _, port = start_service(start, redis_server.url)
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.connect()
        address = connection.sock.getsockname()
        for step, status in (lambda: None, 200), (redis_server.stop, 503):
            step()
            for _ in range(2):
                connection.request("GET", "/list_products/1")
                response = connection.getresponse()
                assert response.status == status and response.read()
                assert connection.sock.getsockname() == address


class BreakingRedis(ThreadingTCPServer):
    """A Redis whose connections break, or that hangs, at the first EXEC."""

    daemon_threads = True

    def __init__(self, port: int, fault: str):
        super().__init__(("127.0.0.1", 0), BreakingConnection)
        self.port, self.fault = port, fault
        self.url = f"redis://127.0.0.1:{self.server_address[1]}"
        self.at_exec = Event()


class BreakingConnection(BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as redis:
            other = {self.request: redis, redis: self.request}
            while True:
                for source in select([*other], [], [])[0]:
                    data = source.recv(65536)
                    if not data or not self.forward(data, other[source], redis):
                        return

    def forward(self, data: bytes, target: socket.socket, redis: socket.socket) -> bool:
        """Forward what there is to read, unless the fault comes first."""
        if self.server.at_exec.is_set() and self.server.fault == "hangs":
            return True  # nothing comes through any more
        if b"EXEC" in data and not self.server.at_exec.is_set():
            self.server.at_exec.set()
            if self.server.fault == "hangs":
                return True
            if self.server.fault == "breaks after it":
                redis.sendall(data)
                redis.recv(65536)  # it is done, and nobody is told
            return False
        target.sendall(data)
        return True


@scenario.given(fault="breaks before it", reserved=None)
@scenario.given(fault="breaks after it", reserved="1")
@scenario.given(fault="hangs", reserved=None)
def a_reservation_that_redis_does_not_confirm_is_503_and_not_tried_again(
    start, start_redis, fault, reserved
):
    redis_server = start_redis()
    with BreakingRedis(redis_server.port, fault) as redis:
        Thread(target=redis.serve_forever, args=[0.05], daemon=True).start()
        script, port = start_service(start, redis.url)
        begin = time.monotonic()
        answer = get(port, "/reserve_product/1")
        assert time.monotonic() - begin < 3
        assert (answer.status, answer.body) == (503, AWAY)
        assert redis_server.client.get("item.1") == reserved
        wait_until(lambda: script.errors)
        assert len(script.errors) == 1
        if fault != "hangs":
            assert get(port, "/reserve_product/1").body == confirmed(1)
        redis.shutdown()


@pytest.mark.parametrize("scenario", scenario.collected)
def test_that(scenario, outcomes):
    outcomes[scenario].result()
