"""The rules that hold for every script: its length, importing, passwords, stops."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, ends_not_connected, free_port
from scripts import AT_WORK, SCRIPTS, SYNC_AND_ASYNC, start_until_at_work
from stock_service import confirmed, get

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
        (":wrong@", [*SYNC_AND_ASYNC, "9_stock.py"], "password"),
        ("nobody:secret@", SYNC_AND_ASYNC, "password"),
    ],
)
def test_a_refused_password_ends_every_script(start, start_redis, user, names, reason):
    server = start_redis("--requirepass", "secret")
    url = server.url.replace("//", f"//{user}")
    for script in [start(name, url, PORT="0") for name in names]:
        assert reason in ends_not_connected(script)


def test_a_password_in_the_url_is_used(start, serve, start_redis):
    server = start_redis("--requirepass", "secret")
    url = server.url.replace("//", "//:secret@")
    scripts = [start(name, url) for name in SYNC_AND_ASYNC]
    _, port = serve(url)
    assert get(port, "/reserve_product/1").body == confirmed(1)
    assert [script.end() for script in scripts] == [0, 0]


def test_a_stop_at_rest_is_prompt_and_quiet(start, redis_server):
    scripts = start_until_at_work(start, redis_server.url, [*AT_WORK] * 2)
    signums = [signal.SIGINT] * len(AT_WORK) + [signal.SIGTERM] * len(AT_WORK)
    for script, signum in zip(scripts, signums):
        script.stop(signum)
    for script in scripts:
        script.end(timeout=5)
        assert script.processes() == []
        assert script.errors == []
