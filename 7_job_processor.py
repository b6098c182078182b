"""Task 9: process jobs, two at a time, with progress and errors.

The twin of 7-job_processor.js. RQ has no job events: this file also writes them, to a
Redis stream for each queue, and 7_job_creator.py follows that stream.
"""

import importlib
import multiprocessing
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the workers set their own

import redis
from rq import get_current_job
from rq.job import Job
from rq.worker_pool import WorkerPool

redis_client = importlib.import_module("0_redis_client")
job_processor = importlib.import_module("6_job_processor")

QUEUE = "push_notification_code_2"
BLACKLIST = {"4153518780", "4153518781"}
EVENTS_KEPT = 100_000  # in each stream, the oldest go first


class BlacklistedError(Exception):
    """No notification may be sent to this phone number."""


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`, reporting progress. Twin of `sendNotification`.

    Raises BlacklistedError, which fails the job.
    """
    report_progress(0, 100)
    if phone_number in BLACKLIST:
        raise BlacklistedError(f"Phone number {phone_number} is blacklisted")
    report_progress(50, 100)
    job_processor.send_notification(phone_number, message)


def report_progress(completed: int, total: int) -> None:
    """Report that `completed` steps of `total` are done. Twin of `job.progress`."""
    if job := get_current_job():  # None when no worker runs this
        write_event(job, "progress", str(100 * completed // total))


def report_completed(job: Job, connection: redis.Redis, result: object) -> None:
    """RQ calls this when a job has returned. Emits the twin of `complete`."""
    write_event(job, "completed")


def report_failed(job: Job, connection: redis.Redis, exc_type, exc, traceback) -> None:
    """RQ calls this when a job has raised `exc`. Emits the twin of `failed`."""
    if not job.should_retry:  # it has not failed yet when RQ will run it again
        write_event(job, "failed", str(exc) or exc_type.__name__)


def write_event(job: Job, event: str, detail: str = "") -> None:
    """Append an event of `job` to the stream of its queue."""
    fields = {"job": job.id, "event": event, "detail": detail}
    job.connection.xadd(events_key(job.origin), fields, maxlen=EVENTS_KEPT)


def events_key(queue_name: str) -> str:
    """Return the key of the stream of a queue's events."""
    return f"events:{queue_name}"


class NotificationWorker(job_processor.PatientWorker):
    """A worker that does not log blacklisted numbers as errors."""

    def handle_exception(self, job: Job, *exc_info) -> None:
        if not issubclass(exc_info[0], BlacklistedError):
            super().handle_exception(job, *exc_info)


class PoolWorker(NotificationWorker):
    """One of a pool's. A scheduler process of its own would outlive it if it is killed."""

    def work(self, *args, **options) -> bool:
        return super().work(*args, **options | {"with_scheduler": False})


class NotificationPool(WorkerPool):
    """A pool that ends with its last worker, instead of looking every second."""

    def request_stop(self, signum=None, frame=None) -> None:
        if multiprocessing.parent_process():
            sys.exit()  # in a worker that has not set a handler of its own yet
        super().request_stop(signum, frame)
        for worker in list(self.worker_dict.values()):
            worker.process.join()


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`, whose 2nd argument is 2."""
    job_processor.keep_stdout_clean()
    pool = NotificationPool(
        [QUEUE],
        connection=redis_client.connect(),
        num_workers=2,
        worker_class=PoolWorker,
    )
    pool.start()


if __name__ == "__main__":
    # As a script this file is the module __main__; to run a job, RQ imports it again, as
    # 7_job_processor. Taking main() from there lets both know one BlacklistedError.
    importlib.import_module("7_job_processor").main()
