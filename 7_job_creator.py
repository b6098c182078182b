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
from rq.connections import parse_connection
from rq.job import Job

redis_client = importlib.import_module("0_redis_client")
job_creator = importlib.import_module("6_job_creator")
processor = importlib.import_module("7_job_processor")

JOBS = [
    {
        "phoneNumber": number,
        "message": f"This is the code {code} to verify your account",
    }
    for number, code in [
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

SILENCE = 1.0  # seconds without news of its jobs after which a follower asks RQ

Event = tuple[str, str, str]  # job id, event, detail


def queue_jobs(jobs: list[dict], queue: Queue) -> list[Job]:
    """Queue a job for each of `jobs`, all of them or none, and print their ids."""
    ids = job_creator.new_job_ids(queue.connection, len(jobs))
    callbacks = {
        "on_success": Callback(processor.report_completed),
        "on_failure": Callback(processor.report_failed),
    }
    with queue.connection.pipeline() as pipe:
        # Any key would do: while it watches, redis-py raises an error if the connection
        # breaks, where a client that retries would queue the list twice.
        pipe.watch(Job.key_for(ids[0]))
        pipe.multi()
        queued = queue.enqueue_many(
            [
                Queue.prepare_data(
                    processor.send_notification,
                    (job["phoneNumber"], job["message"]),
                    job_id=job_id,
                    # What RQ shows and logs; by default all arguments, the message too.
                    description=f"Notification to {job['phoneNumber']!r}",
                    **callbacks,
                )
                for job_id, job in zip(ids, jobs)
            ],
            pipeline=pipe,
        )
        pipe.execute()
    for job in queued:
        print(f"Notification job created: {job.id}", flush=True)
    return queued


class Follower:
    """Prints what happens to the jobs whose ids are in `waiting`, until each has ended.

    Twin of the job's `progress`, `complete` and `failed` events. Make it before the
    jobs are queued: it remembers where in the stream to begin.
    """

    def __init__(self, queue: Queue):
        # A connection of its own, as it waits long; the caller's may have a shorter
        # timeout, or be the only one.
        client_class, connection_class, options = parse_connection(queue.connection)
        options |= {"socket_timeout": 5, "decode_responses": False}
        pool = redis.ConnectionPool(connection_class=connection_class, **options)
        self.connection = client_class(connection_pool=pool)
        self.stream = processor.events_key(queue.name)
        last = self.connection.xrevrange(self.stream, count=1)
        self.position = last[0][0] if last else "0"
        self.waiting: set[str] = set()
        self.last_news = time.monotonic()

    def read(self) -> list[Event]:
        """Wait for the next events of any job, for `SILENCE` seconds at most.

        While Redis is away there are none; what is missed then comes afterwards.
        """
        try:
            events = self._read_stream(count=1000, block=int(1000 * SILENCE))
            if any(job_id in self.waiting for job_id, *_ in events):
                self.last_news = time.monotonic()
            # Asking about thousands of jobs takes long, and so happens less often.
            allowed_silence = SILENCE * (1 + len(self.waiting) / 2000)
            if time.monotonic() - self.last_news > allowed_silence:
                events += self._ask_rq()
                self.last_news = time.monotonic()
            return events
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.5)
            return []

    def show(self, events: list[Event]) -> None:
        """Print the events of the jobs in `waiting`, and drop the ended ones from it."""
        lines = []
        for job_id, event, detail in events:
            if job_id in self.waiting:
                line = LINES[event].format(detail)
                lines.append(f"Notification job {job_id} {line}\n")
                if event != "progress":
                    self.waiting.remove(job_id)
        print("".join(lines), end="", flush=True)

    def _read_stream(self, **options) -> list[Event]:
        # [[stream, [(id, fields), …]]], or [] if there is nothing new
        streams = self.connection.xread({self.stream: self.position}, **options)
        entries = streams[0][1] if streams else []
        if entries:
            self.position = entries[-1][0]
        keys = b"job", b"event", b"detail"
        return [tuple(fields[key].decode() for key in keys) for _, fields in entries]

    def _ask_rq(self) -> list[Event]:
        """Ask RQ which jobs have ended: a killed work horse writes no event."""
        ids = sorted(self.waiting, key=int)
        ended = job_creator.ended_jobs(ids, self.connection)
        # Events written before RQ answered go first: "50%" before "completed".
        return self._read_stream() + [
            (job_id, "failed" if error else "completed", error or "")
            for job_id, error in ended.items()
        ]


def main() -> None:
    """Queue the eleven jobs and print what happens to them."""
    queue = Queue(processor.QUEUE, connection=redis_client.connect())
    try:
        follower = Follower(queue)
        follower.waiting.update(job.id for job in queue_jobs(JOBS, queue))
    except redis.RedisError as error:
        sys.exit(f"Notification jobs not created: {error}")
    while follower.waiting:
        follower.show(follower.read())


if __name__ == "__main__":
    main()
