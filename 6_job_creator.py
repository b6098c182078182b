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
    """Queue one job, and print how it ends. Twin of its `complete` and `failed` events."""
    queue = create_queue(QUEUE)
    [job_id] = new_job_ids(queue.connection)
    job = queue.enqueue(
        "6_job_processor.send_notification",  # by its name, so it is not imported here
        JOB_DATA["phoneNumber"],
        JOB_DATA["message"],
        job_id=job_id,
    )
    print(f"Notification job created: {job.id}")
    if has_completed(job):
        print("Notification job completed")
    else:
        print("Notification job failed")


# The exercise ends here. What follows numbers jobs as Kue does, and waits for one.

FAILED = {JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}


def create_queue(name: str) -> Queue:
    """Return a queue on the Redis at `REDIS_URL`. Twin of `kue.createQueue()`."""
    return Queue(name, connection=redis_client.create_client())


def new_job_ids(connection: redis.Redis, count: int = 1) -> list[str]:
    """Take the next `count` ids of the one sequence of all the job scripts."""
    if count == 0:
        return []
    while True:
        last = connection.incrby("job_ids", count)
        ids = [str(number) for number in range(last - count + 1, last + 1)]
        # If the counter was deleted, it starts again: ids that are in use are skipped.
        keys = [Job.key_for(job_id) for job_id in ids]
        if not connection.exists(*keys):
            return ids


def has_completed(job: Job) -> bool:
    """Wait until `job` has ended, for as long as it takes; return whether it completed.

    A job that is gone from Redis has failed.
    """
    while True:
        try:
            # Waits until a run has a result, for a second at most.
            job.latest_result(timeout=1)
            status = job.get_status()
        except InvalidJobOperation:
            # By this RQ says that the job is gone.
            return False
        except redis_client.AWAY:
            status = None
        if status == JobStatus.FINISHED:
            return True
        if status in FAILED:
            return False
        # It has not ended. The line above does not wait when Redis is away, or when an
        # earlier attempt has left a result.
        time.sleep(0.1)


if __name__ == "__main__":
    redis_client.run(main)
