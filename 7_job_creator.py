"""Task 8: follow jobs. The twin of 7-job_creator.js; 7_job_processor.py runs the jobs."""

import importlib
import os
import threading
import time
from collections.abc import Callable

import rq

redis_client = importlib.import_module("0_redis_client")
creator_6 = importlib.import_module("6_job_creator")
processor_7 = importlib.import_module("7_job_processor")

JOBS = [
    {"phoneNumber": "4153518780", "message": "This is the code 1234 to verify your account"},
    {"phoneNumber": "4153518781", "message": "This is the code 4562 to verify your account"},
    {"phoneNumber": "4153518743", "message": "This is the code 4321 to verify your account"},
    {"phoneNumber": "4153538781", "message": "This is the code 4562 to verify your account"},
    {"phoneNumber": "4153118782", "message": "This is the code 4321 to verify your account"},
    {"phoneNumber": "4153718781", "message": "This is the code 4562 to verify your account"},
    {"phoneNumber": "4159518782", "message": "This is the code 4321 to verify your account"},
    {"phoneNumber": "4158718781", "message": "This is the code 4562 to verify your account"},
    {"phoneNumber": "4153818782", "message": "This is the code 4321 to verify your account"},
    {"phoneNumber": "4154318781", "message": "This is the code 4562 to verify your account"},
    {"phoneNumber": "4151218782", "message": "This is the code 4321 to verify your account"},
]  # fmt: skip


def queue_jobs(jobs: list[dict], queue: rq.Queue) -> list[rq.job.Job]:
    """Queue all of `jobs` or none, and print in the background what happens to them."""
    prepared = []
    for job, job_id in zip(jobs, creator_6.new_job_ids(queue.connection, len(jobs))):
        arguments = (job["phoneNumber"], job["message"])
        options = {"job_id": job_id, **processor_7.HOOKS}
        call = queue.prepare_data(processor_7.send_notification, arguments, **options)
        prepared.append(call)
    queued = queue.enqueue_many(prepared)  # in one transaction
    for job in queued:
        print(f"Notification job created: {job.id}", flush=True)
    return follow(queued, queue, print_event)


def print_event(job: rq.job.Job, event: str, detail: object) -> None:
    """Print what happens to a job. Twin of `job.on('complete' | 'failed' | 'progress')`."""
    if event == "complete":
        print(f"Notification job {job.id} completed", flush=True)
    if event == "failed":
        print(f"Notification job {job.id} failed: {detail}", flush=True)
    if event == "progress":
        print(f"Notification job {job.id} {detail}% complete", flush=True)


def main() -> None:
    """Queue the eleven jobs, and stay until all have ended."""
    queue_jobs(JOBS, creator_6.create_queue(processor_7.QUEUE))
    wait_for_jobs()


# The exercise ends here. What follows calls the handlers of jobs, in the background.

logger = redis_client.logger
Event = processor_7.Event

# A function that is called with a job, the name of an event, and its detail.
Handler = Callable[[rq.job.Job, str, object], None]
# The jobs that are followed, by their ids. `follow` may be called more than once for a job.
Followed = dict[str, list[tuple[rq.job.Job, Handler]]]

# In seconds. So often a follower asks RQ for ends that it was not told.
SILENCE = 1
ENTRIES_AT_ONCE = 1000

followers: list["Follower"] = []
# Held to change that list, or what a follower is given to do: so none of them ends between
# being found and getting more jobs. All else of a follower belongs to its thread.
followers_lock = threading.Lock()
# One handler at a time is called, as in JavaScript. It may fork or follow jobs itself.
handler_lock = threading.RLock()


def follow(jobs: list[rq.job.Job], queue: rq.Queue, handler: Handler) -> list:
    """Call `handler` in the background with all that happens to `jobs` of `queue`.

    Twin of `job.on(…)`; returns the jobs, as that returns the job. The handler is called
    with a job, the name of an event and its detail: "progress" (percent), "complete" (what
    the job returned), "failed attempt" or "failed" (the error). It hears of everything
    since the job was created. Queue jobs with `HOOKS`, or their end is told later.
    """
    with followers_lock:
        follower = follower_of(queue)
        follower.newcomers += [(job, handler) for job in jobs]
    return jobs


def wait_for_jobs() -> None:
    """Wait until all jobs that this process follows have ended.

    Ends the script with exit status 1 if something that happened could not be told.
    """
    # Each takes itself off the list at its end.
    while followers:
        for follower in followers.copy():
            follower.join()
    if Follower.has_failed:
        Follower.has_failed = False
        raise SystemExit(1)


def follower_of(queue: rq.Queue) -> "Follower":
    """Return the follower of a queue, a new one if there is none."""
    for follower in followers:
        # RQ takes queues of one name for equal, even those of different servers.
        if follower.queue == queue and follower.connection is queue.connection:
            return follower
    follower = Follower(queue)
    follower.start()
    followers.append(follower)
    return follower


# A program may fork while it follows jobs, for a worker of RQ, say, or a process pool. What
# another thread has locked just then, its own lock or that of the output while it prints,
# stays locked in the child for ever. So a fork waits until no thread is at that.


def before_fork() -> None:
    """Wait until no handler is called, and nobody changes the followers."""
    handler_lock.acquire()
    followers_lock.acquire()


def after_fork() -> None:
    """Let the followers go on."""
    followers_lock.release()
    handler_lock.release()


def after_fork_in_child() -> None:
    """Start afresh: the child has none of its parent's threads."""
    followers.clear()
    after_fork()


os.register_at_fork(
    before=before_fork,
    after_in_parent=after_fork,
    after_in_child=after_fork_in_child,
)


class Follower(threading.Thread):
    """Reads the stream of a queue, and calls the handlers of the jobs that it follows.

    There is one for each queue, for as long as it has jobs to follow. It ends with the
    script, as a daemon would, but only between two turns: a script that wants to hear of
    all ends calls `wait_for_jobs`.
    """

    has_failed = False

    def __init__(self, queue: rq.Queue):
        # As a daemon, it could be stopped in the middle of a line.
        super().__init__(daemon=False)
        self.queue = queue
        self.connection = queue.connection
        self.stream = processor_7.stream_of(queue.name)
        # The id of the entry that was read last.
        self.position: str | bytes | None = None
        # Jobs of the latest calls, which it does not follow yet.
        self.newcomers: list[tuple[rq.job.Job, Handler]] = []
        self.followed: Followed = {}
        self.next_question = time.monotonic() + SILENCE
        self.last_refusal = ""

    def run(self) -> None:
        """Follow jobs for as long as there are some, and somebody who could be told."""
        try:
            while not self.leave_if_done() and is_anyone_there():
                self.tell_news()
        finally:
            with followers_lock:
                if self in followers:
                    # It ends early: the script has, or a handler has called `sys.exit()`.
                    followers.remove(self)
                    Follower.has_failed = True

    def leave_if_done(self) -> bool:
        """Leave if there is no job to follow, and tell so. Later calls need a new follower."""
        with followers_lock:
            if self.newcomers or self.followed:
                return False
            followers.remove(self)
            return True

    def tell_news(self) -> None:
        """Wait for events, and tell them."""
        try:
            self.admit_newcomers()
            if time.monotonic() > self.next_question:
                self.tell_lost_ends()
            # If the script has ended meanwhile, Python waits until this thread sees that.
            # So a turn takes half a silence at most.
            self.tell(self.read(wait=SILENCE / 2), self.followed)
        except redis_client.AWAY:
            # The stream keeps what happens until Redis is back.
            time.sleep(0.5)
        except Exception:
            Follower.has_failed = True
            logger.exception("Unforeseen error while following %s", self.queue)
            time.sleep(1)

    def admit_newcomers(self) -> None:
        """Follow the jobs of the latest calls, and tell what was read before they came."""
        newcomers = self.newcomers.copy()
        if not newcomers:
            return
        admitted: Followed = {}
        for job, handler in newcomers:
            admitted.setdefault(job.id, []).append((job, handler))
        start = self.position_before(newcomers)
        if self.position is None:
            self.position = start
        else:
            self.tell(self.reread(start), admitted)
        for job_id, handlers in admitted.items():
            self.followed.setdefault(job_id, []).extend(handlers)
        with followers_lock:
            # Others may have come since.
            del self.newcomers[: len(newcomers)]

    def position_before(self, newcomers: list[tuple[rq.job.Job, Handler]]) -> str:
        """Return a position in the stream from before the jobs were created.

        A position is a time in milliseconds, by the clock of Redis, which may differ from
        the one here. Two seconds are for fractions that get lost.
        """
        created_at = min(job.created_at.timestamp() for job, _ in newcomers)
        age = time.time() - created_at
        now, _ = self.connection.time()
        return str(1000 * max(0, now - int(age) - 2))

    def reread(self, start: str) -> list[tuple[bytes, dict]]:
        """Return the entries from `start` on that have been read already."""
        try:
            return self.connection.xrange(self.stream, start, self.position)
        except redis_client.REFUSED as error:
            self.report_refusal(error)
            return []

    def read(self, wait: float = 0) -> list[tuple[bytes, dict]]:
        """Return the next entries of the stream; wait up to `wait` seconds for some."""
        block = None
        if wait > 0:
            block = int(1000 * wait)
        try:
            found = self.connection.xread(
                {self.stream: self.position}, ENTRIES_AT_ONCE, block
            )
        except redis_client.REFUSED as error:
            self.report_refusal(error)
            time.sleep(wait)
            return []
        if not found:
            return []
        # It was asked for one stream: its name, and its entries.
        _, entries = found[0]
        self.position = entries[-1][0]
        return entries

    def report_refusal(self, error: Exception) -> None:
        """Say, but not twice, that the stream can't be read. RQ still knows of the ends."""
        if str(error) == self.last_refusal:
            return
        self.last_refusal = str(error)
        Follower.has_failed = True
        logger.error("Progress can't be told, as Redis refuses: %s", error)

    def tell(self, entries: list[tuple[bytes, dict]], followed: Followed) -> None:
        """Tell the events that are about jobs in `followed`."""
        for entry_id, fields in entries:
            try:
                event = Event.read(fields)
            except (KeyError, ValueError):
                logger.warning("%s in %s is no event", entry_id.decode(), self.stream)
                continue
            self.tell_event(event, followed)

    def tell_event(self, event: Event, followed: Followed) -> None:
        """Call the handlers of a job. A job that has ended is followed no more."""
        if event.job_id not in followed:
            return
        handlers = followed[event.job_id]
        if event.name in ("complete", "failed"):
            del followed[event.job_id]
        for job, handler in handlers:
            try:
                with handler_lock:
                    handler(job, event.name, event.detail)
            except Exception:
                Follower.has_failed = True
                logger.exception("Error in a handler of job %s", event.job_id)

    def tell_lost_ends(self) -> None:
        """Tell the ends of jobs that are not in the stream: a killed job writes none.

        RQ is asked first, then the stream is read to its end: whatever has ended by then
        and has written its end is told from there.
        """
        begin = time.monotonic()
        ends = self.ask_rq()
        # Thousands of jobs take a while: a tenth of the time at most.
        pause = max(SILENCE, 10 * (time.monotonic() - begin))
        self.next_question = time.monotonic() + pause
        entries = self.read()
        while entries:
            self.tell(entries, self.followed)
            entries = self.read()
        for event in ends:
            self.tell_event(event, self.followed)

    def ask_rq(self) -> list[Event]:
        """Return the ends of the followed jobs that have ended: one round trip, if none."""
        jobs = []
        for handlers in self.followed.values():
            job, _ = handlers[0]
            jobs.append(job)
        with self.connection.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(job.key, "status")
            statuses = pipe.execute()
        ends = [end_of(job, status) for job, status in zip(jobs, statuses)]
        return [event for event in ends if event is not None]


def is_anyone_there() -> bool:
    """Tell whether this process would go on, were it not for its followers."""
    for thread in threading.enumerate():
        if thread.is_alive() and not thread.daemon and not isinstance(thread, Follower):
            return True
    return False


def end_of(job: rq.job.Job, status: bytes | None) -> Event | None:
    """Return how a job with this status in Redis has ended, None if it has not."""
    if status is None:
        return Event(job.id, "failed", "the job is gone from Redis")
    if status.decode() == rq.job.JobStatus.FINISHED:
        return Event(job.id, "complete", result_of(job))
    if status.decode() in creator_6.FAILED:
        return Event(job.id, "failed", error_of(job) or status.decode())
    return None


def result_of(job: rq.job.Job) -> object:
    """Return what a job returned, None if that can't be read here."""
    try:
        return job.return_value()
    except redis_client.AWAY:
        raise
    except Exception:
        logger.exception("The result of job %s can't be read", job.id)
        return None


def error_of(job: rq.job.Job) -> str:
    """Return the last line of a failed job's error, an empty string if RQ has none."""
    result = job.latest_result()
    if result is None or not result.exc_string:
        return ""
    # What RQ says of a killed work horse ends with "; ".
    last_line = result.exc_string.strip("; \n").splitlines()[-1]
    # The last line of a traceback is "module.Class: message".
    name, _, message = last_line.partition(": ")
    if " " in name or not message:
        return last_line
    return message


if __name__ == "__main__":
    redis_client.run(main)
