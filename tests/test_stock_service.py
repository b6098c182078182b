"""Task 12, `python 9_stock.py`: its start, its port, its end."""

import http.client
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event, Thread

import pytest
from conftest import ends_not_connected, free_port, wait_until
from stock_helpers import (
    ALL,
    AWAY,
    FAILED,
    TABLE,
    ask,
    confirmed,
    connect,
    get,
    left,
    listens,
    port_of,
    serve,
    waiting,
)

REQUEST = b"GET /list_products/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"

# 1. The start.


def test_the_process_answers_by_the_table_as_well(start, redis_server, tmp_path):
    script, port = serve(start, redis_server.url, cwd=tmp_path)
    for method, path, status, body in TABLE:
        answer = get(port, path, method)
        assert (path, answer.status, answer.body) == (path, status, body)
    assert get(port, "/list_products", "HEAD").body == ""
    assert script.lines == [f"API available on localhost port {port}"]
    assert script.errors == []
    assert sorted(redis_server.client.keys()) == ["item.1", "item.3"]


def test_an_unforeseen_error_has_its_traceback_on_standard_error_only(
    start, redis_server
):
    redis_server.client.set("item.1", "three")
    script, port = serve(start, redis_server.url)
    with connect(port) as connection:
        for _ in range(2):  # the connection goes on
            answer = ask(connection, "/list_products/1")
            assert (answer.status, answer.body) == (500, FAILED)
    wait_until(lambda: any("ValueError" in line for line in script.errors))
    assert len(script.lines) == 1


def test_port_chooses_the_port_of_the_loopback_address(start, redis_server):
    port = free_port()
    script, _ = serve(start, redis_server.url, port)
    assert script.lines == [f"API available on localhost port {port}"]
    assert get(port, "/list_products").status == 200
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


def test_without_port_it_is_1245(start, redis_server, monkeypatch):
    monkeypatch.delenv("PORT", raising=False)
    script = start("9_stock.py", redis_server.url)
    wait_until(lambda: script.lines or script.errors)
    # The second is right as well: on this machine something else has that port.
    said = (script.lines + script.errors)[0]
    assert said.startswith(
        ("API available on localhost port 1245", "Can't listen on port 1245: ")
    )


def test_a_port_that_is_taken_is_one_clear_line(start, redis_server):
    _, port = serve(start, redis_server.url)
    second = start("9_stock.py", redis_server.url, PORT=str(port))
    assert second.end() == 1
    assert second.lines == []
    (error,) = second.errors
    assert f"port {port}" in error and "in use" in error
    assert get(port, "/list_products").status == 200


def test_a_port_that_is_none_is_one_clear_line(start, redis_server):
    ports = ["", "http", "-1", "65536"]
    scripts = [start("9_stock.py", redis_server.url, PORT=port) for port in ports]
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


def test_starts_only_with_the_password_of_redis(start, start_redis):
    redis = start_redis("--requirepass", "secret")
    without = start("9_stock.py", redis.url, PORT="0")
    wrong = start("9_stock.py", redis.url.replace("://", "://:secreT@"), PORT="0")
    assert "authenticated" in ends_not_connected(without)
    assert "password" in ends_not_connected(wrong)
    _, port = serve(start, redis.url.replace("://", "://:secret@"))
    assert get(port, "/reserve_product/1").body == confirmed(1)


def test_starts_only_if_redis_answers(start, redis_server):
    redis_server.process.send_signal(signal.SIGSTOP)
    ends_not_connected(start("9_stock.py", redis_server.url, PORT="0"))


# 2. The end: by Ctrl-C and by SIGTERM, each on a service of its own.

STOPS = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def services(start, redis_server) -> list:
    """Two services, as scripts and ports, one for each way to stop it."""
    scripts = [start("9_stock.py", redis_server.url, PORT="0") for _ in STOPS]
    return [(script, port_of(script)) for script in scripts]


def assert_end_well(services: list) -> None:
    """Stop the services, and make sure that they end in time and without noise."""
    begin = time.monotonic()
    for signum, (script, _) in zip(STOPS, services):
        script.stop(signum)
    for signum, (script, _) in zip(STOPS, services):
        assert (signum, script.end()) == (signum, 0)
        assert len(script.lines) == 1
        assert "Traceback" not in "\n".join(script.errors)
    assert time.monotonic() - begin < 3


def test_ends_at_rest(services):
    assert_end_well(services)
    assert [script.errors for script, _ in services] == [[], []]


def test_ends_with_connections_open_that_are_silent(services):
    with ExitStack() as stack:
        for begin in [b"", b"GET /list_pro", REQUEST] * 10:
            for _, port in services:
                connection = socket.create_connection(("127.0.0.1", port))
                stack.enter_context(connection).sendall(begin)
                if begin == REQUEST:
                    assert connection.recv(65536)
        assert_end_well(services)


@pytest.mark.parametrize(
    "data", [b"G", REQUEST * 100], ids=["a byte at a time", "many requests at a time"]
)
def test_ends_while_a_client_sends_without_end(services, data):
    def read(connection: socket.socket) -> None:
        try:
            while connection.recv(1 << 20):
                pass
        except ConnectionError:
            pass

    def send(port: int, sends: Event) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                Thread(target=read, args=[connection], daemon=True).start()
                while True:
                    connection.sendall(data)
                    sends.set()
                    time.sleep(0.001)  # never idle, never done
        except ConnectionError:
            pass

    for _, port in services:
        sends = Event()
        Thread(target=send, args=[port, sends], daemon=True).start()
        assert sends.wait(10)
        get(port, "/list_products")  # so the connection before this one is accepted
    assert_end_well(services)


def test_ends_after_the_answer_in_hand(services, redis_server):
    redis_server.client.client_pause(10_000, all=False)  # those who write wait
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(get, port, "/reserve_product/1") for _, port in services]
        wait_until(lambda: waiting(redis_server) == 2)
        assert_end_well(services)
        for answer in answers:
            assert answer.result()[::2] == (503, AWAY)


def test_ends_under_load_and_loses_no_answer(services, redis_server):
    def asked() -> int:
        """Return how often a service has asked Redis for the stock."""
        statistics = redis_server.client.info("commandstats")
        return statistics.get("cmdstat_get", {"calls": 0})["calls"]

    def ask_on(port: int, keep: bool) -> int:
        """Ask until the service is gone; return how many answers came."""
        answers = 0
        while True:
            try:
                with connect(port) as connection:
                    answers += ask(connection, "/list_products/1").status == 200
                    while keep:
                        answers += ask(connection, "/list_products/1").status == 200
            except (OSError, http.client.HTTPException):
                if not listens(port):
                    return answers

    with ThreadPoolExecutor(24) as pool:
        answers = [
            pool.submit(ask_on, port, keep)
            for _, port in services * 6
            for keep in (True, False)
        ]
        wait_until(lambda: asked() > 300)
        assert_end_well(services)
        assert sum(count.result() for count in answers) == asked()


def test_reservations_survive_a_restart_of_the_service(start, redis_server):
    script, port = serve(start, redis_server.url)
    with connect(port) as connection:
        for _ in range(3):
            assert ask(connection, "/reserve_product/1").body == confirmed(1)
        script.stop(signal.SIGTERM)
        assert script.end() == 0
    serve(start, redis_server.url, port)  # at once, on the same port
    assert get(port, "/list_products/1").body == left(1, 1)
    assert get(port, "/list_products").body == ALL
