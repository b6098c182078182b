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
        options = {"job_id": job_id, **processor_7.HOOKS}  # RQ calls these at its end
        data = queue.prepare_data(processor_7.send_notification, arguments, **options)
        prepared.append(data)
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
JobEvent = processor_7.JobEvent

# A function that is called with a job, the name of an event, and its detail.
Handler = Callable[[rq.job.Job, str, object], None]
# The jobs that are followed, by their ids. `follow` may be called more than once for a job.
Followed = dict[str, list[tuple[rq.job.Job, Handler]]]

# How often RQ is asked, in seconds, which jobs have ended, in case an event is missing.
CHECK_INTERVAL = 1
# How many events are read at once.
ENTRIES_AT_ONCE = 1000

followers: list["Follower"] = []
# Held while `followers` or the `newcomers` of a follower are changed. Without it, a follower
# could end just when it is given more jobs. Its other attributes belong to its own thread.
followers_lock = threading.Lock()
# Held while a handler is called, so that handlers run one at a time, as in JavaScript. A
# handler may fork, which takes this lock again: an RLock allows that to the same thread.
handler_lock = threading.RLock()


def follow(jobs: list[rq.job.Job], queue: rq.Queue, handler: Handler) -> list:
    """Call `handler` in the background for all that happens to `jobs` of `queue`.

    Twin of `job.on(…)`. Returns the jobs, as `job.on` returns the job. The handler is
    called with a job, the name of an event and its detail: "progress" (percent), "complete"
    (what the job returned), "failed attempt" or "failed" (the error). It gets all events
    since the job was created. Queue the jobs with `HOOKS`, or their ends come later.
    """
    with followers_lock:
        follower = follower_of(queue)
        follower.newcomers += [(job, handler) for job in jobs]
    return jobs


def wait_for_jobs() -> None:
    """Wait until all jobs that this process follows have ended.

    Ends the script with status 1 if there was an error in a handler or while following.
    """
    # A follower removes itself from the list when it ends.
    while followers:
        for follower in followers.copy():
            follower.join()
    if Follower.has_failed:
        Follower.has_failed = False
        raise SystemExit(1)


def follower_of(queue: rq.Queue) -> "Follower":
    """Return the follower of a queue. Start one if there is none."""
    for follower in followers:
        # Queues of two servers are equal to RQ if their names are.
        if follower.queue == queue and follower.connection is queue.connection:
            return follower
    follower = Follower(queue)
    follower.start()
    followers.append(follower)
    return follower


# A program that follows jobs may also fork: RQ's `Worker` does, and process pools do. A fork
# copies the locks, but only the thread that forks. A lock that another thread holds at that
# moment, such as that of the output, would be locked in the child for ever. So a fork waits
# until no other thread holds one.


def before_fork() -> None:
    """Wait until no handler runs, and nobody changes the followers."""
    handler_lock.acquire()
    followers_lock.acquire()


def after_fork() -> None:
    """Let the followers go on."""
    followers_lock.release()
    handler_lock.release()


def after_fork_in_child() -> None:
    """Forget the followers: their threads are in the parent."""
    followers.clear()
    after_fork()


os.register_at_fork(
    before=before_fork,
    after_in_parent=after_fork,
    after_in_child=after_fork_in_child,
)


class Follower(threading.Thread):
    """Reads the stream of a queue, and calls the handlers of the jobs that it follows.

    Each queue has one, while there are jobs to follow. It ends when the script ends, as a
    daemon thread does, but never in the middle of a handler. So a script that wants to hear
    of all ends must call `wait_for_jobs`.
    """

    has_failed = False

    def __init__(self, queue: rq.Queue):
        # Python stops a daemon thread wherever it is, even in the middle of a line.
        super().__init__(daemon=False)
        self.queue = queue
        self.connection = queue.connection
        self.stream = processor_7.stream_of(queue.name)
        # The id of the last entry that was read.
        self.position: str | bytes | None = None
        # Jobs that `follow` was called with, and that are not yet followed.
        self.newcomers: list[tuple[rq.job.Job, Handler]] = []
        self.followed: Followed = {}
        self.next_check = time.monotonic() + CHECK_INTERVAL
        self.last_refusal = ""

    def run(self) -> None:
        """Follow jobs until all have ended, or the script has. The thread runs this."""
        try:
            while is_script_running():
                if self.leave_if_done():
                    return
                self.take_turn()
        finally:
            with followers_lock:
                # It is still there if the script has ended before the jobs, or if a handler
                # has called `sys.exit()`.
                if self in followers:
                    followers.remove(self)
                    Follower.has_failed = True

    def leave_if_done(self) -> bool:
        """Leave `followers` and return True if there is no job to follow."""
        with followers_lock:
            if self.newcomers or self.followed:
                return False
            followers.remove(self)
            return True

    def take_turn(self) -> None:
        """Wait for events, and handle them."""
        try:
            self.admit_newcomers()
            if time.monotonic() > self.next_check:
                self.handle_lost_ends()
            # Not for long: when the script ends, Python waits for the end of this turn.
            entries = self.read(wait=CHECK_INTERVAL / 2)
            self.handle_entries(entries, self.followed)
        except redis_client.REFUSED as error:
            self.report_refusal(error)
            time.sleep(1)
        except redis_client.AWAY:
            # The stream keeps the events until Redis is back.
            time.sleep(0.5)
        except Exception:
            Follower.has_failed = True
            logger.exception("Unforeseen error while following %s", self.queue)
            time.sleep(1)

    def admit_newcomers(self) -> None:
        """Begin to follow the newcomers; handle the events that were read before they came."""
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
            self.handle_entries(self.reread(start), admitted)
        for job_id, handlers in admitted.items():
            self.followed.setdefault(job_id, []).extend(handlers)
        with followers_lock:
            # More may have come meanwhile.
            del self.newcomers[: len(newcomers)]

    def position_before(self, newcomers: list[tuple[rq.job.Job, Handler]]) -> str:
        """Return a position in the stream from before the jobs were created.

        A position is a time in milliseconds, by the clock of Redis. That may differ from the
        clock of this machine, so the age of the jobs is subtracted from the time of Redis.
        (For a job from another machine, whose clock is wrong, the first events may be missed.)
        """
        created_at = min(job.created_at.timestamp() for job, _ in newcomers)
        age = time.time() - created_at
        now, _ = self.connection.time()
        # Both are whole seconds now. Two seconds more make up for what was cut off.
        return str(1000 * max(0, now - int(age) - 2))

    def reread(self, start: str) -> list[tuple[bytes, dict]]:
        """Return the entries from `start` to the last one that was read."""
        try:
            return self.connection.xrange(self.stream, start, self.position)
        except redis_client.REFUSED as error:
            self.report_refusal(error)
            return []

    def read(self, wait: float = 0) -> list[tuple[bytes, dict]]:
        """Return the next entries of the stream. Wait for some, up to `wait` seconds."""
        block = None
        if wait > 0:
            block = int(1000 * wait)
        try:
            found = self.connection.xread(
                {self.stream: self.position}, ENTRIES_AT_ONCE, block
            )
        except redis_client.REFUSED as error:
            # Go on. RQ still knows which jobs have ended.
            self.report_refusal(error)
            time.sleep(wait)
            return []
        if not found:
            return []
        # For each stream, its name and its entries. There is only one.
        _, entries = found[0]
        self.position = entries[-1][0]
        return entries

    def report_refusal(self, error: Exception) -> None:
        """Log, but not twice, that Redis refuses what the follower asks for."""
        if str(error) == self.last_refusal:
            return
        self.last_refusal = str(error)
        Follower.has_failed = True
        logger.error("Progress can't be told, as Redis refuses: %s", error)

    def handle_entries(
        self, entries: list[tuple[bytes, dict]], followed: Followed
    ) -> None:
        """Handle the events in some entries of the stream, for the jobs in `followed`."""
        for entry_id, fields in entries:
            try:
                event = JobEvent.read(fields)
            except (KeyError, ValueError):
                logger.warning("%s in %s is no event", entry_id.decode(), self.stream)
                continue
            self.handle_event(event, followed)

    def handle_event(self, event: JobEvent, followed: Followed) -> None:
        """Call the handlers of a job. After its end, it is followed no more."""
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

    def handle_lost_ends(self) -> None:
        """Handle the ends that are not in the stream. A killed job, for example, writes none.

        First ask RQ, then read the stream to its end: a job that has ended before RQ was
        asked, and has written an event, is handled by that event.
        """
        begin = time.monotonic()
        ends = self.ask_rq()
        # For thousands of jobs this takes long. Spend a tenth of the time on it at most.
        pause = max(CHECK_INTERVAL, 10 * (time.monotonic() - begin))
        self.next_check = time.monotonic() + pause
        entries = self.read()
        while entries:
            self.handle_entries(entries, self.followed)
            entries = self.read()
        for event in ends:
            self.handle_event(event, self.followed)

    def ask_rq(self) -> list[JobEvent]:
        """Ask RQ for the followed jobs; return an event for each that has ended."""
        jobs = []
        for handlers in self.followed.values():
            job, _ = handlers[0]
            jobs.append(job)
        # All in one round trip.
        with self.connection.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(job.key, "status")
            statuses = pipe.execute()
        ends = [end_of(job, status) for job, status in zip(jobs, statuses)]
        return [event for event in ends if event is not None]


def is_script_running() -> bool:
    """Return whether any thread runs that keeps the script alive, followers not counted."""
    for thread in threading.enumerate():
        if thread.is_alive() and not thread.daemon and not isinstance(thread, Follower):
            return True
    return False


def end_of(job: rq.job.Job, status: bytes | None) -> JobEvent | None:
    """Return the event for the end of a job with this status, None if it has not ended."""
    if status is None:
        return JobEvent(job.id, "failed", "the job is gone from Redis")
    if status.decode() == rq.job.JobStatus.FINISHED:
        return JobEvent(job.id, "complete", result_of(job))
    if status.decode() in creator_6.FAILED:
        return JobEvent(job.id, "failed", error_of(job) or status.decode())
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
    """Return the error of a failed job, as far as RQ knows it. It has a traceback, or a text.

    Of an error with several lines, this is the last one. It is empty if RQ has none.
    """
    result = job.latest_result()
    if result is None or not result.exc_string:
        return ""
    # The text that RQ writes for a killed work horse ends with "; ".
    last_line = result.exc_string.strip("; \n").splitlines()[-1]
    # The last line of a traceback is "module.Class: message".
    name, _, message = last_line.partition(": ")
    if " " in name or not message:
        return last_line
    return message


if __name__ == "__main__":
    redis_client.run(main)
