"""Task 10: the job creation function. The twin of 8-job.js; test_8_job.py tests it."""

import atexit
import importlib
import os
import signal
import sys
import threading

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis
from rq import Queue
from rq.job import Job

redis_client = importlib.import_module("0_redis_client")
job_creator = importlib.import_module("7_job_creator")

QUEUE = "push_notification_code_3"
JOBS = [
    {
        "phoneNumber": "4153518780",
        "message": "This is the code 1234 to verify your account",
    }
]

# One thread for each client and queue follows the jobs of all calls: a thread for each
# call would read every event again. The lock guards this dict and the ids that a thread
# waits for, and makes "created" the first line of each job.
_threads: dict[tuple[redis.Redis, str], "_FollowerThread"] = {}
_lock = threading.RLock()
# Python aborts when it ends while such a thread prints, and a forked process would find
# the lock taken for ever. So both take it first; the end waits a second at most.
atexit.register(_lock.acquire, timeout=1)
os.register_at_fork(
    before=_lock.acquire,
    after_in_parent=_lock.release,
    after_in_child=_lock.release,
)


def create_push_notifications_jobs(jobs: list[dict], queue: Queue) -> list[Job]:
    """Queue a notification job for each of `jobs`, all of them or none.

    Each of `jobs` is a dict with the strings `phoneNumber` and `message`. Returns the
    RQ jobs without waiting for them; what happens to them is printed in the background
    as long as this process lives. Twin of `createPushNotificationsJobs`.

    Raises TypeError when `jobs` is not a list or tuple, ValueError when an entry is
    wrong, and redis.RedisError when Redis is away or full.
    """
    if not isinstance(jobs, (list, tuple)):
        raise TypeError("Jobs is not an array")
    for position, job in enumerate(jobs):
        if fault := _fault(job):
            raise ValueError(f"jobs[{position}] {fault}")
    if not jobs:
        return []
    with _lock:
        key = queue.connection, queue.name
        thread = _threads.get(key)
        if not thread or not thread.is_alive():
            thread = _FollowerThread(key, job_creator.Follower(queue))
        queued = job_creator.queue_jobs(jobs, queue)
        thread.follower.waiting.update(job.id for job in queued)
        if not thread.is_alive():
            _threads[key] = thread
            thread.start()
    return queued


def wait_for_jobs() -> None:
    """Wait until all jobs of this process have ended and their last lines are printed."""
    for thread in list(_threads.values()):  # a copy: each removes itself
        thread.join()


def _fault(job: object) -> str | None:
    """Return what is wrong with an entry of `jobs`, None when it is right."""
    if not isinstance(job, dict):
        return "is not a dict"
    for key in ("phoneNumber", "message"):
        if key not in job:
            return f"has no {key}"
        if not isinstance(job[key], str):
            return f"has a {key} that is not a string"
    return None


class _FollowerThread(threading.Thread):
    """Prints what happens to jobs (see `Follower.show`), until all have ended."""

    def __init__(self, key: tuple[redis.Redis, str], follower):
        super().__init__(daemon=True)  # does not keep the process alive
        self.key = key
        self.follower = follower

    def run(self) -> None:
        while self.follower.waiting:
            events = self.follower.read()
            with _lock:
                self.follower.show(events)
                if not self.follower.waiting:
                    del _threads[self.key]


def main() -> None:
    """Queue one job and stay until it has ended."""
    queue = Queue(QUEUE, connection=redis_client.connect())
    try:
        create_push_notifications_jobs(JOBS, queue)
    except redis.RedisError as error:
        sys.exit(f"Notification job not created: {error}")
    wait_for_jobs()


if __name__ == "__main__":
    main()
