"""A Redis that is away, or silent: every script goes on when it is back, or ends.

All of these mostly wait, so all are scenarios: `scenarios.py` tells how they are played.
"""

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import redis
import scenarios
from conftest import (
    CONNECTED,
    NOT_CONNECTED,
    ends_not_connected,
    free_port,
    port_of,
    wait_until,
)
from jobs import (
    QUEUES,
    let_jobs_in_hand_look_abandoned,
    queue_sleep,
    start_processor,
    start_processors,
    status,
    wait_for_status,
)
from rq import Queue
from scenarios import pause
from scripts import AT_WORK, ENDING, SYNC_AND_ASYNC, start_until_at_work

LIMIT = 15  # seconds in which a script goes on by itself
scenario = scenarios.Scenarios()


class Proxy:
    """Forwards connections to a Redis, is slow, falls silent, is away, or loses an answer."""

    def __init__(self, port: int):
        self.port = port
        self.delay = 0.0  # seconds by which each answer comes later
        self.silent: set[socket.socket] = set()
        self.away_from = b""  # the first command that is not forwarded, if any
        self.is_away = False
        self.unanswered = b""  # the next command whose answer is lost, if any
        self._open: list[socket.socket] = []
        self.own_port = self._listen(0)
        self.url = f"redis://127.0.0.1:{self.own_port}"

    def fall_silent(self) -> None:
        """Forward nothing more of the connections there are; later ones work."""
        self.silent.update(self._open)

    def come_back(self) -> None:
        self.away_from, self.is_away = b"", False
        self._listen(self.own_port)

    def close(self) -> None:
        with suppress(OSError):  # macOS refuses this, and needs only the close
            self.server.shutdown(socket.SHUT_RDWR)  # or the thread accepts for ever
        self.server.close()
        for connection in self._open:
            with suppress(OSError):  # its client has closed it
                connection.shutdown(socket.SHUT_RDWR)

    def _listen(self, port: int) -> int:
        self.server = server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=[server], daemon=True).start()
        return server.getsockname()[1]

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):  # the proxy is closed
            while True:
                client, _ = server.accept()
                redis_side = socket.create_connection(("127.0.0.1", self.port))
                self._open += client, redis_side
                for pair in (client, redis_side), (redis_side, client):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.away_from and self.away_from in data:
                    self.close()
                    self.is_away = True
                if self.delay and target.getsockname()[1] == self.own_port:
                    time.sleep(self.delay)
                if self.unanswered and self.unanswered in data:
                    self.unanswered = b""
                    self.silent.add(target)
                    target.sendall(data)
                    source.shutdown(socket.SHUT_RDWR)
                elif source not in self.silent:
                    target.sendall(data)
            if source not in self.silent:
                target.shutdown(socket.SHUT_WR)


# A Redis that falls silent, or was so from the start, as when a cable is cut.


@scenario
def every_script_goes_on_when_its_connection_falls_silent(start, start_redis):
    server = start_redis()
    with closing(Proxy(server.port)) as proxy:
        started = start_until_at_work(start, proxy.url, AT_WORK)
        scripts = {script.name: script for script in started}
        port = port_of(scripts["9_stock.py"])
        wait_until(
            lambda: server.blocked_clients() == 6
        )  # three creators, three workers
        proxy.fall_silent()
        # What arrives before goes to a wait in which Redis still believes.
        wait_until(lambda: server.blocked_clients() == 0)
        all_go_on(scripts, server, port, time.monotonic() + LIMIT)


def all_go_on(scripts, server, port, end):
    def in_time(condition, script):
        wait_until(condition, end - time.monotonic(), script)

    connections = {
        name: redis.Redis(port=server.port, db=number, protocol=2)
        for number, name in enumerate(AT_WORK)
    }
    jobs = [
        Queue(queue, connection=connections[name]).enqueue("time.time")
        for name, queue in QUEUES.items()
    ]
    creators = "6_job_creator.py", "7_job_creator.py", "8_job.py"
    for name in creators:
        connections[name].delete(*connections[name].keys("rq:job:*"))
    url = f"http://127.0.0.1:{port}/list_products/1"
    with suppress(HTTPError):  # 503, while the silent connection is not given up
        urlopen(url, timeout=LIMIT)
    with urlopen(url, timeout=LIMIT) as answer:
        assert answer.status == 200
    in_time(lambda: all(job.is_finished for job in jobs), scripts["6_job_processor.py"])
    for name in creators:
        script = scripts[name]
        in_time(lambda script=script: script.process.poll() == 0, script)
        script.end()
        assert "failed" in script.lines[-1]
    script = scripts["5_subscriber.py"]
    in_time(lambda: script.lines.count(CONNECTED) == 2, script)
    server.client.publish("holberton school channel", "KILL_SERVER")
    assert script.end() == 0
    assert all(each.errors == [] for name, each in scripts.items() if name[0] != "9")


@scenario
def a_redis_that_does_not_answer_is_not_waited_for(start, start_redis):
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as connections:
        address = f"//127.0.0.1:{silent.getsockname()[1]}"
        scripts = [start(name, f"redis:{address}", PORT="0") for name in ENDING]
        scripts += [start(name, f"rediss:{address}") for name in SYNC_AND_ASYNC]
        silent.settimeout(LIMIT)
        for _ in scripts:
            connections.enter_context(silent.accept()[0])
        end = time.monotonic() + 8  # redis-py waits for 5 s, RQ would for 11 s
        for script in scripts:
            ends_not_connected(script, end - time.monotonic())


# The subscriber.


@scenario
def subscriber_keeps_trying_until_redis_is_there(start, start_redis):
    port = free_port()
    subscriber = start("5_subscriber.py", f"redis://127.0.0.1:{port}")
    subscriber.wait_for(NOT_CONNECTED, 2)
    server = start_redis(port=port)
    subscriber.wait_for(CONNECTED)
    server.client.publish("holberton school channel", "KILL_SERVER")
    assert subscriber.end() == 0
    assert subscriber.lines[-2:] == [CONNECTED, "KILL_SERVER"]
    assert {line.startswith(NOT_CONNECTED) for line in subscriber.lines[:-2]} == {True}


@scenario
def subscriber_outlives_a_redis_restart(start, start_redis):
    server = start_redis()
    subscriber = start("5_subscriber.py", server.url)
    subscriber.wait_for(CONNECTED)
    server.stop()
    subscriber.wait_for(NOT_CONNECTED, 2)
    server.start()
    subscriber.wait_for(CONNECTED, 2)
    server.client.publish("holberton school channel", "KILL_SERVER")
    assert subscriber.end() == 0
    assert subscriber.errors == []


@scenario
def subscriber_lost_by_redis_reconnects(start, start_redis):
    server = start_redis()
    subscriber = start("5_subscriber.py", server.url)
    subscriber.wait_for(CONNECTED)
    server.client.client_kill_filter(_type="pubsub")
    subscriber.wait_for(CONNECTED, 2)
    server.client.publish("holberton school channel", "KILL_SERVER")
    assert subscriber.end() == 0


# The workers of the processors.


@scenario
def a_processor_outlives_an_absence_of_redis(start, start_redis):
    server = start_redis()
    processors = start_processors(start, server, *QUEUES)
    jobs = queue_sleep(server, 0.5)
    wait_for_status(server, jobs, "started")
    server.stop()
    pause(1)  # the jobs end meanwhile, and their work horses wait to tell
    server.start()
    wait_for_status(server, jobs, "finished")
    wait_for_status(server, queue_sleep(server, 0), "finished")
    assert [processor.errors for processor in processors] == [[], []]


@scenario
def a_job_just_taken_when_redis_goes_away_is_run_when_it_is_back(start, start_redis):
    server = start_redis()
    server.require(6, 2)  # before, RQ has no intermediate queue
    with ExitStack() as stack:
        proxies = [stack.enter_context(closing(Proxy(server.port))) for _ in QUEUES]
        processors = []
        for name, proxy in zip(QUEUES, proxies):
            processors += start_processors(start, server, name, url=proxy.url)
            proxy.away_from = b"HGETALL"  # by which a worker reads the job it has taken
        jobs = queue_sleep(server, 0)
        wait_until(lambda: all(proxy.is_away for proxy in proxies))
        for queue in QUEUES.values():
            assert server.client.llen(f"rq:queue:{queue}:intermediate") == 1
        for proxy in proxies:
            proxy.come_back()
        wait_for_status(server, jobs, "finished")
        assert [processor.errors for processor in processors] == [[], []]


@scenario
def a_delayed_job_runs_once_though_the_answer_that_it_is_queued_gets_lost(
    start, start_redis
):
    server = start_redis()
    with closing(Proxy(server.port)) as proxy:
        name = "6_job_processor.py"
        [processor] = start_processors(start, server, name, url=proxy.url)
        proxy.unanswered = b"ZREM"  # in the transaction, off the list of delayed jobs
        queue = Queue(QUEUES[name], connection=server.rq_connection)
        send = "6_job_processor.send_notification"
        job = queue.enqueue_in(timedelta(seconds=1), send, "1", "hello")
        wait_for_status(server, [job], "finished")
        assert proxy.unanswered == b""
        pause(1)
        assert len(processor.lines) == 1
        assert processor.errors == []


@scenario
def a_job_that_comes_just_after_a_signal_is_run_though_redis_is_slow(
    start, start_redis
):
    server = start_redis()
    name = "6_job_processor.py"
    with closing(Proxy(server.port)) as proxy:
        [processor] = start_processors(start, server, name, url=proxy.url)
        proxy.delay = 0.25
        wait_until(lambda: server.blocked_clients() == 0)
        wait_until(lambda: server.blocked_clients() == 1)  # it begins to wait for a job
        processor.stop(signal.SIGTERM)
        [job] = queue_sleep(server, 0, QUEUES[name])
        assert processor.end() == 0
    assert status(server, job) == "finished"


@scenario
def a_processor_stopped_while_redis_is_away_keeps_the_job_until_it_is_back(
    start, start_redis
):
    server = start_redis()
    processor = start_processor(start, server, "6_job_processor.py")
    jobs = queue_sleep(server, 0.3, QUEUES["6_job_processor.py"])
    wait_for_status(server, jobs, "started")
    server.stop()
    processor.stop(signal.SIGTERM)
    pause(1)  # the work horse is done by now, and can't tell
    assert processor.process.poll() is None
    server.start()
    assert processor.end() == 0
    assert status(server, jobs[0]) == "finished"
    assert processor.processes() == []


@scenario
def a_processor_whose_workers_are_killed_while_redis_is_away_goes_on(
    start, start_redis
):
    server = start_redis()
    processor = start_processor(start, server, "7_job_processor.py")
    server.stop()
    replace_workers(processor)
    server.start()
    wait_until(lambda: server.client.scard("rq:workers") >= 2, state=processor)
    wait_for_status(server, queue_sleep(server, 0, QUEUES[processor.name]), "finished")
    assert (processor.lines, processor.errors) == ([], [])


@scenario
def a_processor_whose_workers_are_killed_while_redis_is_away_can_be_stopped(
    start, start_redis
):
    server = start_redis()
    processor = start_processor(start, server, "7_job_processor.py")
    server.stop()
    replace_workers(processor)
    processor.stop(signal.SIGTERM)
    assert processor.end(timeout=3) == 0
    assert processor.processes() == []


def replace_workers(processor):
    """Kill the workers of a processor, and wait until it has started others."""
    killed = set(processor.processes()) - {processor.process.pid}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(processor.processes()) - killed) == 3, state=processor)


@scenario
def a_worker_that_has_just_started_fails_no_job_in_hand(start, start_redis):
    server = start_redis()
    # A job in hand, whose worker has given no sign of life for over a minute.
    processor = start_processor(start, server, "6_job_processor.py")
    queue_name = QUEUES["6_job_processor.py"]
    jobs = queue_sleep(server, 4, queue_name)
    wait_for_status(server, jobs, "started")
    assert let_jobs_in_hand_look_abandoned(server, queue_name) == 1
    # Redis may just have come back: others must have the time to say that they are there.
    other = start_processor(start, server, "6_job_processor.py")
    assert status(server, jobs[0]) == "started"  # it has come in time to fail it
    wait_for_status(server, jobs, "finished")
    assert processor.errors == other.errors == []


# Every script.


@scenario
def without_redis_there_is_one_line_and_status_1(start, start_redis):
    address = f"127.0.0.1:{free_port()}"
    for url, names in [
        (f"redis://{address}", ENDING),
        (f"rediss://{address}", SYNC_AND_ASYNC),
    ]:
        for script in [start(name, url, PORT="0") for name in names]:
            assert "connecting to 127.0.0.1" in ends_not_connected(script)


@scenario
def ctrl_c_ends_every_script_that_works_or_waits(start, start_redis):
    server = start_redis()
    scripts = start_until_at_work(start, server.url, AT_WORK)
    server.stop()
    for script in scripts:
        script.stop(signal.SIGINT)
    for script in scripts:
        script.end(timeout=5)
        assert script.processes() == []
        assert "Traceback" not in "\n".join(script.errors)


@pytest.mark.parametrize("scenario", scenario.collected)
def test_that(scenario, outcomes):
    outcomes[scenario].result()
