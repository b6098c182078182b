"""Task 9: process jobs, two at a time, with progress and errors.

The twin of 7-job_processor.js; 7_job_creator.py, in another terminal, creates the jobs.
"""

import importlib
import json
import signal
import sys
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import redis
from rq import Callback, get_current_job
from rq.job import Job
from rq.worker_pool import WorkerData, WorkerPool

redis_client = importlib.import_module("0_redis_client")
processor_6 = importlib.import_module("6_job_processor")

QUEUE = "push_notification_code_2"
BLACKLIST = {"4153518780", "4153518781"}


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`, reporting progress. Twin of `sendNotification`.

    Raises NotificationError, which fails the job, for a number on the blacklist.
    """
    report_progress(0, 100)
    if phone_number in BLACKLIST:
        error = f"Phone number {phone_number} is blacklisted"
        raise processor_6.NotificationError(error)
    report_progress(50, 100)
    processor_6.send_notification(phone_number, message)


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`, whose 2nd argument is 2."""
    client = redis_client.create_client()
    client.ping()
    NotificationPool([QUEUE], connection=client, num_workers=2).start()


# The exercise ends here. What follows tells what happens to jobs, as RQ has no job events,
# and starts the two workers.


# Entries in the stream of a queue; the oldest go first. With what a job returns in them, they
# take memory: large results are better written elsewhere.
EVENTS_KEPT = 100_000


def stream_of(queue_name: str) -> str:
    """Return the key of the stream with the events of a queue."""
    return f"events:{queue_name}"


def to_json(value: object) -> str:
    """Return `value` as JSON, or as a string in JSON if that has nothing like it."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(text_of(value))


def text_of(value: object) -> str:
    """Return `str(value)`, or the name of its class if that fails or is empty."""
    try:
        text = str(value)
    except Exception:
        redis_client.logger.exception("%s has no text", type(value))
        text = ""
    return text or type(value).__name__


class Event(NamedTuple):
    """What happened to a job: an entry in the stream of its queue."""

    job_id: str
    # As in Kue: "progress", "complete", "failed attempt" or "failed".
    name: str
    # The progress in percent, what the job returned, or its error.
    detail: object

    def write(self, connection: redis.Redis, queue_name: str) -> None:
        """Append the event to the stream of a queue."""
        fields = {
            "job": self.job_id,
            "event": self.name,
            "detail": to_json(self.detail),
        }
        connection.xadd(stream_of(queue_name), fields, maxlen=EVENTS_KEPT)

    @classmethod
    def read(cls, fields: dict[bytes, bytes]) -> "Event":
        """Return the event that an entry of a stream holds."""
        detail = json.loads(fields[b"detail"])
        return cls(fields[b"job"].decode(), fields[b"event"].decode(), detail)


def report_progress(completed: float, total: float) -> None:
    """Report that `completed` of `total` steps are done. Twin of `job.progress`.

    As Kue counts it: in whole percent, at most 100, and 0 when there are no steps.
    """
    job = get_current_job()
    if job is None:
        # No worker runs this.
        return
    percent = 0
    if total != 0:
        percent = min(100, int(100 * completed / total))
    Event(job.id, "progress", percent).write(job.connection, job.origin)


def report_complete(job: Job, connection: redis.Redis, result: object) -> None:
    """RQ calls this when a job has returned. Emits the twin of `complete`."""
    Event(job.id, "complete", result).write(connection, job.origin)


def report_failed(job: Job, connection: redis.Redis, exc_type, exc, traceback) -> None:
    """RQ calls this when a job has raised `exc`. Emits the twin of `failed`.

    That of `failed attempt` if RQ will run the job again.
    """
    name = "failed"
    if job.should_retry:
        name = "failed attempt"
    Event(job.id, name, text_of(exc)).write(connection, job.origin)


# What a job is queued with, so that its end is told.
HOOKS = {
    "on_success": Callback(report_complete),
    "on_failure": Callback(report_failed),
}


STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class NotificationPool(WorkerPool):
    """RQ's pool, with `PatientWorker`. If one ends by an error, the pool ends too."""

    def start_workers(self, **options) -> None:
        """Start all workers. RQ listens to signals after that; a stop may come earlier."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, self.request_stop)
        super().start_workers(**options)

    def start_worker(self, *args, **options) -> None:
        """Start a worker. A stop waits until there is a process that it reaches.

        Just after the fork, the child has the pool's signal handlers, and would act as if it
        were the pool. So signals are blocked until `work` has set others.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if self.status != self.Status.STOPPED:
                super().start_worker(*args, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def get_worker_process(self, name: str, **options) -> BaseProcess:
        """Return a process, not yet started, that is the worker `name`.

        As every script, it begins with `run`, which calls `work` with the other arguments.
        """
        queue_names = [queue.name for queue in self.queues]
        arguments = (work, name, queue_names, options["burst"])
        return get_context("fork").Process(target=redis_client.run, args=arguments)

    def handle_dead_worker(self, worker_data: WorkerData) -> None:
        """End with exit status 1 after an error, instead of starting workers for ever.

        RQ's own takes the worker off its list; later it starts another in its place. At the
        end, Python waits for the workers that are told to stop here.
        """
        super().handle_dead_worker(worker_data)
        if worker_data.process.exitcode == 1:
            self.stop_workers()
            sys.exit(1)


def work(name: str, queue_names: list[str], burst: bool) -> None:
    """Be the worker `name` of the pool."""
    # The signal handlers are those of the pool until here, and signals wait.
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    # The script that runs is the module `__main__`. RQ imports this file a second time, by the
    # name that a job gives. Done here, before the forks, it is not done for each job.
    importlib.import_module("7_job_processor")
    client = redis_client.create_client()
    processor_6.PatientWorker(queue_names, name=name, connection=client).work(burst)


if __name__ == "__main__":
    redis_client.run(main)
