"""Measure the scripts against the bare packages, and print a Markdown table.

`python tests/benchmark.py` takes under three minutes, on a redis-server of its own. Each
figure is the median of several rounds, taken in turn with those of its yardstick, so
that whatever else the machine does hits both. The ratio is the median of the rounds'
ratios, figure by yardstick: high is good for a rate, low is good for a time.
"""

import http.client
import importlib.util
import os
import platform
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from operator import truediv
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE, Popen

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # leaves nothing in the project's folder

from rq import Callback, Queue, Worker, get_current_job
from rq.job import Job

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
redis_client = importlib.import_module("0_redis_client")
job_creator = importlib.import_module("7_job_creator")
processor = importlib.import_module("7_job_processor")
job_script = importlib.import_module("8_job")
stock = importlib.import_module("9_stock")

STARTED = time.monotonic()
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
CHANNEL = "benchmark"
BODY = b'{"itemId":1,"itemName":"Suitcase 250","price":50,"initialAvailableQuantity":4}'

Rounds = tuple[float, ...]  # the figures of a measure
Row = tuple[str, str, str, str]  # what, figure, yardstick's figure, ratio

# What the processes started further down import from this file.


def do_nothing(phone_number: str, message: str) -> None:
    """A job for the yardstick of task 9."""


def progress_times() -> list[float]:
    """A job that reports progress a hundred times; returns when it did."""
    return _times(lambda percent: processor.report_progress(percent, 100))


def publish_times() -> list[float]:
    """The same with a bare publish in place of the progress."""
    connection = get_current_job().connection
    return _times(lambda percent: connection.publish(CHANNEL, percent))


def _times(tell: Callable[[int], object]) -> list[float]:
    times = []
    for percent in range(100):
        time.sleep(0.01)
        times.append(time.monotonic())
        tell(percent)
    return times


def one_get_app(environ: dict, start_response: Callable) -> list[bytes]:
    """A WSGI app that does one GET with the client of 9_stock.py."""
    stock.client().get("item.1")
    headers = [("Content-Type", stock.JSON), ("Content-Length", str(len(BODY)))]
    start_response("200 OK", headers)
    return [BODY]


def print_peak_memory(count: int) -> None:
    """Queue jobs, follow them to their end, and print the peak memory of that."""
    with silence():
        queue = new_queue()
        job_script.create_push_notifications_jobs(some_jobs(count), queue)
        end_jobs(queue.job_ids, queue)
        job_script.wait_for_jobs()
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


# What the measurements share.


def in_turn(what: str, seconds: float, *measures: Callable[[], float]) -> list[Rounds]:
    """Return the figures of each of the measures, taken in turn: A B A B.

    There are as many rounds as fit in so many seconds, but at least three.
    """
    rounds, start, now = [], time.monotonic(), time.monotonic()
    while len(rounds) < 3 or (now - start) / len(rounds) < start + seconds - now:
        line = f"{now - STARTED:4.0f} s  {what}, round {len(rounds) + 1}"
        print(f"\r{line:79.79}", end="", file=sys.stderr, flush=True)
        rounds.append([measure() for measure in measures])
        now = time.monotonic()
    return [*zip(*rounds)]


def row(what: str, unit: str, ours: Rounds, yardstick: Rounds) -> Row:
    """Return a line of the table."""
    digits = 2 if median(ours) < 10 else 0
    figures = [f"{median(each):,.{digits}f} {unit}" for each in (ours, yardstick)]
    return what, *figures, f"{median(map(truediv, ours, yardstick)):.2f}"


def rate(count: int, action: Callable[..., object], *args: object) -> float:
    """Return how many of `count` things the action does in a second."""
    start = time.perf_counter()
    action(*args)
    return count / (time.perf_counter() - start)


@contextmanager
def running(*command: str, stdout: int = DEVNULL) -> Iterator[Popen]:
    """Run a command in the project's folder until the block ends."""
    # In a session of its own: Ctrl-C reaches this process only, which ends that one.
    options = {"stdin": DEVNULL, "stderr": DEVNULL, "start_new_session": True}
    process = Popen(command, cwd=ROOT, stdout=stdout, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def python(code: str, **options):
    """Run Python code that may use what this file defines, until the block ends."""
    return running(sys.executable, "-c", f"from benchmark import *; {code}", **options)


def wait_until(condition: Callable[[], object], process: Popen) -> None:
    """Wait until the process has got so far."""
    end = time.monotonic() + 20
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"\nThis does not start: {process.args}")
        time.sleep(0.02)


@contextmanager
def server(*command: str) -> Iterator[int]:
    """Run a server, on a free port in place of PORT_NUMBER, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    command = [part.replace("PORT_NUMBER", str(address[1])) for part in command]

    def listens() -> bool:
        with suppress(OSError), socket.create_connection(address):
            return True

    with running(*command) as process:
        wait_until(listens, process)
        yield address[1]


@contextmanager
def silence() -> Iterator[None]:
    """Send what this process prints to /dev/null."""
    with open(os.devnull, "w") as null, redirect_stdout(null):
        yield


def new_queue() -> Queue:
    """Return the queue of tasks 8 and 9 on an empty Redis."""
    queue = Queue(processor.QUEUE, connection=redis_client.connect())
    queue.connection.flushall()
    return queue


def some_jobs(count: int) -> list[dict]:
    """Return so many jobs: the eleven of task 8, over and over."""
    return list(islice(cycle(job_creator.JOBS), count))


def enqueue_bare(function: Callable | str, jobs: list[dict], queue: Queue) -> None:
    """Queue jobs with nothing but RQ's `enqueue_many`."""
    queue.enqueue_many(Queue.prepare_data(function, (*job.values(),)) for job in jobs)


def end_jobs(ids: list[str], queue: Queue) -> None:
    """Write the events that the processor writes for jobs that complete."""
    with queue.connection.pipeline(transaction=False) as pipe:
        for job_id in ids:
            job = Job(job_id, pipe)
            job.origin = queue.name
            processor.write_event(job, "progress", "0")
            processor.write_event(job, "progress", "50")
            processor.report_completed(job, pipe, None)
        pipe.execute()


def follow(follower) -> list[float]:
    """Print what a Follower hears; return when each line was printed."""
    times = []
    while follower.waiting:
        events = follower.read()
        follower.show(events)
        times += [time.monotonic()] * len(events)
    return times


@contextmanager
def pool(worker_class: str, size: int = 2) -> Iterator[Queue]:
    """Run the pool of 7_job_processor.py with this class, once its workers listen."""
    queue = new_queue()

    def all_listen() -> bool:
        workers = Worker.all(connection=queue.connection)
        return [worker.get_state() for worker in workers] == ["idle"] * size

    code = f"""
import rq
processor.PoolWorker = {worker_class}
pool_class = processor.NotificationPool
processor.NotificationPool = lambda queues, **options: pool_class(
    queues, **options | {{"num_workers": {size}}}
)
processor.main()
"""
    with python(code) as process, silence():
        wait_until(all_listen, process)
        yield queue


def work_through(jobs: list[dict], queue: Queue) -> None:
    """Queue jobs, and follow them to their end."""
    follower = job_creator.Follower(queue)
    queued = job_creator.queue_jobs(jobs, queue)
    follower.waiting.update(job.id for job in queued)
    follow(follower)


# The lines of the table.


def memory() -> list[Row]:
    """A creator's peak memory with 7,000 jobs and with 2,000."""

    def peak(count: int) -> float:
        code = f"print_peak_memory({count})"
        with python(code, stdout=PIPE) as process:
            return int(process.stdout.readline())

    many, few = in_turn("memory", 5, lambda: peak(7_000), lambda: peak(2_000))
    many, few = median(many), median(few)
    figure = f"{(many - few) / 5000 / 1000:.1f} kB"
    what = "a creator's peak memory for each job beyond 2,000"
    return [(what, figure, f"{few / 1e6:.0f} MB with 2,000", "")]


def queuing() -> list[Row]:
    """Jobs queued in a second, up to the return of the call that queues them."""
    queue, jobs, function = new_queue(), some_jobs(10_000), processor.send_notification

    def ours() -> float:
        queue.connection.flushall()
        figure = rate(10_000, job_script.create_push_notifications_jobs, jobs, queue)
        end_jobs(queue.job_ids, queue)  # also ends the thread that follows them
        job_script.wait_for_jobs()
        return figure

    def loop() -> float:
        queue.connection.flushall()
        calls = (queue.enqueue(function, *job.values()) for job in jobs[:1000])
        return rate(1000, list, calls)

    def bare() -> float:
        queue.connection.flushall()
        return rate(10_000, enqueue_bare, function, jobs, queue)

    with silence():
        ours_, loop_, bare_ = in_turn("queuing", 15, ours, loop, bare)
    what = "`8_job.py` queuing 10,000 jobs / "
    return [
        row(what + "a loop of RQ's `enqueue`", "jobs/s", ours_, loop_),
        row(what + "RQ's `enqueue_many`", "jobs/s", ours_, bare_),
    ]


def processing(worker_class: str, seconds: float, count: int) -> list[Row]:
    """Jobs of task 9 done in a second, from queuing to the creator's last line."""
    jobs = some_jobs(count)

    def nothing() -> None:
        ended = queue.finished_job_registry.key
        goal = queue.connection.zcard(ended) + count
        enqueue_bare("benchmark.do_nothing", jobs, queue)
        while queue.connection.zcard(ended) < goal:
            time.sleep(0.01)

    name = worker_class.split(".")[-1]
    with pool(worker_class) as queue:
        ours = partial(rate, count, work_through, jobs, queue)
        figures = in_turn(name, seconds, ours, partial(rate, count, nothing))
    what = f"jobs of task 9 through two `{name}` / jobs that do nothing"
    return [row(what, "jobs/s", *figures)]


def more_workers() -> list[Row]:
    """Jobs of task 9 done in a second by one and by four workers, against two."""
    jobs = some_jobs(150)

    def rate_of(size: int) -> float:
        with pool("processor.PoolWorker", size) as queue:
            return rate(150, work_through, jobs, queue)

    sizes = [partial(rate_of, size) for size in (1, 2, 4)]
    one, two, four = in_turn("more workers", 20, *sizes)
    what = "jobs of task 9 through {} `PoolWorker` / through two"
    return [
        row(what.format("one"), "jobs/s", one, two),
        row(what.format("four"), "jobs/s", four, two),
    ]


def news() -> list[Row]:
    """The time from a progress call in a worker to its line in the creator."""

    def ours() -> float:
        follower = job_creator.Follower(queue)
        follower.waiting.add("0")
        done = Callback(processor.report_completed)
        job = queue.enqueue("benchmark.progress_times", job_id="0", on_success=done)
        return delay(job, follow(follower))

    def hop() -> float:
        with queue.connection.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe(CHANNEL)
            job = queue.enqueue("benchmark.publish_times", job_id="1")
            messages = (message for message in pubsub.listen() if message)
            return delay(job, [time.monotonic() for _ in islice(messages, 100)])

    def delay(job: Job, arrivals: list[float]) -> float:
        departures = job.latest_result(timeout=4).return_value
        job.delete()
        return 1000 * median(b - a for a, b in zip(departures, arrivals))

    with pool("processor.PoolWorker") as queue:
        figures = in_turn("news", 8, ours, hop)
    what = "from a progress call to the creator's line / from publish to subscriber"
    return [row(what, "ms", *figures)]


def following() -> list[Row]:
    """The CPU time of following a job, out of many whose events wait in the stream."""
    queue = new_queue()

    def cost(count: int, times: int) -> float:
        used = 0.0
        for _ in range(times):
            follower = job_creator.Follower(queue)
            ids = [str(number) for number in range(count)]
            follower.waiting.update(ids)
            end_jobs(ids, queue)
            start = time.process_time()
            follow(follower)
            used += time.process_time() - start
        return 1e6 * used / count / times

    with silence():
        # As many jobs in all on either side, so that Python's garbage collector runs
        # as often.
        measures = lambda: cost(20_000, 1), lambda: cost(2_000, 10)
        figures = in_turn("following", 12, *measures)
    return [row("following each of 20,000 jobs / of 2,000", "µs of CPU", *figures)]


def starts() -> list[Row]:
    """The time from the start of a script to its first line."""

    def time_of(*command: str) -> float:
        start = time.perf_counter()
        with running(sys.executable, *command, stdout=PIPE) as process:
            process.stdout.readline()
            return 1000 * (time.perf_counter() - start)

    names = [path.name for path in sorted(ROOT.glob("[0-9]_*.py"))]
    names = [name for name in names if "processor" not in name]  # they print none
    where = redis_client.connect().get_connection_kwargs()
    client = f"redis.Redis({where['host']!r}, {where['port']})"
    commands = [("-c", f"import redis; print({client}.ping(), flush=True)")]
    commands += [(name,) for name in names]
    measures = [lambda command=command: time_of(*command) for command in commands]
    for measure in measures:
        measure()  # compiles the modules
    ping, *figures = in_turn("starts", 15, *measures)
    what = "start of `{}` to its first line / of a bare ping"
    return [
        row(what.format(name), "ms", each, ping) for name, each in zip(names, figures)
    ]


def serving(name: str, ours: list[str], yardstick: list[str]) -> list[Row]:
    """Requests answered in a second, one after the other, on one connection if kept."""
    stock.reserve_stock_by_id(1, 4)  # sold out
    rows = []

    def measure(port: int, path: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def get(count: int) -> None:
            for _ in range(count):
                connection.request("GET", path)
                connection.getresponse().read()

        get(10)
        figure = rate(400, get, 400)
        connection.close()
        return figure

    with server(*ours) as our_port, server(*yardstick) as other_port:
        for path in "/list_products/1", "/reserve_product/1":
            measures = [partial(measure, port, path) for port in (our_port, other_port)]
            figures = in_turn(f"{name} {path}", 5, *measures)
            what = f"`GET {path}` on {name} / an app that does one Redis GET"
            rows.append(row(what, "requests/s", *figures))
    return rows


def serving_with_wsgiref() -> list[Row]:
    """9_stock.py itself, which closes the connection after each answer."""
    command = ["env", "PORT=PORT_NUMBER", sys.executable]
    yardstick = "from benchmark import *; stock.app = one_get_app; stock.main()"
    return serving("wsgiref", [*command, "9_stock.py"], [*command, "-c", yardstick])


def serving_with_granian() -> list[Row]:
    """A server for production, over a connection that is kept alive."""
    if not importlib.util.find_spec("granian"):
        return [("`9_stock:app` on granian", "granian is not installed", "", "")]
    command = f"{sys.executable} -m granian --interface wsgi --workers 2"
    command = [*command.split(), "--port", "PORT_NUMBER"]
    return serving(
        "granian", [*command, "9_stock:app"], [*command, "benchmark:one_get_app"]
    )


def measure_all() -> list[Row]:
    """Return the lines of the table."""
    rows = memory()  # first: a process inherits its parent's peak
    rows += queuing()
    rows += processing("processor.PoolWorker", 25, 200)
    rows += processing("rq.SimpleWorker", 15, 1000) + more_workers()
    rows += news() + following() + starts()
    return rows + serving_with_granian() + serving_with_wsgiref()


def machine() -> str:
    """Return, in one line, what the figures depend on."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        cpu = (
            Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].splitlines()[0]
        )
    redis_version = redis_client.connect().info("server")["redis_version"]
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, {cpu}, "
        f"Python {platform.python_version()}, Redis {redis_version}, "
        f"redis-py {version('redis')}, RQ {version('rq')}"
    )


def interrupted(signum: int, frame: object) -> None:
    """End what was started, then this process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    print(file=sys.stderr)  # after the line of progress
    sys.exit(128 + signum)


def main() -> None:
    for number in SIGNALS:
        signal.signal(number, interrupted)
    if not shutil.which("redis-server"):
        sys.exit("redis-server is not installed")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for "import benchmark"
        os.environ["PYTHONPYCACHEPREFIX"] = folder  # not in the project's folder
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        options = f"--bind 127.0.0.1 --dir {folder} --port PORT_NUMBER --save"
        with server("redis-server", *options.split(), "") as port:
            os.environ["REDIS_URL"] = f"redis://127.0.0.1:{port}"
            rows = measure_all()
            print(f"\r{'':79}\r", end="", file=sys.stderr, flush=True)
            print(machine())
    print("\n| measured / yardstick | figure | yardstick | ratio |")
    print("| --- | --: | --: | --: |")
    for columns in rows:
        print("|", " | ".join(columns), "|")


if __name__ == "__main__":
    main()
