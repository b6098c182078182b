"""The rules that hold for every script: importing, no Redis, Ctrl-C, pipes."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, free_port, wait_until

NOT_CONNECTED = "Redis client not connected to the server: "
SCRIPTS = sorted(path.name for path in ROOT.glob("[0-9]_*.py"))
# The subscriber waits for a Redis that is away, the others end.
ENDING = [name for name in SCRIPTS if name != "5_subscriber.py"]


def start_all(start, names, url):
    return [start(name, url, PORT="0") for name in names]


def assert_each_says_in_one_line_that_it_is_not_connected(scripts):
    for script in scripts:
        assert script.end() == 1
        assert len(script.lines) == 1
        assert script.lines[0].startswith(NOT_CONNECTED)
        assert script.errors == []


def test_importing_does_nothing_even_without_a_usable_redis():
    code = f"""
import importlib, signal, threading
handler = signal.getsignal(signal.SIGINT)
for name in {[name.removesuffix(".py") for name in SCRIPTS]}:
    importlib.import_module(name)
assert threading.active_count() == 1
assert signal.getsignal(signal.SIGINT) is handler
"""
    env = {**os.environ, "REDIS_URL": "no URL", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=env, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:{port}",
        "127.0.0.1:{port}",
        "redis://127.0.0.1:port",
        "redis://127.0.0.1:{port}?no_such_option=1",
        "rediss://127.0.0.1:{port}",
    ],
)
def test_without_redis_there_is_one_line_and_status_1(start, url):
    scripts = start_all(start, ENDING, url.format(port=free_port()))
    assert_each_says_in_one_line_that_it_is_not_connected(scripts)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_redis_that_does_not_answer_is_not_waited_for(start, scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        assert_each_says_in_one_line_that_it_is_not_connected(
            start_all(start, ENDING, url)
        )


def test_a_malformed_url_ends_the_subscriber_too(start):
    scripts = start_all(start, ["5_subscriber.py"], "127.0.0.1:6379")
    assert_each_says_in_one_line_that_it_is_not_connected(scripts)


@pytest.mark.parametrize("user", ["", ":wrong@", "nobody:secret@"])
def test_a_refused_password_ends_every_script(start, start_redis, user):
    server = start_redis("--requirepass", "secret")
    url = server.url.replace("//", f"//{user}")
    assert_each_says_in_one_line_that_it_is_not_connected(
        start_all(start, SCRIPTS, url)
    )


def test_a_password_in_the_url_is_used(start, start_redis):
    server = start_redis("--requirepass", "secret")
    script = start("0_redis_client.py", server.url.replace("//", "//:secret@"))
    assert script.end() == 0


# What runs until it is stopped, and what tells that it is at work.
AT_WORK = {
    "5_subscriber.py": "connected",
    "6_job_creator.py": "created: ",
    "6_job_processor.py": None,
    "7_job_creator.py": "created: 11",
    "7_job_processor.py": None,
    "8_job.py": "created: ",
    "9_stock.py": "available",
}


def start_and_wait(start, server, name):
    """Start a script, and wait until it is at work."""
    script = start(name, server.url, PORT="0")
    if AT_WORK[name]:
        script.wait_for(AT_WORK[name])
    else:
        workers = 2 if name == "7_job_processor.py" else 1
        wait_until(lambda: len(idle_workers(server)) == workers)
    return script


def idle_workers(server):
    client = server.client
    return [
        k for k in client.smembers("rq:workers") if client.hget(k, "state") == "idle"
    ]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("redis_is_away", [False, True])
@pytest.mark.parametrize("name", AT_WORK)
def test_a_stop_at_rest_is_prompt_and_quiet(
    start, redis_server, name, signum, redis_is_away
):
    script = start_and_wait(start, redis_server, name)
    if redis_is_away:
        redis_server.stop()
    script.stop(signum)
    script.end(timeout=5)
    assert script.processes() == []
    assert "Traceback" not in "\n".join(script.errors)
    if not redis_is_away:
        assert script.errors == []
