"""Task 6: create a job. The twin of 6-job_creator.js; 6_job_processor.py runs the job."""

import importlib
import signal
import sys
import time

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis
from rq import Queue
from rq.job import Job
from rq.results import Result

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"
JOB_DATA = {
    "phoneNumber": "4153518780",
    "message": "This is the code to verify your account",
}


def new_job_ids(connection: redis.Redis, count: int = 1) -> list[str]:
    """Take the next `count` job ids of the one sequence of all the job scripts.

    Kue numbers its jobs so; RQ's own ids are UUIDs.
    """
    while True:
        last = connection.incrby("job_ids", count)
        ids = [str(number) for number in range(last - count + 1, last + 1)]
        # Only if the counter was lost: queuing under a used id would overwrite that job.
        if not connection.exists(*map(Job.key_for, ids)):
            return ids


def wait_for_end(job: Job) -> bool:
    """Wait until `job` has ended, for as long as it takes; return whether it completed.

    A job that is gone from Redis has failed. Twin of the job's `complete` and `failed`
    events.
    """
    while True:
        try:
            # In seconds, and less than the client's socket timeout, which is 5.
            result = job.latest_result(timeout=2)
            if result:
                return result.type is Result.Type.SUCCESSFUL
            if not Job.exists(job.id, job.connection):
                return False
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.5)  # Redis restarts: it will tell when it is back


def main() -> None:
    """Queue one job and say how it ends."""
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
