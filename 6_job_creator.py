"""Task 6: create a job. The twin of 6-job_creator.js; 6_job_processor.py runs the job."""

import importlib
import re
import signal
import sys
import time

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis
from rq import Queue
from rq.job import Job, JobStatus

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"
JOB_DATA = {
    "phoneNumber": "4153518780",
    "message": "This is the code to verify your account",
}
FAILURES = {JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}


def new_job_ids(connection: redis.Redis, count: int = 1) -> list[str]:
    """Take the next `count` job ids of the one sequence of all the job scripts.

    As Kue numbers its jobs; RQ's own ids are UUIDs.
    """
    while True:
        last = connection.incrby("job_ids", count)
        ids = [str(number) for number in range(last - count + 1, last + 1)]
        if not connection.exists(*map(Job.key_for, ids)):
            return ids
        # The counter was lost. Queuing under a used id would overwrite that job.


def ended_jobs(ids: list[str], connection: redis.Redis) -> dict[str, str | None]:
    """Ask RQ, in one round trip, which of the jobs have ended, and return how.

    None for a job that completed, its error for one that failed. A job that is gone
    from Redis counts as failed.
    """
    with connection.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hget(Job.key_for(job_id), "status")
        statuses = pipe.execute()
    ended = {}
    for job_id, status in zip(ids, statuses):
        status = status and status.decode()
        if status is None:
            ended[job_id] = "the job is gone from Redis"
        elif status == JobStatus.FINISHED:
            ended[job_id] = None
        elif status in FAILURES:
            result = Job(job_id, connection).latest_result()
            error = (result and result.exc_string or status).strip("; \n")
            # The last line of a traceback, "module.Class: message", without the class.
            ended[job_id] = re.sub(r"^[\w.]+: ", "", error.splitlines()[-1])
    return ended


def wait_for_end(job: Job) -> bool:
    """Wait until `job` has ended, for as long as it takes; return whether it completed.

    Twin of the job's `complete` and `failed` events.
    """
    while True:
        try:
            job.latest_result(timeout=1)  # second; returns at once when there is one
            if ended := ended_jobs([job.id], job.connection):
                return ended[job.id] is None
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.5)  # until Redis is back


def main() -> None:
    """Queue one job and print how it ends."""
    queue = Queue(QUEUE, connection=redis_client.connect())
    try:
        [job_id] = new_job_ids(queue.connection)
        job = queue.enqueue(
            "6_job_processor.send_notification",
            JOB_DATA["phoneNumber"],
            JOB_DATA["message"],
            job_id=job_id,
        )
    except redis.RedisError as error:
        sys.exit(f"Notification job not created: {error}")
    print(f"Notification job created: {job.id}", flush=True)
    completed = wait_for_end(job)
    print(f"Notification job {'completed' if completed else 'failed'}", flush=True)


if __name__ == "__main__":
    main()
