"""What the tests of the job scripts share: workers, and what is told of jobs."""

import importlib
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from conftest import RedisServer, Script, run_code, wait_until
from rq import Queue, SimpleWorker
from rq.job import Job

creator_7 = importlib.import_module("7_job_creator")


class DeafWorker(SimpleWorker):
    """A worker that hears no commands: RQ often waits a second for the thread that does."""

    def subscribe(self): ...

    def unsubscribe(self): ...


def work(connection: redis.Redis, *queues: str | Queue) -> None:
    """Run the queued jobs in this process: a work horse could not reach fakeredis."""
    with keeping_signal_handlers():
        DeafWorker(queues, connection=connection).work(burst=True)


@contextmanager
def keeping_signal_handlers() -> Iterator[None]:
    """Give pytest its signal handlers back. A worker leaves its own, which would not end pytest."""
    signals = creator_7.processor_7.STOP_SIGNALS
    handlers = {signum: signal.getsignal(signum) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def wait_for_followers(timeout: float = 30) -> None:
    """Wait until no job is followed in this process any more; fail if that takes long.

    `wait_for_jobs`, which waits for as long as it takes, would keep the tests for ever.
    """
    wait_until(lambda: not creator_7.followers, timeout, "a job is still followed")
    creator_7.wait_for_jobs()


WORKERS = {"6_job_processor.py": 1, "7_job_processor.py": 2}
QUEUES = {
    "6_job_processor.py": "push_notification_code",
    "7_job_processor.py": "push_notification_code_2",
}


def start_processors(start, server: RedisServer, *names: str, url="") -> list[Script]:
    """Start processors, and wait until their workers have registered."""
    workers = server.client.scard("rq:workers")
    workers += sum(WORKERS[name] for name in names)
    scripts = [start(name, url or server.url) for name in names]
    wait_until(lambda: server.client.scard("rq:workers") == workers, state=scripts)
    return scripts


def start_processor(start, server: RedisServer, name="7_job_processor.py") -> Script:
    """Start one processor, and wait until its workers have registered."""
    [script] = start_processors(start, server, name)
    return script


def start_hasty_processor(server: RedisServer, name: str, **constants) -> Script:
    """Start a processor with other intervals than its own, `ABSENCE=2`, say."""
    settings = {"PAUSE_AFTER_ABSENCE": 0, "MAINTENANCE_INTERVAL": 0.1, **constants}
    code = f"""
import importlib
processor_6 = importlib.import_module("6_job_processor")
for name, value in {settings}.items():
    assert hasattr(processor_6, name)
    setattr(processor_6, name, value)
script = importlib.import_module({name.removesuffix(".py")!r})
script.redis_client.run(script.main)
"""
    workers = server.client.scard("rq:workers") + WORKERS[name]
    script = run_code(code, server.url)
    wait_until(lambda: server.client.scard("rq:workers") == workers, state=script)
    return script


def queue_sleep(server: RedisServer, seconds: float, *queue_names: str) -> list[Job]:
    """Queue a job that takes some seconds, in each queue (of all processors)."""
    return [
        Queue(name, connection=server.rq_connection).enqueue("time.sleep", seconds)
        for name in queue_names or QUEUES.values()
    ]


def told_of_each_job(lines: list[str]) -> dict[str, list[str]]:
    """Return the texts told of each job, by its id."""
    told = defaultdict(list)
    for line in lines:
        if line.startswith("Notification job ") and "created" not in line:
            job_id, text = line.removeprefix("Notification job ").split(" ", 1)
            told[job_id].append(text)
    return told


def status(server: RedisServer, job: Job) -> str | None:
    """Return the status of a job, None when it is gone."""
    return server.client.hget(job.key, "status")


def wait_for_status(server: RedisServer, jobs: list[Job], wanted: str) -> None:
    wait_until(lambda: {status(server, job) for job in jobs} == {wanted})


def let_jobs_in_hand_look_abandoned(
    server: RedisServer, queue_name: str, in_seconds: float = -1
) -> int:
    """Let the time be over for which RQ waits for a sign of life; return their number."""
    wip = f"rq:wip:{queue_name}"
    executions = server.client.zrange(wip, 0, -1)
    for execution in executions:
        server.client.zadd(wip, {execution: time.time() + in_seconds}, xx=True)
    return len(executions)
