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
    report_progress(0, 100)  # for this job: RQ knows which one it runs
    if phone_number in BLACKLIST:
        error = f"Phone number {phone_number} is blacklisted"
        raise processor_6.NotificationError(error)
    report_progress(50, 100)
    processor_6.send_notification(phone_number, message)


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process(name, 2, …)`."""
    client = redis_client.create_client()
    client.ping()
    NotificationPool([QUEUE], connection=client, num_workers=2).start()


# The exercise ends here. The rest is for a second reading: job events, which RQ does not have,
# and a pool of two workers. 7_job_creator.py reads the events.


# When there are more entries in the stream of a queue, the oldest go. An entry contains what a
# job has returned. A job with a large result should write it to a key, and return the key.
EVENTS_KEPT = 100_000


def stream_of(queue_name: str) -> str:
    """Return the key of the stream for the events of a queue."""
    return f"events:{queue_name}"


def to_json(value: object) -> str:
    """Return `value` as JSON. If JSON can't express it, return its text as JSON."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(text_of(value))


def through_json(value: object) -> object:
    """Return `value` as a reader of the stream gets it. A tuple becomes a list, for example.

    7_job_creator.py needs this for a result that is not in the stream, and that it has from RQ.
    """
    return json.loads(to_json(value))


def text_of(value: object) -> str:
    """Return `str(value)`. If that fails or is empty, return the name of its class."""
    try:
        text = str(value)
    except Exception:
        redis_client.logger.exception("%s has no text", type(value))
        text = ""
    return text or type(value).__name__


class JobEvent(NamedTuple):
    """What happened to a job: an entry in the stream of its queue."""

    job_id: str
    # As in Kue: "progress", "complete", "failed attempt" or "failed".
    name: str
    # The progress in percent, what the job returned, or its error.
    detail: object

    def write(self, connection: redis.Redis, queue_name: str) -> None:
        """Append the event to the stream of a queue, as an entry with three fields."""
        fields = {
            "job": self.job_id,
            "event": self.name,
            "detail": to_json(self.detail),
        }
        try:
            connection.xadd(stream_of(queue_name), fields, maxlen=EVENTS_KEPT)
        except redis_client.REFUSED as error:
            # A job that has sent its message must not fail for that. RQ knows of its end. (If
            # Redis is away, the `PatientRetry` of the worker waits.)
            redis_client.logger.error("Event of job %s is lost: %s", self.job_id, error)

    @classmethod
    def read(cls, fields: dict[bytes, bytes]) -> "JobEvent":
        """Return the event that an entry of a stream holds."""
        detail = json.loads(fields[b"detail"])
        return cls(fields[b"job"].decode(), fields[b"event"].decode(), detail)


def report_progress(completed: float, total: float) -> None:
    """Report that `completed` of `total` steps are done. Twin of `job.progress`.

    Kue counts in whole percent, at most 100. If `total` is 0, it is 0 %.
    """
    job = get_current_job()
    if job is None:
        # The function was called directly, not by a worker.
        return
    percent = 0
    if total != 0:
        percent = min(100, int(100 * completed / total))
    # RQ calls the name of a job's queue its origin.
    JobEvent(job.id, "progress", percent).write(job.connection, job.origin)


def report_complete(job: Job, connection: redis.Redis, result: object) -> None:
    """Write the event `complete`. RQ calls this when a job has returned."""
    JobEvent(job.id, "complete", result).write(connection, job.origin)


def report_failed(job: Job, connection: redis.Redis, exc_type, exc, traceback) -> None:
    """Write the event `failed`, or `failed attempt` if RQ will run the job again.

    RQ calls this when a job has raised `exc`.
    """
    name = "failed"
    if job.should_retry:
        name = "failed attempt"
    JobEvent(job.id, name, text_of(exc)).write(connection, job.origin)


# Queue a job with these, so that its end is written to the stream.
HOOKS = {
    "on_success": Callback(report_complete),
    "on_failure": Callback(report_failed),
}


# The signals of Ctrl-C and `kill`.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def set_stop_handler(handler) -> None:
    """Let `handler` handle all of these signals in this process."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, handler)


class NotificationPool(WorkerPool):
    """RQ's pool, for `PatientWorker` only. If one of them ends by an error, the pool ends too.

    For each worker, RQ calls `start_worker`, in the pool. The start of a process is a fork: the new
    process begins with what the pool has, its imported modules, its signal handlers, and its
    blocked signals.

        in the pool                                     in the new process

        start_worker: block signals
            get_worker_process
            the fork                                    run_worker: set other signal handlers
        unblock signals                                     unblock signals
                                                            work

    A signal that comes while it is blocked is kept until it is unblocked. Otherwise, just after
    the fork, a signal could call a handler of the pool in the new process, and stop all workers.
    """

    def start_workers(self, **options) -> None:
        """Start all workers.

        RQ sets its signal handlers when all have started. A stop may come before, so set them
        here.
        """
        set_stop_handler(self.request_stop)
        super().start_workers(**options)

    def start_worker(self, *args, **options) -> None:
        """Start a worker, with blocked signals, unless the pool is to stop."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if self.status != self.Status.STOPPED:
                super().start_worker(*args, **options)
        finally:
            # The new process does not come here: at the end of `run_worker`, it exits.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def get_worker_process(self, name: str, burst: bool, **options) -> BaseProcess:
        """Return a process, not yet started, for the worker `name`.

        `options` are about RQ's log, and not needed.
        """
        queue_names = [queue.name for queue in self.queues]
        # The process will call `run(run_worker, name, …)`: it begins as every script does. Like RQ's
        # own, it is a fork.
        arguments = (run_worker, name, queue_names, burst)
        return get_context("fork").Process(target=redis_client.run, args=arguments)

    def handle_dead_worker(self, worker_data: WorkerData) -> None:
        """After an error of a worker, end with status 1. RQ calls this when a worker has ended.

        RQ's own method removes the worker from the pool. Later, RQ starts another one. That is what
        we want if it was killed by `kill -9`: then its exit code is negative. After an error, the
        code is 1. There, RQ would start new workers for ever.
        """
        super().handle_dead_worker(worker_data)
        if worker_data.process.exitcode != 1:
            return
        # If the pool is stopping, the workers have had a signal already. A second signal would
        # make them give up their jobs.
        if self.status != self.Status.STOPPED:
            self.stop_workers()
        # For the same reason, the pool passes no signal on from now on. (A Ctrl-C in a terminal goes
        # to the workers anyway.)
        set_stop_handler(signal.SIG_IGN)
        # Before it exits, Python waits for the other workers to end.
        sys.exit(1)


def run_worker(name: str, queue_names: list[str], burst: bool) -> None:
    """Run the worker `name` of the pool, in its process."""
    # Until the worker sets its own handlers, a signal ends the process, which has no job yet.
    set_stop_handler(signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    # This only saves time. A job names its function `7_job_processor.send_notification`, but here
    # this file runs as the module `__main__`. So each work horse would import it again, if it
    # was not imported before the fork.
    importlib.import_module("7_job_processor")
    client = redis_client.create_client()
    processor_6.PatientWorker(queue_names, name=name, connection=client).work(burst)


if __name__ == "__main__":
    redis_client.run(main)
