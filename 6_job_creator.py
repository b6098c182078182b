"""Task 6: create a job. The twin of 6-job_creator.js; 6_job_processor.py runs the job."""

import importlib
import re
import time

import redis
from rq import Queue
from rq.job import Job, JobStatus

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"
JOB_DATA = {
    "phoneNumber": "4153518780",
    "message": "This is the code to verify your account",
}


def main() -> None:
    """Queue one job, and print how it ends."""
    queue = Queue(QUEUE, connection=redis_client.create_client())
    [job_id] = new_job_ids(queue.connection)
    job = queue.enqueue(
        "6_job_processor.send_notification",
        JOB_DATA["phoneNumber"],
        JOB_DATA["message"],
        job_id=job_id,
    )
    print(f"Notification job created: {job.id}")
    completed = wait_for_end(job)
    print(f"Notification job {'completed' if completed else 'failed'}")


# The exercise ends here. What follows numbers jobs as Kue does, and tells how they ended.

FAILURES = {JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}


def new_job_ids(connection: redis.Redis, count: int = 1) -> list[str]:
    """Take the next `count` ids of the one sequence of all the job scripts."""
    while True:
        last = connection.incrby("job_ids", count)
        ids = [str(number) for number in range(last - count + 1, last + 1)]
        # Had the counter been lost, a used id would overwrite its job.
        if not connection.exists(*map(Job.key_for, ids)):
            return ids


def wait_for_end(job: Job) -> bool:
    """Wait for as long as it takes, and return whether `job` completed.

    Twin of the job's `complete` and `failed` events.
    """
    while True:
        try:
            job.latest_result(timeout=1)  # second; returns at once when there is one
            for _, event, _ in ended_jobs([job.id], job.connection):
                return event == "completed"
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.5)  # until Redis is back


def ended_jobs(ids: list[str], connection: redis.Redis) -> list[tuple[str, str, str]]:
    """Ask RQ, in one round trip, which jobs have ended; a job that is gone has failed.

    Returns the id of each, "completed" or "failed", and the error.
    """
    with connection.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hget(Job.key_for(job_id), "status")
        statuses = [status and status.decode() for status in pipe.execute()]
    ended = []
    for job_id, status in zip(ids, statuses):
        if status is None:
            ended.append((job_id, "failed", "the job is gone from Redis"))
        elif status == JobStatus.FINISHED:
            ended.append((job_id, "completed", ""))
        elif status in FAILURES:
            result = Job(job_id, connection).latest_result()
            error = (result and result.exc_string or status).strip("; \n")
            # The last line of a traceback, "module.Class: message", without the class.
            error = re.sub(r"^[\w.]+: ", "", error.splitlines()[-1])
            ended.append((job_id, "failed", error))
    return ended


if __name__ == "__main__":
    redis_client.run(main)
