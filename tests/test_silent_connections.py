"""Connections that fall silent without being closed, as when a cable is cut."""

import time
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from conftest import CONNECTED, wait_until
from rq import Queue

LIMIT = 15  # seconds in which a script goes on by itself


@pytest.fixture
def scripts(start, redis_server, proxy):
    """All that run for long, on connections that have just fallen silent."""
    numbers = {
        "5_subscriber.py": 0,
        "6_job_processor.py": 1,
        "7_job_processor.py": 2,
        "6_job_creator.py": 3,
        "7_job_creator.py": 4,
        "9_stock.py": 5,
    }
    # Each on a database of its own, so that no processor takes a creator's jobs.
    scripts = {
        name: start(name, f"{proxy.url}/{number}", PORT="0")
        for name, number in numbers.items()
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


def test_every_script_goes_on_within_15_seconds(scripts, redis_server):
    end = time.monotonic() + LIMIT

    def in_time(condition, script):
        wait_until(condition, end - time.monotonic(), script)

    connections = [
        type(redis_server.rq_connection)(port=redis_server.port, db=number)
        for number in range(6)
    ]
    jobs = [
        Queue("push_notification_code", connection=connections[1]).enqueue("time.time"),
        Queue("push_notification_code_2", connection=connections[2]).enqueue(
            "time.time"
        ),
    ]
    for number in 3, 4:
        for key in connections[number].keys("rq:job:*"):
            connections[number].delete(key)
    script = scripts["9_stock.py"]
    port = script.lines[0].split()[-1]
    url = f"http://127.0.0.1:{port}/list_products/1"
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
