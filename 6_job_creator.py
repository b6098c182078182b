"""Task 6: create a job. The twin of 6-job_creator.js; 6_job_processor.py runs the job."""

import importlib
import time

import redis
from rq import Queue
from rq.exceptions import InvalidJobOperation
from rq.job import Job, JobStatus

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"
JOB_DATA = {
    "phoneNumber": "4153518780",
    "message": "This is the code to verify your account",
}


def main() -> None:
    """Queue a job, and print how it ends. Twin of `job.on('complete' | 'failed')`."""
    queue = create_queue(QUEUE)
    [job_id] = new_job_ids(queue.connection)  # a number, as Kue's; RQ's own are UUIDs
    job = queue.enqueue(
        "6_job_processor.send_notification",  # the worker imports it by this name
        JOB_DATA["phoneNumber"],
        JOB_DATA["message"],
        job_id=job_id,
    )
    print(f"Notification job created: {job.id}")
    if wait_for_end(job) == JobStatus.FINISHED:
        print("Notification job completed")
    else:
        print("Notification job failed")


# The exercise ends here. What follows numbers jobs as Kue does, and waits for one.

# A job with one of these statuses will not run any more.
ENDED = {
    JobStatus.FINISHED,
    JobStatus.FAILED,
    JobStatus.STOPPED,
    JobStatus.CANCELED,
}


def create_queue(name: str) -> Queue:
    """Return a queue on the Redis at `REDIS_URL`. Twin of `kue.createQueue()`."""
    return Queue(name, connection=redis_client.create_client())


def new_job_ids(connection: redis.Redis, count: int = 1) -> list[str]:
    """Return the next `count` ids. All the job scripts count in one sequence."""
    if count == 0:
        # Task 10 allows an empty list, but `exists` needs a key.
        return []
    while True:
        last = connection.incrby("job_ids", count)
        ids = [str(number) for number in range(last - count + 1, last + 1)]
        # If somebody has deleted the counter, it starts again. Skip ids that are in use.
        keys = [Job.key_for(job_id) for job_id in ids]
        if not connection.exists(*keys):
            return ids


def wait_for_end(job: Job) -> JobStatus:
    """Wait until `job` has ended, for as long as it takes; return its status.

    Again and again, wait for a result, look at the status, and pause. The pause is for the times
    when `latest_result` does not wait: Redis is away, or the job is tried again, and has the
    result of its first attempt. A job that is gone from Redis counts as failed.
    """
    while True:
        try:
            # Wait for a result, for a second at most.
            job.latest_result(timeout=1)
            status = job.get_status()
        except InvalidJobOperation:
            # `get_status` raises this if the job is gone.
            return JobStatus.FAILED
        except redis_client.REFUSED:
            # A wrong password is in AWAY, too, but waiting would not help.
            raise
        except redis_client.AWAY:
            status = None
        if status in ENDED:
            return status
        time.sleep(0.1)


if __name__ == "__main__":
    redis_client.run(main)
