"""What the tests of the scripts share: processes, and Redis servers of their own."""

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import fakeredis
import pytest
import redis
import redis.asyncio

ROOT = Path(__file__).parent.parent
# So that importlib finds the scripts, whatever pytest is asked to run.
sys.path.insert(0, str(ROOT))

CONNECTED = "Redis client connected to the server"
NOT_CONNECTED = "Redis client not connected to the server: "

interrupted = threading.Event()  # set, it lets all that waits in threads give up


SCENARIOS_AT_A_TIME = 5


def is_scenario(item: pytest.Item) -> bool:
    """Tell whether a test looks at what became of a scenario: see `scenarios.py`."""
    return "outcomes" in item.fixturenames


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the scenarios come last."""
    items.sort(key=is_scenario)


@pytest.fixture(scope="session")
def outcomes(request, tmp_path_factory) -> Iterator[dict[Callable, Future]]:
    """What becomes of the scenarios that are chosen, by `-k` for example."""
    tests = [item for item in request.session.items if is_scenario(item)]
    pool = ThreadPoolExecutor(SCENARIOS_AT_A_TIME)
    yield {
        scenario: pool.submit(scenario.play, tmp_path_factory.mktemp("redis"))
        for scenario in [test.callspec.params["scenario"] for test in tests]
    }
    interrupted.set()  # after Ctrl-C, or the first failure with -x
    pool.shutdown(cancel_futures=True)
    interrupted.clear()


def wait_until(
    condition: Callable[[], object], timeout: float = 10, state: object = ""
) -> object:
    """Return the first true value of `condition()`; fail after `timeout` seconds.

    The failure shows `state`.
    """
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout} s; {state}")
        if interrupted.wait(0.01):
            pytest.fail("interrupted")
    return value


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def live_processes() -> Iterator[int]:
    """Yield the ids of all processes but the zombies."""
    if Path("/proc/self").exists():  # a bare Linux has no ps
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                if not stat.read_text().rpartition(") ")[2].startswith("Z"):
                    yield int(stat.parent.name)
    else:
        listing = subprocess.check_output(["ps", "-A", "-o", "pid=,stat="], text=True)
        for line in listing.splitlines():
            pid, state = line.split()
            if not state.startswith("Z"):
                yield int(pid)


def processes_of_session(session: int) -> list[int]:
    """Return the ids of the live processes of a session, work horses included."""
    pids = []
    for pid in live_processes():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == session:
                pids.append(pid)
    return pids


class Script:
    """A command in a process and session of its own, and the lines that it prints.

    As a context manager, it is killed at last.
    """

    def __init__(self, *command: str, cwd: Path | str | None = None, **env: str):
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # its group is what a terminal's Ctrl-C reaches
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        streams = (self.process.stdout, self.lines), (self.process.stderr, self.errors)
        self._readers = [
            threading.Thread(target=self._read, args=args, daemon=True)
            for args in streams
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.kill()

    def __repr__(self) -> str:
        return f"{self.process.args} printed {self.lines}, on stderr {self.errors}"

    @staticmethod
    def _read(stream, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.removesuffix("\n"))

    def wait_for(self, text: str, count: int = 1, timeout: float = 10) -> None:
        """Wait until `count` lines that contain `text` are printed."""

        def printed() -> bool:
            return sum(text in line for line in self.lines) >= count

        wait_until(printed, timeout, self)

    def end(self, timeout: float = 10) -> int:
        """Wait until the script ends by itself, and return its exit status."""
        wait_until(lambda: self.process.poll() is not None, timeout, self)
        for reader in self._readers:
            reader.join(timeout)
        return self.process.returncode

    def stop(self, signum: int) -> None:
        """Send a signal: Ctrl-C to the whole foreground group, as a terminal does."""
        send = os.killpg if signum == signal.SIGINT else os.kill
        send(self.process.pid, signum)

    def processes(self) -> list[int]:
        """Return the ids of the script's processes that live."""
        return processes_of_session(self.process.pid)

    def kill(self) -> None:
        """End every process of the script, at once."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def run_code(code: str, url: str, *arguments: str) -> Script:
    """Run code of a test in a process of its own, where it finds the scripts."""
    command = sys.executable, "-c", code, *arguments
    return Script(*command, REDIS_URL=url, PYTHONPATH=str(ROOT))


@contextmanager
def starting_scripts() -> Iterator[Callable[..., Script]]:
    """Give a function that starts scripts, and end them all."""
    scripts = []

    def start(name: str, url: str, **options) -> Script:
        script = Script(sys.executable, str(ROOT / name), REDIS_URL=url, **options)
        script.name = name
        scripts.append(script)
        return script

    try:
        yield start
    finally:
        for script in scripts:
            script.kill()


@pytest.fixture
def start() -> Iterator[Callable[..., Script]]:
    """A function that starts a script, `start("9_stock.py", redis_url, PORT="8000")`."""
    with starting_scripts() as start:
        yield start


def ends_not_connected(script: Script, timeout: float = 8) -> str:
    """Make sure that a script says in one line, and with status 1, that Redis is away.

    Returns the reason that it gives. `timeout` is for the start and the one attempt.
    """
    assert script.end(timeout) == 1
    assert script.errors == []
    [line] = script.lines
    assert line.startswith(NOT_CONNECTED)
    return line.removeprefix(NOT_CONNECTED)


def require_redis_server() -> None:
    """Skip the test where no redis-server is installed, but fail it in CI."""
    if not shutil.which("redis-server"):
        if "CI" in os.environ:
            pytest.fail("CI must test on a real redis-server, and none is installed")
        pytest.skip("no redis-server is installed")


class RedisServer:
    """A private redis-server that keeps its data in `folder`."""

    def __init__(self, folder: Path, *options: str, port: int | None = None):
        self.folder = folder
        self.options = options
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port, protocol=2, decode_responses=True)
        self.rq_connection = redis.Redis(port=self.port, protocol=2)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                # Before version 7, options alone would turn snapshots off.
                *("--dir", str(self.folder), "--save", "60", "1", *self.options),
            ],
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for the tests, which end it in order
        )
        try:
            wait_until(self._answers)
        except BaseException:
            self.process.kill()
            raise

    def _answers(self) -> bool:
        try:
            return redis.Redis.from_url(self.url, protocol=2).ping()
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def require(self, *version: int) -> None:
        """Skip the test on an older Redis than this."""
        said = subprocess.check_output(["redis-server", "--version"], text=True)
        numbers = said.partition("v=")[2].split()[0].split(".")
        if tuple(map(int, numbers)) < version:
            pytest.skip(f"needs a newer Redis than {'.'.join(numbers)}")

    def url_of_user(self, *rights: str) -> str:
        """Return the URL for a user of Redis who has these rights."""
        self.require(6, 2)
        options = {"nopass": True, "keys": ["*"], "channels": ["*"]}
        self.client.acl_setuser("user", enabled=True, commands=rights, **options)
        return self.url.replace("//", "//user:any@")

    def blocked_clients(self) -> int:
        """Return how many clients wait for a job or an event."""
        return self.client.info("clients")["blocked_clients"]

    def stop(self) -> None:
        """Stop as a service manager does; the data is saved."""
        self.process.terminate()
        self.process.wait(10)


@contextmanager
def starting_redis(folder: Path) -> Iterator[Callable[..., RedisServer]]:
    """Give a function that starts private redis-servers, and end them all."""
    servers = []

    def start_redis(*options: str, port: int | None = None) -> RedisServer:
        require_redis_server()
        servers.append(RedisServer(folder, *options, port=port))
        return servers[-1]

    try:
        yield start_redis
    finally:
        for server in servers:
            server.process.kill()  # its data is not needed; a clean end takes longer
            server.process.wait()


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """A function that starts a private redis-server, `start_redis(*options, port=N)`."""
    with starting_redis(tmp_path) as start_redis:
        yield start_redis


@pytest.fixture
def redis_server(start_redis) -> RedisServer:
    """A private redis-server, empty."""
    return start_redis()


@pytest.fixture
def fake_redis(monkeypatch) -> Iterator[fakeredis.FakeRedis]:
    """A fakeredis, which all clients of the scripts in this process reach too."""
    server = fakeredis.FakeServer()
    for client_class, fake_class in [
        (redis.Redis, fakeredis.FakeRedis),
        (redis.asyncio.Redis, fakeredis.FakeAsyncRedis),
    ]:

        def from_url(url: str, fake_class=fake_class, **options):
            return fake_class(server=server, **options)

        monkeypatch.setattr(client_class, "from_url", from_url)
    yield fakeredis.FakeRedis(server=server)


@pytest.fixture
def run(fake_redis, capsys) -> Iterator[Callable[[str], list[str]]]:
    """A function that runs a script in this process, and returns the lines it prints."""
    handler = signal.getsignal(signal.SIGINT)

    def run(name: str) -> list[str]:
        runpy.run_path(str(ROOT / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    yield run
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory) -> Iterator[RedisServer]:
    """A Redis for all tests of a file: they leave it as it was, or empty it first."""
    with starting_redis(tmp_path_factory.mktemp("redis")) as start_redis:
        yield start_redis()


def port_of(script: Script) -> int:
    """Wait until the service listens, and return its port."""
    script.wait_for("API available on localhost port ")
    return int(script.lines[0].split()[-1])


def start_service(start, url: str, port: int = 0, **options) -> tuple[Script, int]:
    """Start the service on a free port; return script and port."""
    script = start("9_stock.py", url, PORT=str(port), **options)
    return script, port_of(script)


@pytest.fixture
def serve(start) -> Callable[..., tuple[Script, int]]:
    """The function above, for an ordinary test: `serve(url)`."""
    return partial(start_service, start)
