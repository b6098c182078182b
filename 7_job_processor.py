"""Task 9: process jobs, two at a time, with progress and errors.

The twin of 7-job_processor.js; 7_job_creator.py, in another terminal, creates the jobs.
"""

import importlib
from multiprocessing import get_context

import redis
from rq import Callback, get_current_job
from rq.job import Job
from rq.worker_pool import WorkerPool

redis_client = importlib.import_module("0_redis_client")
job_processor = importlib.import_module("6_job_processor")

QUEUE = "push_notification_code_2"
BLACKLIST = {"4153518780", "4153518781"}


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`, reporting progress. Twin of `sendNotification`.

    Raises NotificationError, which fails the job, for a number on the blacklist.
    """
    report_progress(0, 100)
    if phone_number in BLACKLIST:
        error = f"Phone number {phone_number} is blacklisted"
        raise job_processor.NotificationError(error)
    report_progress(50, 100)
    job_processor.send_notification(phone_number, message)


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`, whose 2nd argument is 2."""
    client = redis_client.create_client()
    client.ping()
    NotificationPool([QUEUE], connection=client, num_workers=2).start()


# The exercise ends here. What follows writes job events to a stream, as RQ has none.

EVENTS_KEY = "events:{}"  # of a queue's name
EVENTS_KEPT = 100_000  # in each stream, the oldest go first


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


HOOKS = {
    "on_success": Callback(report_completed),
    "on_failure": Callback(report_failed),
}


def write_event(job: Job, event: str, detail: str = "") -> None:
    """Append an event of `job` to the stream of its queue."""
    fields = {"job": job.id, "event": event, "detail": detail}
    job.connection.xadd(EVENTS_KEY.format(job.origin), fields, maxlen=EVENTS_KEPT)


class NotificationPool(WorkerPool):
    """RQ's pool adds a scheduler to each worker, which outlives it when it is killed."""

    def get_worker_process(self, name: str, **options):
        return get_context("fork").Process(target=redis_client.run, args=(work, name))


def work(name: str) -> None:
    """Be the worker `name` of the pool."""
    client = redis_client.create_client()
    job_processor.PatientWorker([QUEUE], name=name, connection=client).work()


if __name__ == "__main__":
    redis_client.run(main)
