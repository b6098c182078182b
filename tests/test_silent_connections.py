"""A Redis that falls silent, or was so from the start, as when a cable is cut."""

import socket
import sys
import time
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import redis
from conftest import (
    CONNECTED,
    ROOT,
    Script,
    ends_not_connected,
    port_of,
    wait_until,
)
from rq import Queue
from test_every_script import ENDING, SYNC_AND_ASYNC

LIMIT = 15  # seconds in which a script goes on by itself, or ends
# What runs for long, each on a database of its own: no processor takes a creator's jobs.
DATABASES = {
    "5_subscriber.py": 0,
    "6_job_processor.py": 1,
    "7_job_processor.py": 2,
    "6_job_creator.py": 3,
    "7_job_creator.py": 4,
    "9_stock.py": 5,
}


def seconds_until(end):
    return max(0, end - time.monotonic())


@pytest.fixture
def scripts(start, redis_server, proxy):
    """All that run for long, on connections that have just fallen silent."""
    scripts = {
        name: start(name, f"{proxy.url}/{number}", PORT="0")
        for name, number in DATABASES.items()
    }
    scripts["5_subscriber.py"].wait_for(CONNECTED)
    scripts["6_job_creator.py"].wait_for("created")
    scripts["7_job_creator.py"].wait_for("created", 11)
    scripts["9_stock.py"].wait_for("available")

    def waits(count):
        return redis_server.client.info("clients")["blocked_clients"] == count

    wait_until(lambda: waits(5))  # two creators, three workers
    proxy.fall_silent()
    # What arrives before goes to a wait in which Redis still believes.
    wait_until(lambda: waits(0))
    return scripts


@pytest.fixture(scope="module", autouse=True)
def starting():
    """Scripts that start on a Redis that never answers, and when they must have ended.

    They wait while the test before theirs runs.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"//127.0.0.1:{silent.getsockname()[1]}"
        commands = [(name, f"redis:{address}") for name in ENDING]
        commands += [(name, f"rediss:{address}") for name in SYNC_AND_ASYNC]
        scripts = [
            Script(sys.executable, str(ROOT / name), REDIS_URL=url, PORT="0")
            for name, url in commands
        ]
        yield scripts, time.monotonic() + LIMIT
        for script in scripts:
            script.kill()


def test_every_script_goes_on_when_its_connection_falls_silent(scripts, redis_server):
    end = time.monotonic() + LIMIT

    def in_time(condition, script):
        wait_until(condition, seconds_until(end), script)

    connections = [
        redis.Redis(port=redis_server.port, db=number) for number in range(6)
    ]
    jobs = [
        Queue(name, connection=connections[number]).enqueue("time.time")
        for name, number in [
            ("push_notification_code", 1),
            ("push_notification_code_2", 2),
        ]
    ]
    for number in 3, 4:
        for key in connections[number].keys("rq:job:*"):
            connections[number].delete(key)
    url = f"http://127.0.0.1:{port_of(scripts['9_stock.py'])}/list_products/1"
    with suppress(HTTPError):  # 503, while the silent connection is not given up
        urlopen(url, timeout=LIMIT)
    with urlopen(url, timeout=LIMIT) as answer:
        assert answer.status == 200
    in_time(lambda: all(job.is_finished for job in jobs), scripts["6_job_processor.py"])
    for name in "6_job_creator.py", "7_job_creator.py":
        script = scripts[name]
        in_time(lambda script=script: script.process.poll() == 0, script)
        assert "failed" in script.lines[-1]
    script = scripts["5_subscriber.py"]
    in_time(lambda: script.lines.count(CONNECTED) == 2, script)
    redis_server.client.publish("holberton school channel", "KILL_SERVER")
    assert script.end() == 0
    assert all(each.errors == [] for name, each in scripts.items() if name[0] != "9")


def test_a_redis_that_does_not_answer_is_not_waited_for(starting):
    scripts, end = starting
    for script in scripts:
        ends_not_connected(script, seconds_until(end))
