"""The rules that hold for every script: its length, importing, passwords, stops."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import redis
from conftest import ROOT, ends_not_connected, free_port, wait_until

SCRIPTS = sorted(path.name for path in ROOT.glob("[0-9]_*.py"))
# The subscriber waits for a Redis that is away, the others end.
ENDING = [name for name in SCRIPTS if name != "5_subscriber.py"]
# Those that reach Redis in two ways; the others do it as the first.
SYNC_AND_ASYNC = ["0_redis_client.py", "2_redis_op_async.py"]
EXERCISE_END = "# The exercise ends here"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_exercise_comes_first_and_is_short(name):
    lines = (ROOT / name).read_text().splitlines()
    is_stock = name == "9_stock.py"
    assert len(lines) <= (175 if is_stock else 115)
    ends = [n for n, line in enumerate(lines, 1) if line.startswith(EXERCISE_END)]
    assert not ends or ends[0] <= (92 if is_stock else 60)


def test_importing_does_nothing_and_needs_no_redis():
    code = f"""
import importlib, signal, threading
handler = signal.getsignal(signal.SIGINT)
for name in {[name.removesuffix(".py") for name in SCRIPTS]}:
    importlib.import_module(name)
assert threading.active_count() == 1
assert signal.getsignal(signal.SIGINT) is handler
"""
    url = f"redis://127.0.0.1:{free_port()}"
    env = {**os.environ, "REDIS_URL": url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=env, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("user", "names", "reason"),
    [
        ("", SCRIPTS, "authenticate"),
        (":wrong@", SYNC_AND_ASYNC, "password"),
        ("nobody:secret@", SYNC_AND_ASYNC, "password"),
    ],
)
def test_a_refused_password_ends_every_script(start, start_redis, user, names, reason):
    server = start_redis("--requirepass", "secret")
    url = server.url.replace("//", f"//{user}")
    for script in [start(name, url, PORT="0") for name in names]:
        assert reason in ends_not_connected(script, timeout=8)  # all start at once


def test_a_password_in_the_url_is_used(start, serve, start_redis):
    server = start_redis("--requirepass", "secret")
    url = server.url.replace("//", "//:secret@")
    scripts = [start(name, url) for name in SYNC_AND_ASYNC]
    serve(url)
    assert [script.end() for script in scripts] == [0, 0]


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


def is_at_work(script, url):
    """Tell whether a script has got so far that it works or waits."""
    if text := AT_WORK[script.name]:
        return any(text in line for line in script.lines)
    client = redis.Redis.from_url(url, decode_responses=True)
    states = [client.hget(key, "state") for key in client.smembers("rq:workers")]
    return states == ["idle"] * (2 if script.name == "7_job_processor.py" else 1)


def start_all_until_at_work(start, server, cases):
    """Start the scripts, each on a database of its own: no processor takes their jobs."""
    urls = [f"{server.url}/{number}" for number in range(len(cases))]
    scripts = [start(name, url, PORT="0") for name, url in zip(cases, urls)]
    for script, url in zip(scripts, urls):
        wait_until(partial(is_at_work, script, url), state=script)
    return scripts


def test_a_stop_at_rest_is_prompt_and_quiet(start, redis_server):
    scripts = start_all_until_at_work(start, redis_server, [*AT_WORK] * 2)
    signums = [signal.SIGINT] * len(AT_WORK) + [signal.SIGTERM] * len(AT_WORK)
    for script, signum in zip(scripts, signums):
        script.stop(signum)
    for script in scripts:
        script.end(timeout=5)
        assert script.processes() == []
        assert script.errors == []
