"""Task 8: follow jobs. The twin of 7-job_creator.js; 7_job_processor.py runs the jobs."""

import atexit
import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from rq import Queue
from rq.job import Job

redis_client = importlib.import_module("0_redis_client")
job_creator = importlib.import_module("6_job_creator")
processor = importlib.import_module("7_job_processor")

MESSAGE = "This is the code {} to verify your account"
JOBS = [
    {"phoneNumber": "4153518780", "message": MESSAGE.format(1234)},
    {"phoneNumber": "4153518781", "message": MESSAGE.format(4562)},
    {"phoneNumber": "4153518743", "message": MESSAGE.format(4321)},
    {"phoneNumber": "4153538781", "message": MESSAGE.format(4562)},
    {"phoneNumber": "4153118782", "message": MESSAGE.format(4321)},
    {"phoneNumber": "4153718781", "message": MESSAGE.format(4562)},
    {"phoneNumber": "4159518782", "message": MESSAGE.format(4321)},
    {"phoneNumber": "4158718781", "message": MESSAGE.format(4562)},
    {"phoneNumber": "4153818782", "message": MESSAGE.format(4321)},
    {"phoneNumber": "4154318781", "message": MESSAGE.format(4562)},
    {"phoneNumber": "4151218782", "message": MESSAGE.format(4321)},
]


def queue_jobs(jobs: list[dict], queue: Queue) -> list[Job]:
    """Queue all of `jobs` or none, and print in the background what happens to them."""
    ids = job_creator.new_job_ids(queue.connection, len(jobs))
    function = processor.send_notification
    arguments = [(job["phoneNumber"], job["message"]) for job in jobs]
    with following(queue) as waiting:  # a set: the ids of the jobs to tell of
        queued = queue.enqueue_many(
            Queue.prepare_data(function, args, job_id=job_id, **processor.HOOKS)
            for args, job_id in zip(arguments, ids)
        )
        for job in queued:
            print(f"Notification job created: {job.id}", flush=True)
        waiting.update(ids)
    return queued


def main() -> None:
    """Queue the eleven jobs, and stay until all have ended."""
    queue_jobs(JOBS, Queue(processor.QUEUE, connection=redis_client.create_client()))
    wait_for_jobs()


# The exercise ends here. What follows prints what happens to jobs, in the background.

LINES = {"progress": "{}% complete", "completed": "completed", "failed": "failed: {}"}
SILENCE = 1000  # milliseconds without news of its jobs after which a follower asks RQ
_waiting: dict[tuple[redis.Redis, str], set[str]] = {}  # ids, by client and stream
_lock = threading.Lock()  # so that "created" is the first line of every job
atexit.register(_lock.acquire, timeout=1)  # Python must not end while a thread prints


@contextmanager
def following(queue: Queue) -> Iterator[set[str]]:
    """Print what happens to the jobs whose ids the block adds. Twin of `job.on(…)`."""
    with _lock:
        key = queue.connection, processor.EVENTS_KEY.format(queue.name)
        waiting = _waiting.get(key, set())  # by one thread, for all calls
        position = f"{queue.connection.time()[0]}000"  # now, as an id in the stream
        yield waiting
        if waiting and key not in _waiting:
            _waiting[key] = waiting
            options = {"name": "follower", "args": (*key, position), "daemon": True}
            threading.Thread(target=follow, **options).start()


def wait_for_jobs() -> None:
    """Wait until all jobs that this process follows have ended."""
    for thread in threading.enumerate():
        if thread.name == "follower":
            thread.join()


def follow(connection: redis.Redis, stream: str, position: str | bytes) -> None:
    """Print what happens to the jobs in `_waiting`, until all of them have ended."""
    waiting, heard = _waiting[connection, stream], time.monotonic()
    while True:
        try:
            ended = []
            if 1000 * (time.monotonic() - heard) > SILENCE:  # a killed job is silent
                ended = job_creator.ended_jobs(list(waiting), connection)
                heard = time.monotonic()
            found = connection.xread({stream: position}, 1000, 1 if ended else SILENCE)
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.5)  # the stream keeps what happens meanwhile
            continue
        entries = found[0][1] if found else []
        position = entries[-1][0] if entries else position
        events = [map(bytes.decode, fields.values()) for _, fields in entries] + ended
        with _lock:
            for job_id, event, detail in events:
                if job_id in waiting:
                    heard, line = time.monotonic(), LINES[event].format(detail)
                    print(f"Notification job {job_id} {line}", flush=True)
                    if event != "progress":
                        waiting.remove(job_id)
            if not waiting:
                del _waiting[connection, stream]
                return


if __name__ == "__main__":
    redis_client.run(main)
