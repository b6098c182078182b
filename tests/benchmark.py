"""Measure the scripts against the bare packages; write and print tests/BENCHMARK.md.

`python tests/benchmark.py` takes under three minutes on two cores, on a redis-server of
its own. From top to bottom:

- what other processes run from this file: a job, a creator, servers that do little;
- tools: rounds of measures, rows of the table, processes, pools of workers, jobs;
- the measurements: `memory`, `queuing`, `processing`, `news`, `following`, `starts`,
  `serving`, and `measure_all`, which calls them;
- the report: its text, and `main`.
"""

import http.client
import importlib.util
import os
import platform
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE, Popen
from types import SimpleNamespace

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # leaves nothing in the project's folder

import redis
from rq import Queue, Worker, get_current_job
from rq.job import Job

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
redis_client = importlib.import_module("0_redis_client")
job_creator = importlib.import_module("7_job_creator")
processor = importlib.import_module("7_job_processor")
job_script = importlib.import_module("8_job")

STARTED = time.monotonic()
CORES = os.cpu_count() or 1
SIZES = sorted({1, 2, CORES, CORES + CORES // 2, 2 * CORES})  # of pools of workers
JOBS = 1000 * job_creator.JOBS  # the eleven of task 8, over and over

# What other processes run from this file.

client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost"))
BODY = b'{"itemId":1,"itemName":"Suitcase 250","price":50,"initialAvailableQuantity":4}'
HEADERS = {"Content-Type": "application/json", "Content-Length": str(len(BODY))}


def bare_app(environ: dict, start_response: Callable) -> list[bytes]:
    """A WSGI app that does one Redis GET."""
    client.get("item.1")
    start_response("200 OK", [*HEADERS.items()])
    return [BODY]


class BareHandler(BaseHTTPRequestHandler):
    """The same for Python's own server."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece
    log_message = print  # to /dev/null

    def do_GET(self) -> None:
        client.get("item.1")
        self.send_response(200)
        for header in HEADERS.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(BODY)


def tell(bare: bool) -> list[float]:
    """A job that reports progress, or publishes, a hundred times; returns when."""
    publish = partial(get_current_job().connection.publish, "benchmark")
    report, times = partial(processor.report_progress, total=100), []
    for percent in range(100):
        time.sleep(0.01)  # in place of a job's work
        times.append(time.monotonic())
        publish(percent) if bare else report(percent)
    return times


def create(count: int) -> None:
    """Queue jobs, follow them to their end, and print the peak memory of that."""
    queue = new_queue()
    job_script.create_push_notifications_jobs(JOBS[:count], queue)
    write_events(queue.job_ids, queue)
    job_creator.wait_for_jobs()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


# Tools.


def in_turn(what: str, seconds: float, *measures: Callable[[], float]) -> list[tuple]:
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


def row(what: str, unit: str, ours: tuple, yardstick: tuple) -> str:
    """Return a row of the first table, from the figures of all rounds."""
    digits = 2 if median(ours) < 10 else 0
    a, b = (f"{median(each):,.{digits}f} {unit}" for each in (ours, yardstick))
    return (
        f"| {what} | {a} | {b} | {median(x / y for x, y in zip(ours, yardstick)):.2f} |"
    )


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
    process = Popen(command, cwd=HERE.parent, stdout=stdout, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        finally:
            with suppress(ProcessLookupError):  # none is left
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], process: Popen) -> None:
    """Wait until the process has got so far."""
    end = time.monotonic() + 20
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"\nThis does not work: {process.args}")
        time.sleep(0.02)


@contextmanager
def server(command: str) -> Iterator[int]:
    """Run a server, on a free port in place of PORT_NUMBER, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        host, port = free.getsockname()
    with running(*command.replace("PORT_NUMBER", str(port)).split()) as process:
        wait_until(lambda: not socket.socket().connect_ex((host, port)), process)
        yield port


@contextmanager
def pool(size: int, worker_class: str = "") -> Iterator[Queue]:
    """Run 7_job_processor.py, or RQ's own pool with this class, with `size` workers."""
    queue = new_queue()
    script = f"""import runpy, rq.worker_pool as rq
rq.WorkerPool.num_workers = property(lambda _: {size}, lambda *_: None)
runpy.run_path("7_job_processor.py", run_name="__main__")"""
    rq = f"-m rq.cli worker-pool -q -n {size} -w {worker_class} {queue.name}".split()

    def all_wait() -> bool:
        workers = Worker.all(connection=queue.connection)
        return [worker.get_state() for worker in workers] == ["idle"] * size

    with running(sys.executable, *(rq if worker_class else ("-c", script))) as process:
        wait_until(all_wait, process)
        yield queue
        wait_until(all_wait, process)
        os.killpg(process.pid, signal.SIGKILL)  # by SIGTERM it would take two seconds


def new_queue() -> Queue:
    """Return the queue of tasks 8 and 9 on an empty Redis."""
    queue = Queue(processor.QUEUE, connection=redis_client.create_client())
    queue.connection.flushall()
    return queue


def enqueue_bare(jobs: list[dict], queue: Queue, function: str | Callable) -> list[Job]:
    """Queue jobs with nothing but RQ's `enqueue_many`."""
    data = (Queue.prepare_data(function, (*job.values(),)) for job in jobs)
    return queue.enqueue_many(data)


def write_events(ids: list[str], queue: Queue) -> None:
    """Write what the processor writes for jobs that complete."""
    with queue.connection.pipeline(transaction=False) as pipe:
        for job_id in ids:
            job = SimpleNamespace(id=job_id, origin=queue.name, connection=pipe)
            for event in ("progress", "0"), ("progress", "50"), ("completed",):
                processor.write_event(job, *event)
            if len(pipe) > 1000 or job_id == ids[-1]:  # all at once would take memory
                pipe.execute()


# The measurements.


def memory() -> str:
    """A creator's peak memory with 7,000 jobs and with 2,000."""

    def peak(count: int) -> float:
        code = f"import benchmark; benchmark.create({count})"
        with running(sys.executable, "-c", code, stdout=PIPE) as process:
            unit = 1 if sys.platform == "darwin" else 1024
            return int([*process.stdout][-1]) * unit

    figures = in_turn("memory", 5, partial(peak, 7_000), partial(peak, 2_000))
    many, few = map(median, figures)
    what = "a creator's peak memory for each job beyond 2,000"
    return f"| {what} | {(many - few) / 5e6:.1f} kB | {few / 1e6:.0f} MB with 2,000 | |"


def queuing() -> list[str]:
    """Jobs queued in a second, up to the return of the call that queues them."""
    queue, function = new_queue(), processor.send_notification

    def enqueue(jobs: list[dict], queue: Queue) -> None:
        for job in jobs:
            queue.enqueue(function, *job.values())

    def measure(count: int, *action: object) -> float:
        figure = rate(count, action[0], JOBS[:count], queue, *action[1:])
        queue.connection.flushall()
        job_creator.wait_for_jobs()  # to the thread that follows them they have ended
        return figure

    ours = partial(measure, 10_000, job_script.create_push_notifications_jobs)
    yardsticks = (
        partial(measure, 1_000, enqueue),
        partial(measure, 10_000, enqueue_bare, function),
    )
    ours, one_by_one, many = in_turn("queuing", 18, ours, *yardsticks)
    what = "`8_job.py` queuing 10,000 jobs / RQ's "
    return [
        row(what + "`enqueue` in a loop", "jobs/s", ours, one_by_one),
        row(what + "`enqueue_many`", "jobs/s", ours, many),
    ]


def processing(kind: str, seconds: int, speed: int) -> tuple[str, tuple[float, ...]]:
    """Jobs done in a second by workers, each doing about `speed`, to the last one's end.

    Each round takes pools of all SIZES with jobs of task 9, and two of RQ's workers with
    jobs that do nothing. Returns the row of two workers, and the medians of all SIZES.
    """

    def work(jobs: list[dict], queue: Queue, bare: bool) -> None:
        if not bare:
            job_creator.queue_jobs(jobs, queue)
            return job_creator.wait_for_jobs()
        for job in reversed(enqueue_bare(jobs, queue, "operator.eq")[-10:]):
            job.latest_result(timeout=20)  # the earlier ones have ended by then

    def measure(size: int, worker_class: str, bare: bool = False) -> float:
        with pool(size, worker_class) as queue:
            work(JOBS[: 4 * size], queue, bare)  # warms the workers up
            count = speed * min(size, CORES)
            return rate(count, work, JOBS[:count], queue, bare)

    ours = "" if kind == "Worker" else f"6_job_processor.Patient{kind}"
    measures = [partial(measure, size, ours) for size in SIZES]
    measures.append(partial(measure, 2, f"rq.{kind}", True))
    *all_sizes, bare = in_turn(f"Patient{kind}", seconds, *measures)
    what = f"jobs of task 9 by two `Patient{kind}` / that do nothing by two `rq.{kind}`"
    two = row(what, "jobs/s", all_sizes[SIZES.index(2)], bare)
    return two, [*map(median, all_sizes)]


def news() -> str:
    """The time from a progress call in a worker to its line in the creator."""

    def ours() -> float:
        times = []
        clock = SimpleNamespace(write=len, flush=lambda: times.append(time.monotonic()))
        with redirect_stdout(clock):
            with job_creator.following(queue) as waiting:
                job = queue.enqueue("benchmark.tell", False, **processor.HOOKS)
                waiting.add(job.id)
            job_creator.wait_for_jobs()
        return delay(job, times)

    def hop() -> float:
        with queue.connection.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("benchmark")
            job = queue.enqueue("benchmark.tell", True)
            messages = filter(None, pubsub.listen())
            return delay(job, [time.monotonic() for _ in zip(range(100), messages)])

    def delay(job: Job, arrivals: list[float]) -> float:
        departures = job.latest_result(timeout=4).return_value
        return 1000 * median(b - a for a, b in zip(departures, arrivals))

    with pool(2) as queue:
        figures = in_turn("news", 8, ours, hop)
    what = "from a progress call to the creator's line / from publish to subscriber"
    return row(what, "ms", *figures)


def following() -> str:
    """The CPU time of following a job, out of many whose events wait in the stream."""
    queue = new_queue()

    def cost(count: int) -> float:
        used, ids = 0.0, [str(number) for number in range(count)]
        for _ in range(20_000 // count):  # Python's garbage collector runs as often
            with job_creator.following(queue) as waiting:  # its thread waits meanwhile
                waiting.update(ids)
                write_events(ids, queue)
                start = time.process_time()
            job_creator.wait_for_jobs()
            used += time.process_time() - start
            queue.connection.flushall()
        return 1e6 * used / 20_000

    figures = in_turn("following", 14, partial(cost, 20_000), partial(cost, 2_000))
    return row("following each of 20,000 jobs / of 2,000", "µs of CPU", *figures)


def starts() -> str:
    """The time from the start of a script to its first line."""

    def time_of(*command: str) -> float:
        start = time.perf_counter()
        with running(sys.executable, *command, stdout=PIPE) as process:
            process.stdout.readline()
            return 1000 * (time.perf_counter() - start)

    names = [path.name for path in HERE.parent.glob("[0-9]_*.py")]
    names = [name for name in names if "processor" not in name]  # they print none
    ping = f"redis.Redis.from_url({os.environ['REDIS_URL']!r}).ping()"
    measures = [partial(time_of, "-c", f"import redis; print({ping}, flush=True)")]
    measures += [partial(time_of, name) for name in names]
    ping, *figures = in_turn("starts", 15, *measures)
    slowest, name = max(zip(figures, names), key=lambda each: median(each[0]))
    what = f"start of `{name}`, the slowest, to its first line / of a bare ping"
    return row(what, "ms", slowest, ping)


def serving(what: str, *commands: str) -> list[str]:
    """Requests answered in a second, one after the other on one connection."""
    new_queue().connection.set("item.1", 4)  # sold out

    def get(connection: http.client.HTTPConnection, path: str) -> None:
        for _ in range(400):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.read() and response.status == 200 and connection.sock

    rows = []
    with server(commands[0]) as ours, server(commands[1]) as yardstick:
        ports = ours, yardstick
        connections = [http.client.HTTPConnection("127.0.0.1", port) for port in ports]
        for path in "/list_products/1", "/reserve_product/1":
            measures = [partial(rate, 400, get, each, path) for each in connections]
            figures = in_turn(f"{path} {what}", 5, *measures)
            rows.append(row(f"`GET {path}` {what}", "requests/s", *figures))
    return rows


def measure_all() -> dict[str, str]:
    """Return the rows of both tables."""
    rows = [memory()] + queuing()  # first: a process inherits its parent's peak
    two, default = processing("Worker", 40, 75)
    simple_two, simple = processing("SimpleWorker", 35, 250)
    rows += [two, simple_two, news(), following(), starts()]
    ...


# The report.
