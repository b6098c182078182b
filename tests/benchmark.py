"""Measure the scripts against the bare packages, and print the figures.

`python tests/benchmark.py` takes three minutes on two cores, on a redis-server of its own.
`python tests/benchmark.py --write` also writes them to tests/BENCHMARK.md. From top to bottom: what other processes run from this file (`bare_app` to
`create`); rounds and rows of figures (`in_turn` to `rate`); processes and queues
(`running` to `write_events`); the measurements (`memory` to `serving`); the report.
"""

import http.client
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import mean, median
from subprocess import DEVNULL, PIPE, Popen

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # leaves nothing in the project's folder
import redis
from rq import Queue, Worker, get_current_job
from rq.job import Job

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
creator_6 = importlib.import_module("6_job_creator")
creator_7 = importlib.import_module("7_job_creator")
processor_7 = importlib.import_module("7_job_processor")
job_script = importlib.import_module("8_job")

CORES = os.cpu_count() or 1
SIZES = sorted({1, 2, CORES, CORES + CORES // 2, 2 * CORES})  # of pools of workers
JOBS = 1000 * creator_7.JOBS  # the eleven of task 8, over and over
client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost"))
BODY = b'{"itemId":1,"itemName":"Suitcase 250","price":50,"initialAvailableQuantity":4}'


def bare_app(environ: dict, start_response: Callable) -> list[bytes]:
    """A WSGI app that does one Redis GET."""
    client.get("item.1")
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]


class BareHandler(BaseHTTPRequestHandler):  # the same for Python's own server
    protocol_version, wbufsize = "HTTP/1.1", -1  # an answer leaves in one piece
    log_request = int  # logs nothing

    def do_GET(self) -> None:
        client.get("item.1")
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)


def tell(bare: bool) -> None:
    """A job that a hundred times reports the time as its progress, or publishes it."""
    job = get_current_job()
    for _ in range(100):
        time.sleep(0.01)  # in place of a job's work
        now = time.monotonic_ns()
        if bare:
            job.connection.publish("benchmark", now)
        else:
            event = processor_7.JobEvent(job.id, "progress", now)
            event.write(job.connection, job.origin)


def create(count: int) -> None:
    """Queue jobs, follow them to their end, and print the peak memory of that."""
    queue = new_queue()
    job_script.create_push_notifications_jobs(JOBS[:count], queue)
    write_events(queue.job_ids, queue)
    creator_7.wait_for_jobs()
    print(getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def in_turn(seconds: float, *measures: Callable[[], float]) -> list[tuple]:
    """Return the figures of each measure, in three rounds or more: A B A B A B."""
    rounds, end = [], time.monotonic() + seconds
    while len(rounds) < 3 or time.monotonic() < end:
        rounds.append([measure() for measure in measures])
        print(".", end="", file=sys.stderr, flush=True)
    return [*zip(*rounds)]


def row(what: str, unit: str, ours: tuple, bare: tuple) -> str:
    """Return a row of the first table, from the figures of all rounds."""
    digits = 2 if median(ours) < 10 else 0
    a, b = (f"{median(each):,.{digits}f} {unit}" for each in (ours, bare))
    return f"| {what} | {a} | {b} | {median(x / y for x, y in zip(ours, bare)):.2f} |"


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
def server(*command: str) -> Iterator[str]:
    """Run a server, on a free port in place of PORT_NUMBER, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    port = str(address[1])
    with running(*(part.replace("PORT_NUMBER", port) for part in command)) as process:
        wait_until(lambda: not socket.socket().connect_ex(address), process)
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
    queue = creator_6.create_queue(processor_7.QUEUE)
    queue.connection.flushall()
    return queue


def write_events(ids: list[str], queue: Queue) -> None:
    """Write what the processor writes for jobs that complete."""
    with queue.connection.pipeline(transaction=False) as pipe:
        for job_id in ids:
            for event in ("progress", 0), ("progress", 50), ("complete", None):
                processor_7.JobEvent(job_id, *event).write(pipe, queue.name)
            if len(pipe) > 1000 or job_id == ids[-1]:  # all at once would take memory
                pipe.execute()


def memory() -> str:
    """A creator's peak memory with 7,000 jobs and with 2,000."""

    def peak(count: int) -> float:
        code = f"import benchmark; benchmark.create({count})"
        with running(sys.executable, "-c", code, stdout=PIPE) as process:
            return int([*process.stdout][-1])

    few, many = map(median, in_turn(5, partial(peak, 2_000), partial(peak, 7_000)))
    what = "a creator's peak memory for each job beyond 2,000"
    return f"| {what} | {(many - few) / 5e6:.1f} kB | {few / 1e6:.0f} MB with 2,000 | |"


def queuing() -> list[str]:
    """Jobs queued in a second, up to the return of the call that queues them."""
    queue, send = new_queue(), processor_7.send_notification

    def bare(jobs: list[dict], queue: Queue) -> None:
        queue.enqueue_many(Queue.prepare_data(send, (*job.values(),)) for job in jobs)

    def loop(jobs: list[dict], queue: Queue) -> None:
        [queue.enqueue(send, *job.values()) for job in jobs]

    def measure(action: Callable, count: int) -> float:
        queue.connection.flushall()
        creator_7.wait_for_jobs()  # to the thread that follows them they have ended
        return rate(count, action, JOBS[:count], queue)

    ours = job_script.create_push_notifications_jobs
    actions = (ours, 10_000), (bare, 10_000), (loop, 1_000)
    ours, bare, loop = in_turn(16, *(partial(measure, *each) for each in actions))
    what = "`8_job.py` queuing 10,000 jobs / RQ's "
    row_of_loop = row(what + "`enqueue` in a loop", "jobs/s", ours, loop)
    return [row_of_loop, row(what + "`enqueue_many`", "jobs/s", ours, bare)]


def processing(kind: str, seconds: int, speed: int) -> tuple[str, Iterator[float]]:
    """Jobs done in a second by two workers against RQ's, and by pools of all SIZES."""

    def work(queue: Queue, count: int, bare: bool) -> None:
        if not bare:
            creator_7.queue_jobs(JOBS[:count], queue)
            return creator_7.wait_for_jobs()
        data = Queue.prepare_data("operator.eq", (*JOBS[0].values(),))
        for job in reversed(queue.enqueue_many([data] * count)[-10:]):
            job.latest_result(timeout=20)  # the earlier ones have ended by then

    def measure(size: int, worker_class: str, bare: bool = False) -> float:
        count = speed * min(size, CORES)  # for about a second
        with pool(size, worker_class) as queue:
            work(queue, 4 * size, bare)  # warms the workers up
            return rate(count, work, queue, count, bare)

    ours = "" if kind == "Worker" else f"6_job_processor.Patient{kind}"
    ours = [partial(measure, size, ours) for size in SIZES]
    *ours, bare = in_turn(seconds, *ours, partial(measure, 2, f"rq.{kind}", True))
    what = f"jobs of task 9 by two `Patient{kind}` / that do nothing by two `rq.{kind}`"
    return row(what, "jobs/s", ours[SIZES.index(2)], bare), map(median, ours)


def news() -> str:
    """The time from a job's report of its progress to the call of a handler."""

    def ours() -> float:
        delays = []

        def handler(job: Job, event: str, detail: object) -> None:
            if event == "progress":
                delays.append(time.monotonic_ns() - detail)

        job = queue.enqueue("benchmark.tell", False, **processor_7.HOOKS)
        creator_7.follow([job], queue, handler)
        creator_7.wait_for_jobs()
        return median(delays) / 1e6

    def hop() -> float:
        with queue.connection.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("benchmark")
            queue.enqueue("benchmark.tell", True)
            times = (int(each["data"]) for each in pubsub.listen() if each)
            delays = [time.monotonic_ns() - sent for _, sent in zip(range(100), times)]
            return median(delays) / 1e6

    what = "from a report of progress to its handler / from publish to subscriber"
    with pool(2) as queue:
        return row(what, "ms", *in_turn(8, ours, hop))


def following() -> str:
    """The CPU time of following a job, out of many whose events wait in the stream."""

    def cost(count: int) -> float:
        queue = new_queue()
        jobs = [
            Job.create("time.time", id=str(number), connection=queue.connection)
            for number in range(count)
        ]
        write_events([job.id for job in jobs], queue)
        start = time.process_time()
        creator_7.follow(jobs, queue, creator_7.print_event)
        creator_7.wait_for_jobs()
        return 1e6 * (time.process_time() - start) / count

    # As many jobs in all on either side: Python's garbage collector runs as often.
    measures = partial(cost, 20_000), lambda: mean(cost(2_000) for _ in range(10))
    figures = in_turn(12, *measures)
    return row("following each of 20,000 jobs / of 2,000", "µs of CPU", *figures)


def starts() -> str:
    """The time from a script's start to its first line; processors print none."""

    def time_of(*command: str) -> float:
        start = time.perf_counter()
        with running(sys.executable, *command, stdout=PIPE) as process:
            process.stdout.readline()
            return 1000 * (time.perf_counter() - start)

    names = [p.name for p in HERE.parent.glob("[0-9]_*.py") if "process" not in p.name]
    ping = "import redis, os; redis.Redis.from_url(os.environ['REDIS_URL']).ping()"
    measures = [partial(time_of, "-c", f"{ping}; print('PONG', flush=True)")]
    ping, *figures = in_turn(15, *measures, *(partial(time_of, name) for name in names))
    slowest, name = max(zip(figures, names), key=lambda each: min(each[0]))
    what = f"start of `{name}`, the slowest, to its first line / of a bare ping"
    return row(what, "ms", slowest, ping)


def serving(what: str, *commands: tuple[str, ...]) -> list[str]:
    """Requests answered in a second, one after the other on one connection."""

    def get(connection: http.client.HTTPConnection, path: str) -> None:
        for _ in range(400):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.read() and response.status == 200 and connection.sock

    new_queue().connection.set("item.1", 4)  # sold out
    rows = []
    with server(*commands[0]) as ours, server(*commands[1]) as yardstick:
        for path in "/list_products/1", "/reserve_product/1":
            ends = map(http.client.HTTPConnection, 2 * ["127.0.0.1"], (ours, yardstick))
            figures = in_turn(5, *(partial(rate, 400, get, end, path) for end in ends))
            rows.append(row(f"`GET {path}` {what}", "requests/s", *figures))
    return rows


REPORT = """\
# What it costs

`python tests/benchmark.py --write` wrote this (`pip install granian` for its rows): {machine}.

| measured / yardstick | figure | yardstick | ratio |
| --- | --: | --: | --: |
{rows}

A figure is the median of three rounds or more, taken in turn with those of its
yardstick, the bare packages: whatever else the machine does hits both. The ratio is the
median of the rounds' ratios: high is good for a rate, low is good for a time.

Jobs of task 9 in a second by so many workers (two: the rounds above) of the script, and
of `rq worker-pool -w 6_job_processor.PatientSimpleWorker`, to the creator's last line:

| workers | `PatientWorker` | `PatientSimpleWorker` |
| --: | --: | --: |
{sizes}
"""


def report() -> str:
    """Measure everything, and return the text of BENCHMARK.md."""
    rows = [memory()] + queuing()  # first: a process inherits its parent's peak
    two, default = processing("Worker", 30, 75)
    simple_two, simple = processing("SimpleWorker", 25, 250)
    rows += [two, simple_two, news(), following(), starts()]
    if importlib.util.find_spec("granian"):
        options = "-m granian --interface wsgi --port PORT_NUMBER {}"
        apps = "9_stock:app", "benchmark:bare_app"
        apps = [(sys.executable, *options.format(app).split()) for app in apps]
        rows += serving("on granian / an app that does one Redis GET", *apps)
    ours = "env", "PORT=PORT_NUMBER", sys.executable, "9_stock.py"
    bare = "TCP = '127.0.0.1', PORT_NUMBER; import http.server as server, benchmark; "
    bare += "server.ThreadingHTTPServer(TCP, benchmark.BareHandler).serve_forever()"
    what = "of `9_stock.py` / a `ThreadingHTTPServer` that does one Redis GET"
    rows += serving(what, ours, (sys.executable, "-c", bare))
    sizes = map("| {} | {:,.0f} | {:,.0f} |".format, SIZES, default, simple)
    cpu = os.uname().machine
    with suppress(OSError, IndexError):
        info = Path("/proc/cpuinfo").read_text()
        cpu = info.split("model name\t: ")[1].splitlines()[0]
    redis_version = new_queue().connection.info("server")["redis_version"]
    machine = f"{time.strftime('%Y-%m-%d %H:%M')}, {CORES} cores, {cpu}, Python "
    machine += f"{sys.version.split()[0]}, Redis {redis_version}, redis-py "
    machine += f"{version('redis')}, RQ {version('rq')}"
    return REPORT.format(rows="\n".join(rows), sizes="\n".join(sizes), machine=machine)


def main() -> None:
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

    def interrupted(signum: int, frame: object) -> None:  # ends what was started, too
        [signal.signal(number, signal.SIG_IGN) for number in signals]
        sys.exit(128 + signum)

    for number in signals:
        signal.signal(number, interrupted)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
        os.environ |= {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        os.environ |= {"PYTHONPATH": str(HERE), "PORT": "0"}  # 9_stock.py: any
        command = f"redis-server --dir {folder} --bind 127.0.0.1 --port PORT_NUMBER"
        with redirect_stdout(null), server(*command.split(), "--save", "") as port:
            url = f"redis://127.0.0.1:{port}"
            os.environ |= {"REDIS_URL": url, "RQ_REDIS_URL": url}
            text = report()
    if "--write" in sys.argv:
        (HERE / "BENCHMARK.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
