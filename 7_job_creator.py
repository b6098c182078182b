"""Task 8: create jobs and follow their progress. The twin of 7-job_creator.js.

7_job_processor.py runs the jobs and writes their events; this file follows them.
"""

import importlib
import signal
import sys
import time

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis
from rq import Callback, Queue
from rq.job import Job, JobStatus

redis_client = importlib.import_module("0_redis_client")
job_creator = importlib.import_module("6_job_creator")
processor = importlib.import_module("7_job_processor")

JOBS = [
    {
        "phoneNumber": phone_number,
        "message": f"This is the code {code} to verify your account",
    }
    for phone_number, code in [
        ("4153518780", "1234"),
        ("4153518781", "4562"),
        ("4153518743", "4321"),
        ("4153538781", "4562"),
        ("4153118782", "4321"),
        ("4153718781", "4562"),
        ("4159518782", "4321"),
        ("4158718781", "4562"),
        ("4153818782", "4321"),
        ("4154318781", "4562"),
        ("4151218782", "4321"),
    ]
]
LINES = {"progress": "{}% complete", "completed": "completed", "failed": "failed: {}"}
SILENCE = (
    1  # second without news of its jobs, after which a follower asks RQ about them
)

Event = tuple[str, str, str]  # job id, event, detail


def queue_jobs(jobs: list[dict], queue: Queue) -> list[Job]:
    """Queue a job for each of `jobs`, all of them or none, and print their ids."""
    if not jobs:
        return []
    ids = job_creator.new_job_ids(queue.connection, len(jobs))
    queued = queue.enqueue_many(
        Queue.prepare_data(
            processor.send_notification,
            (job["phoneNumber"], job["message"]),
            job_id=job_id,
            on_success=Callback(processor.report_completed),
            on_failure=Callback(processor.report_failed),
        )
        for job_id, job in zip(ids, jobs)
    )
    for job in queued:
        print(f"Notification job created: {job.id}", flush=True)
    return queued


class Follower:
    """Prints what happens to the jobs in `waiting` (their ids), until each has ended.

    Twin of the job's `progress`, `complete` and `failed` events. Make it before the jobs
    are queued: it remembers where in the stream to begin.
    """

    def __init__(self, queue: Queue):
        self.connection = queue.connection
        self.stream = processor.events_key(queue.name)
        last = self.connection.xrevrange(self.stream, count=1)
        self.position = last[0][0] if last else "0"
        self.waiting: set[str] = set()
        self.last_news = time.monotonic()

    def run(self) -> None:
        """Print until each job has ended."""
        while self.waiting:
            self.print(self.read())

    def read(self) -> list[Event]:
        """Return the next events of any job, after a second at most. Outlives a Redis restart."""
        try:
            events = self._read_stream(count=1000, block=1000)
            if any(job_id in self.waiting for job_id, *_ in events):
                self.last_news = time.monotonic()
            elif time.monotonic() > self.last_news + SILENCE:
                # No event tells of a killed work horse. In this order: an event that RQ's
                # answer makes old news is still read first.
                ended = self._ask_rq()
                events = self._read_stream() + ended
                self.last_news = time.monotonic()
            return events
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.5)
            return []

    def print(self, events: list[Event]) -> None:
        """Print the events of the jobs in `waiting`, and drop the ended ones from it."""
        lines = []
        for job_id, event, detail in events:
            if job_id in self.waiting:
                lines.append(
                    f"Notification job {job_id} {LINES[event].format(detail)}\n"
                )
                if event != "progress":
                    self.waiting.remove(job_id)
        print(end="".join(lines), flush=True)

    def _read_stream(self, **options) -> list[Event]:
        events = []
        for _, entries in self.connection.xread(
            {self.stream: self.position}, **options
        ):
            for self.position, fields in entries:
                events.append(
                    tuple(fields[key].decode() for key in (b"job", b"event", b"detail"))
                )
        return events

    def _ask_rq(self) -> list[Event]:
        """Return the end of each job in `waiting` that has ended, in one round trip."""
        ids = sorted(self.waiting.copy(), key=int)
        with self.connection.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(Job.key_for(job_id), "status")
            statuses = pipe.execute()
        events = []
        for job_id, status in zip(ids, statuses):
            if status is None:
                events.append((job_id, "failed", "the job is gone from Redis"))
            elif status.decode() == JobStatus.FINISHED:
                events.append((job_id, "completed", ""))
            elif status.decode() in (
                JobStatus.FAILED,
                JobStatus.STOPPED,
                JobStatus.CANCELED,
            ):
                events.append(
                    (job_id, "failed", self._error(job_id) or status.decode())
                )
        return events

    def _error(self, job_id: str) -> str:
        """Return what RQ has kept of a job's error, as its event would have told it."""
        result = Job(job_id, self.connection).latest_result()
        if not result or not result.exc_string:
            return ""
        last_line = result.exc_string.strip().splitlines()[-1].strip("; ")
        is_traceback = result.exc_string.startswith("Traceback")
        return last_line.partition(": ")[2] if is_traceback else last_line


def main() -> None:
    """Queue the eleven jobs and print what happens to them."""
    queue = Queue(processor.QUEUE, connection=redis_client.connect())
    try:
        follower = Follower(queue)
        follower.waiting.update(job.id for job in queue_jobs(JOBS, queue))
    except redis.RedisError as error:
        sys.exit(f"Notification jobs not created: {error}")
    follower.run()


if __name__ == "__main__":
    main()
