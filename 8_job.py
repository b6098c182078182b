"""Task 10: the job creation function. The twin of 8-job.js; test_8_job.py tests it.

`rq worker push_notification_code_3`, in another terminal, runs the job: the function is that
of task 9.
"""

import importlib

from rq import Queue
from rq.job import Job

redis_client = importlib.import_module("0_redis_client")
creator_6 = importlib.import_module("6_job_creator")
creator_7 = importlib.import_module("7_job_creator")

QUEUE = "push_notification_code_3"
JOBS = [
    {
        "phoneNumber": "4153518780",  # on the blacklist of task 9: the job fails
        "message": "This is the code 1234 to verify your account",
    }
]


def create_push_notifications_jobs(jobs: list[dict], queue: Queue) -> list[Job]:
    """Queue a notification job for each of `jobs`, all of them or none.

    Each of `jobs` is a dict with the strings `phoneNumber` and `message`. Returns the
    RQ jobs without waiting for them. What happens to them is printed in the background
    while this process lives. Twin of `createPushNotificationsJobs`.

    Raises TypeError when `jobs` is no list or tuple, ValueError when an entry is wrong,
    and redis.RedisError when Redis is away or full.
    """
    if not isinstance(jobs, (list, tuple)):
        raise TypeError("Jobs is not an array")
    for position, entry in enumerate(jobs):
        fault = fault_of(entry)
        if fault:
            raise ValueError(f"jobs[{position}] {fault}")
    return creator_7.queue_jobs(jobs, queue)


def main() -> None:
    """Queue one job, and stay until it has ended."""
    create_push_notifications_jobs(JOBS, creator_6.create_queue(QUEUE))
    creator_7.wait_for_jobs()


# The exercise ends here. What follows finds wrong entries. A phone number that is no string, for
# example, would slip past the blacklist of task 9.


def fault_of(entry: object) -> str | None:
    """Return what is wrong with an entry of `jobs`, None if it is right."""
    if not isinstance(entry, dict):
        return "is not a dict"
    for key in ("phoneNumber", "message"):
        if key not in entry:
            return f"has no {key}"
        if not isinstance(entry[key], str):
            return f"has a {key} that is not a string"
    return None


if __name__ == "__main__":
    redis_client.run(main)
