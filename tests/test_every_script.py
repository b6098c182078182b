"""The rules that hold for every script: its order, importing, passwords, output, stops."""

import importlib
import os
import re
import signal
import subprocess
import sys

import pytest
import redis.asyncio
import scenarios
from conftest import (
    CONNECTED,
    NOT_CONNECTED,
    ROOT,
    Script,
    ends_not_connected,
    free_port,
    wait_until,
)
from scripts import AT_WORK, SCRIPTS, SYNC_AND_ASYNC, start_until_at_work
from stock_service import confirmed, get

EXERCISE_END = "# The exercise ends here"
scenario = scenarios.Scenarios()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_exercise_comes_first_and_is_short(name):
    lines = (ROOT / name).read_text().splitlines()
    ends = [n for n, line in enumerate(lines, 1) if line.startswith(EXERCISE_END)]
    exercise = ends[0] if ends else len(lines)
    assert exercise <= (95 if name == "9_stock.py" else 60)


def test_a_module_has_the_same_name_everywhere():
    names = {}
    for script in [*SCRIPTS, "test_8_job.py"]:
        text = (ROOT / script).read_text()
        for name, module in re.findall(
            r'(\w+) = importlib.import_module\("(.+)"\)', text
        ):
            assert names.setdefault(module, name) == name
    assert len(names) == len(set(names.values())) > 4


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
        ("", SCRIPTS, "Authentication required"),
        (":wrong@", [*SYNC_AND_ASYNC, "9_stock.py"], "password"),
        ("nobody:secret@", SYNC_AND_ASYNC, "password"),
    ],
)
def test_a_refused_password_ends_every_script(start, start_redis, user, names, reason):
    server = start_redis("--requirepass", "secret")
    if user.startswith("nobody"):
        server.require(6)
    url = server.url.replace("//", f"//{user}")
    for script in [start(name, url, PORT="0") for name in names]:
        assert reason in ends_not_connected(script)


@scenario
def creators_say_so_when_redis_admits_them_no_more(start, start_redis):
    server = start_redis()
    server.require(6)  # before, it admits the client of the test no more, either
    creator_6 = start("6_job_creator.py", server.url)
    creator_7 = start("7_job_creator.py", server.url)
    creator_6.wait_for("created")
    creator_7.wait_for("created", 11)
    server.client.config_set("requirepass", "secret")
    server.client.client_kill_filter(_type="normal", skipme=True)
    assert creator_6.end() == 1
    assert creator_6.lines[1:] == [NOT_CONNECTED + "Authentication required."]
    # This one follows jobs for others, and goes on when it can.
    wait_until(lambda: creator_7.errors, state=creator_7)
    server.client.config_set("requirepass", "")
    server.client.flushall()
    assert creator_7.end() == 1
    assert len(creator_7.lines) == 11 + 11
    [error] = creator_7.errors
    assert "Authentication required" in error


def test_a_password_in_the_url_is_used(start, serve, start_redis):
    server = start_redis("--requirepass", "secret")
    url = server.url.replace("//", "//:secret@")
    scripts = [start(name, url) for name in SYNC_AND_ASYNC]
    _, port = serve(url)
    assert get(port, "/reserve_product/1").body == confirmed(1)
    assert [script.end() for script in scripts] == [0, 0]


@pytest.mark.parametrize(
    "url",
    [
        # A password whose "/", "?", "#" or "@" is not escaped, and one that is a number.
        "redis://:s3cret/x@127.0.0.1:{port}",
        "redis://:s3cret?x@127.0.0.1:{port}",
        "redis://user:s3cret#x@127.0.0.1:{port}",
        "redis://:{port}/s3cret@127.0.0.1",
        "redis://:s3cret@[127.0.0.1:{port}",
        "redis://:s3cret@127.0.0.1:{port}x",
        # The address of a Unix socket.
        "unix://:s3cret/x@/tmp/redis.sock",
        "unix://:x/s3cret@/tmp/redis.sock",
        "unix://s3cret/redis.sock",
        # Options.
        "redis://:s3cret@127.0.0.1:{port}?protocol=9",
        "redis://:s3cret@127.0.0.1:{port}?protocol=3",
        "redis://:s3cret@127.0.0.1:{port}?db=s3cret",
        "redis://:s3cret@127.0.0.1:{port}?s3cret=1",
        "redis://:s3cret@127.0.0.1:{port}?socket_timeout=-1",
        "redis://:s3cret@127.0.0.1:{port}?socket_timeout=inf",
        "redis://:s3cret@127.0.0.1:{port}?socket_connect_timeout=1e30",
        "redis://:s3cret@127.0.0.1:0",
        "redis://:s3cret@a..b:{port}",
        "redis://:s3cret\udcff@127.0.0.1:{port}",
        "redis://:s3cret@127.0.0.1:{port}?retry=s3cret",
        "redis://:s3cret@127.0.0.1:{port}?retry_on_timeout=yes",
        "redis://:s3cret@127.0.0.1:{port}/" + "9" * 5000,
        "redis://:s3cret@127.0.0.1:{port}?encoding=s3cret",
        "redis://:s3cret@127.0.0.1:{port}?retry_on_error=s3cret",
        "redis://:s3cret@127.0.0.1:{port}/s3cret",
        "redis://:s3cret@127.0.0.1:{port}/0#2",
        "rediss://:s3cret@127.0.0.1:{port}?ssl_min_version=7",
        "redis://:s3cret@127.0.0.1:{port}?encoding_errors=s3cret",
        "rediss://:s3cret@127.0.0.1:{port}?ssl_cert_reqs=s3cret",
        "s3cret",
        "",
    ],
)
def test_a_malformed_url_says_how_it_must_be_and_tells_no_password(
    url, monkeypatch, capsys
):
    redis_client = importlib.import_module("0_redis_client")
    monkeypatch.setenv("REDIS_URL", url.format(port=free_port()))
    for client_class in redis.Redis, redis.asyncio.Redis:
        with pytest.raises(SystemExit, match="^1$"):
            redis_client.create_client(client_class)
    output = capsys.readouterr()
    assert output.err == ""
    line, again = output.out.splitlines()
    assert line == again
    assert line.startswith(NOT_CONNECTED)
    reason = line.removeprefix(NOT_CONNECTED)
    assert "redis://USER:PASSWORD@HOST:PORT" in reason and "%2F" in reason
    assert "s3cret" not in reason


def test_every_script_ends_in_the_same_way_at_a_malformed_url(start):
    scripts = [start(name, "redis://:s3cret/x@localhost", PORT="0") for name in SCRIPTS]
    assert len({ends_not_connected(script) for script in scripts}) == 1


def test_an_escaped_password_is_used(start, start_redis):
    server = start_redis("--requirepass", "a/b?c#d@e%f")
    url = server.url.replace("//", "//:a%2Fb%3Fc%23d%40e%25f@")
    scripts = [start(name, url) for name in SYNC_AND_ASYNC]
    assert [script.end() for script in scripts] == [0, 0]


def piped_into_head(redis_url, name, **env):
    """Run a script with `| head -1`; return what head prints, and standard error."""
    command = f"{sys.executable} {ROOT / name} | head -1"
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "REDIS_URL": redis_url, **env},
        check=False,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "name", [n for n in SCRIPTS if n[0] in "1245" and "sub" not in n]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_any_more_is_no_error(redis_server, name, unbuffered):
    redis_server.client.set("Holberton", "School")
    output = piped_into_head(redis_server.url, name, PYTHONUNBUFFERED=unbuffered)
    assert output == (CONNECTED + "\n", "")
    if name == "5_publisher.py":
        statistics = redis_server.client.info("commandstats")
        assert statistics["cmdstat_publish"]["calls"] == 4


def test_jobs_whose_processor_and_creator_nobody_reads_run_to_their_end(redis_server):
    url = redis_server.url
    command = f"{sys.executable} {ROOT / '7_job_processor.py'} | true"
    with Script("sh", "-c", command, REDIS_URL=url) as processor:
        _, errors = piped_into_head(url, "7_job_creator.py")
        finished = redis_server.client.zcard("rq:finished:push_notification_code_2")
    assert errors == ""
    assert finished == 9
    assert processor.errors == []


@pytest.mark.parametrize(
    "name", ["0_redis_client.py", "1_redis_op.py", "5_publisher.py"]
)
def test_a_script_runs_without_a_standard_output(redis_server, name):
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} {ROOT / name} >&-"],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "REDIS_URL": redis_server.url},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["0_redis_client.py", "1_redis_op.py"])
def test_a_script_runs_where_the_output_is_no_file_and_leaves_signals_alone(
    redis_server, name
):
    code = f"""
import contextlib, io, runpy, signal, sys
class Cell:  # as in IDLE and Jupyter
    text = ""
    def write(self, text):
        Cell.text += text
    def flush(self):
        pass
handler = signal.getsignal(signal.SIGINT)
with contextlib.redirect_stdout(Cell()):
    runpy.run_path({str(ROOT / name)!r}, run_name="__main__")
assert signal.getsignal(signal.SIGINT) is handler
print(Cell.text, end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "REDIS_URL": redis_server.url, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(CONNECTED)


@scenario
def a_stop_at_rest_is_prompt_and_quiet(start, start_redis):
    scripts = start_until_at_work(start, start_redis().url, [*AT_WORK] * 2)
    signums = [signal.SIGINT] * len(AT_WORK) + [signal.SIGTERM] * len(AT_WORK)
    for script, signum in zip(scripts, signums):
        script.stop(signum)
    for script in scripts:
        script.end(timeout=5)
        assert script.processes() == []
        assert script.errors == []


@pytest.mark.parametrize("scenario", scenario.collected)
def test_that(scenario, outcomes):
    outcomes[scenario].result()
