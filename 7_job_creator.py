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
    """Queue all of `jobs` or none, and print what happens to them. Return the RQ jobs."""
    prepared = []
    for entry, job_id in zip(jobs, creator_6.new_job_ids(queue.connection, len(jobs))):
        arguments = (entry["phoneNumber"], entry["message"])
        options = {"job_id": job_id, **processor_7.HOOKS}  # HOOKS report how it ends
        data = queue.prepare_data(processor_7.send_notification, arguments, **options)
        prepared.append(data)
    queued = queue.enqueue_many(prepared)  # in one transaction
    for job in queued:
        print(f"Notification job created: {job.id}", flush=True)
    return follow(queued, queue, print_event)  # in the background; returns the jobs


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


# The exercise ends here. The rest is for a second reading: followers. A follower is a thread in the
# background, one for each queue. It reads the events that 7_job_processor.py writes, and calls the
# handlers.
#
# 1. While a job runs, it may write "progress" to the stream of its queue.
# 2. When it has run, RQ calls the `HOOKS`, which write "complete" or "failed" to the stream.
# 3. Only after that, RQ records that the job has ended. A handler may want to ask RQ for the
#    job, to delete or requeue it. So the follower waits for this before it calls the handler.
# 4. A job that is killed does not write to the stream. But RQ records its end. So once a second,
#    the follower asks RQ which jobs have ended.
# 5. If `follow` is called again for a queue, its follower runs already. It may have read past the
#    first events of the new jobs, when nobody listened to them. So it goes back in the stream, to
#    where the new jobs were created. There it reads events of other jobs a second time. So each
#    listener (a job and its handler) remembers how far it has heard, and hears nothing twice.
# 6. At the end of a script, Python stops daemon threads, perhaps in the middle of a line, and waits
#    for the rest. So a follower is not a daemon. But it must not keep the script alive for ever: when
#    only followers are left, each of them ends, even if its jobs still run. A script that wants to
#    hear of all ends calls `wait_for_jobs`.

logger = redis_client.logger
JobEvent = processor_7.JobEvent
JobStatus = rq.job.JobStatus

# A function that is called with a job, the name of an event, and its detail.
Handler = Callable[[rq.job.Job, str, object], None]
# A place in the stream: the milliseconds, by the clock of Redis, and a number that counts within
# one millisecond. The id of an entry, such as b"1700000000000-0", holds the same.
Position = tuple[int, int]

# The threads that follow jobs, one for each queue.
followers: set["Follower"] = set()
# A follower ends when it has no jobs. Without this lock, it could end in just the moment in which
# `follow` gives it some. So `follow` holds the lock, and so does a follower that ends.
followers_lock = threading.Lock()
# Held while a handler is called: one at a time, as in JavaScript. (Why an `RLock`: see "Forks", at
# the end. Without forks, a `Lock` would do.)
handler_lock = threading.RLock()


def follow(jobs: list[rq.job.Job], queue: rq.Queue, handler: Handler) -> list:
    """Call `handler` in the background for all that happens to `jobs` of `queue`.

    Twin of `job.on(…)`. Returns the jobs, as `job.on` returns the job. The handler is
    called with a job, the name of an event and its detail:

    - "progress": the percent,
    - "complete": what the job returned, through JSON,
    - "failed attempt" or "failed": the error.

    It hears of all events since the job was created. (A job that has been requeued can't be
    followed again: the handler would hear of the first end.) If a job was queued without `HOOKS`,
    it hears of the end up to a second later.

    However often this is called, it takes one thread and one connection for each queue and client.
    (`create_queue` makes a new client each time. So keep the `Queue` that it returns.)
    """
    with followers_lock:
        follower = follower_of(queue)
        follower.newcomers += [Listener(job, handler) for job in jobs]
        if follower not in followers:
            follower.start()
            followers.add(follower)
    return jobs


def wait_for_jobs() -> None:
    """Wait until all jobs that this process follows have ended.

    Ends the script with status 1 if there was an error in a handler or while following.
    A handler can't call this: its follower would wait for itself, or for one that waits to call
    a handler. That raises RuntimeError.
    """
    if threading.current_thread() in followers:
        raise RuntimeError("A handler can't wait for jobs")
    # A handler may call `follow`, and so start another follower. So look until there is none.
    while followers:
        # A copy, because each leaves the set when it ends. (Python copies a set in one step, so that
        # needs no lock.)
        for follower in followers.copy():
            follower.join()
    if Follower.has_failed:
        # The caller may catch the `SystemExit`, and go on.
        Follower.has_failed = False
        raise SystemExit(1)


def follower_of(queue: rq.Queue) -> "Follower":
    """Return the follower of a queue, or a new one, which is not started yet."""
    for follower in followers:
        # To RQ, queues with the same name are equal, even those of two servers. So compare the
        # clients, too.
        if follower.queue == queue and follower.connection is queue.connection:
            return follower
    return Follower(queue)


class Listener:
    """A job that is followed, and its handler."""

    def __init__(self, job: rq.job.Job, handler: Handler):
        self.job = job
        self.handler = handler
        # The position of the last event that it has heard.
        self.position: Position = (0, 0)


# The events after which nothing more happens to a job.
ENDS = ("complete", "failed")

# How often RQ is asked, in seconds, which jobs have ended, in case an event is missing.
CHECK_INTERVAL = 1
# How many events are read at once, at most.
ENTRIES_AT_ONCE = 1000
# The pause, in seconds, between two reads of the stream: under load, several events come in that
# time and are read at once, which costs less. Also between two looks in `wait_for_records`.
PAUSE = 0.002
# How many seconds RQ may take to record an end, after its event has been read.
RECORD_TIMEOUT = 1


class Follower(threading.Thread):
    """Reads the stream of a queue, and calls the handlers of the jobs that it follows.

        run                                 while `is_script_running`
            leave_if_done
            take_turn                       again and again:
                admit_newcomers             begins to follow the jobs given by `follow`
                handle_lost_ends            once a second
                    statuses_of             asks RQ which jobs have ended
                    handle_news             until all entries of the stream are read
                    handle_event            for the jobs that have not written their end
                handle_news
                    read_entries            waits for entries in the stream
                    handle_entries
                        wait_for_records    until RQ has recorded the ends
                        handle_event        calls the handlers of a job
            leave_anyway

    If Redis refuses to read the stream, `read_entries` returns nothing, so that `handle_lost_ends`
    still learns of the ends from RQ. Any other refusal ends the turn.
    """

    # One flag for all followers: `wait_for_jobs` reads it when they have ended.
    has_failed = False

    def __init__(self, queue: rq.Queue):
        # Otherwise it would be a daemon if the thread that calls `follow` is one.
        super().__init__(daemon=False)
        self.queue = queue
        # A client of redis-py has a pool of connections, and borrows one for each command. So other
        # threads can use the same client while the follower waits.
        self.connection = queue.connection
        self.stream = processor_7.stream_of(queue.name)
        # The stream has been read up to here. `admit_newcomers` sets it when the first jobs come.
        self.position: Position | None = None
        # From `follow`, for the next turn.
        self.newcomers: list[Listener] = []
        # By the ids of their jobs. If `follow` was called twice for a job, it has two.
        self.listeners: dict[str, list[Listener]] = {}
        self.next_check = time.monotonic() + CHECK_INTERVAL
        # What Redis has refused, so that nothing is logged twice.
        self.refusals: set[str] = set()

    def run(self) -> None:
        """Follow jobs. `start` calls this in the new thread."""
        try:
            while is_script_running():
                if self.leave_if_done():
                    return
                self.take_turn()
        finally:
            self.leave_anyway()

    def leave_if_done(self) -> bool:
        """Leave `followers` and return True if there is no job to follow."""
        with followers_lock:
            if self.newcomers or self.listeners:
                return False
            followers.remove(self)
            return True

    def leave_anyway(self) -> None:
        """Leave `followers`, if `leave_if_done` has not done so. There are two cases:

        1. The script has ended. Nobody is left to read `has_failed`, so setting it does no harm.
        2. A handler has called `sys.exit()`. That is not caught by the `except Exception` in
           `handle_event`, and ends only this thread. By `has_failed`, `wait_for_jobs` ends the
           script, with status 1.
        """
        with followers_lock:
            if self in followers:
                Follower.has_failed = True
                followers.remove(self)

    def take_turn(self) -> None:
        """Admit newcomers, handle lost ends, and handle news, once."""
        try:
            self.admit_newcomers()
            if time.monotonic() > self.next_check:
                self.handle_lost_ends()
            # This must not wait for long, because Python waits for this thread at the script's end.
            self.handle_news(wait=CHECK_INTERVAL / 2)
            time.sleep(PAUSE)
        except redis_client.REFUSED as error:
            self.report_refusal(error)
            time.sleep(1)
        except redis_client.AWAY:
            # The stream keeps the events until Redis is back.
            time.sleep(0.5)
        except Exception:
            # Try again, for as long as it takes: somebody may mend what is wrong in Redis.
            Follower.has_failed = True
            logger.exception("Unforeseen error while following %s", self.queue)
            time.sleep(1)

    def admit_newcomers(self) -> None:
        """Begin to follow the newcomers.

        Some of their events may have been read already. So go back in the stream, to where the
        jobs were created. `handle_event` calls no handler twice for the same event.
        """
        # Don't hold the lock while Redis is asked, or `follow` would wait for Redis, too. And keep the
        # newcomers on the list until Redis has answered, or they would be lost if it is away.
        with followers_lock:
            newcomers = self.newcomers.copy()
        if not newcomers:
            return
        jobs = [listener.job for listener in newcomers]
        before = self.position_before(jobs)
        if self.position is None or before < self.position:
            self.position = before
        for listener in newcomers:
            self.listeners.setdefault(listener.job.id, []).append(listener)
        with followers_lock:
            # More may have come meanwhile.
            del self.newcomers[: len(newcomers)]

    def position_before(self, jobs: list[rq.job.Job]) -> Position:
        """Return a position in the stream from before the jobs were created.

        RQ knows when that was by the clock of this machine. Positions are by the clock of
        Redis, which may be wrong. But both clocks agree on how long ago it was. If a job was
        created at 12:00:00, and it is 12:00:05 now, that was 5 s ago. If Redis says that it is
        15:00:05 now, the stream is read from 15:00:00 on. (If another machine has created the
        jobs, and its clock is wrong, events may be missed.)
        """
        created_at = min(job.created_at.timestamp() for job in jobs)
        # Ask Redis first. If its answer takes 3 s, the age is 3 s too large, and the position 3 s too
        # early, which does no harm. The other way round, it would be too late.
        seconds, _microseconds = self.connection.time()
        age = time.time() - created_at
        # A second earlier, as clocks are not exact.
        milliseconds = int(1000 * (seconds - age - 1))
        return milliseconds, 0

    def handle_lost_ends(self) -> None:
        """Handle the ends that are not in the stream. A killed job, for example, writes none.

        1. Ask RQ which jobs have ended.
        2. Read the stream to its end. RQ records an end after its event. So what these jobs have
           written is there by now, and is handled here.
        3. If one of them is still followed, it has not written its end. Handle that.
        """
        job_ids = list(self.listeners)
        begin = time.monotonic()
        statuses = self.statuses_of(job_ids)
        # To ask about thousands of jobs takes a while. So the pause is at least ten times as long.
        pause = max(CHECK_INTERVAL, 10 * (time.monotonic() - begin))
        self.next_check = time.monotonic() + pause
        while self.handle_news():
            pass
        # `handle_event` skips what is not later than a listener's position. This is later than all.
        after_all = (2**63, 0)
        for job_id, status in zip(job_ids, statuses):
            if job_id in self.listeners and has_ended(status):
                # Any of its listeners knows the job.
                job = self.listeners[job_id][0].job
                self.handle_event(end_of(job, status), after_all)

    def statuses_of(self, job_ids: list[str]) -> list[str | None]:
        """Return the statuses of jobs in RQ, in one round trip. None is for a job that is gone."""
        with self.connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(rq.job.Job.key_for(job_id), "status")
            answers = pipe.execute()
        statuses: list[str | None] = []
        for answer in answers:
            if answer is None:
                statuses.append(None)
            else:
                statuses.append(answer.decode())
        return statuses

    def handle_news(self, wait: float = 0) -> bool:
        """Read the next entries, and handle them. Return whether there may be more.

        `take_turn` waits for some. `handle_lost_ends` does not wait, and calls this until there
        are none.
        """
        entries = self.read_entries(wait)
        if not entries:
            return False
        self.handle_entries(entries)
        # Move on only after that: if Redis goes away in `handle_entries`, which asks RQ, these entries
        # are to be read again.
        last_id, _ = entries[-1]
        self.position = position_of(last_id)
        return len(entries) == ENTRIES_AT_ONCE

    def read_entries(self, wait: float = 0) -> list[tuple[bytes, dict]]:
        """Return the next entries of the stream. Wait for some, up to `wait` seconds.

        If Redis refuses to read it, there are none. RQ still knows which jobs have ended.
        """
        # `admit_newcomers` has set the position.
        milliseconds, number = self.position
        last_id = f"{milliseconds}-{number}"
        # For Redis, in milliseconds. 0 would be for ever, None is not at all.
        block = None
        if wait > 0:
            block = max(1, int(1000 * wait))
        try:
            answer = self.connection.xread(
                {self.stream: last_id}, count=ENTRIES_AT_ONCE, block=block
            )
        except redis_client.REFUSED as error:
            self.report_refusal(error)
            time.sleep(wait)
            return []
        if not answer:
            return []
        # Like [(stream, [(id, fields), (id, fields)])].
        _, entries = answer[0]
        return entries

    def report_refusal(self, error: Exception) -> None:
        """Log, but not twice, that Redis refuses what the follower asks for."""
        if str(error) in self.refusals:
            return
        self.refusals.add(str(error))
        Follower.has_failed = True
        logger.error("Redis refuses what is needed to follow jobs: %s", error)

    def handle_entries(self, entries: list[tuple[bytes, dict]]) -> None:
        """Handle the events in some entries of the stream, as far as their jobs are followed."""
        news = []
        ended = []
        for entry_id, fields in entries:
            job_id = fields.get(b"job", b"").decode(errors="replace")
            if job_id not in self.listeners:
                continue
            try:
                event = JobEvent.read(fields)
            except (KeyError, ValueError, RecursionError):
                logger.warning("%s in %s is no event", entry_id.decode(), self.stream)
                continue
            news.append((event, position_of(entry_id)))
            if event.name in ENDS:
                ended.append(job_id)
        if ended:
            self.wait_for_records(ended)
        for event, position in news:
            self.handle_event(event, position)

    def wait_for_records(self, job_ids: list[str]) -> None:
        """Wait until none of the jobs is `started` any more, for RECORD_TIMEOUT at most.

        There is a limit because a job stays `started` for a minute if its worker is killed at just
        this moment.
        """
        end = time.monotonic() + RECORD_TIMEOUT
        # The members of `JobStatus` are strings: this one is equal to "started".
        while JobStatus.STARTED in self.statuses_of(job_ids):
            if time.monotonic() > end:
                return
            time.sleep(PAUSE)

    def handle_event(self, event: JobEvent, position: Position) -> None:
        """Call the handlers of a job, if they have not been called for this position yet.

        After its end, a job is followed no more.
        """
        listeners = self.listeners.get(event.job_id, [])
        for listener in listeners:
            if listener.position >= position:
                continue
            listener.position = position
            try:
                with handler_lock:
                    listener.handler(listener.job, event.name, event.detail)
            except Exception:
                Follower.has_failed = True
                logger.exception("Error in a handler of job %s", event.job_id)
        if event.name in ENDS:
            self.listeners.pop(event.job_id, None)


def is_script_running() -> bool:
    """Return whether a thread runs that keeps the script alive, other than followers.

    That is a thread which is not a daemon: Python waits for it. But followers don't count, or two
    of them would wait for each other.
    """
    # Ask this first: see "Forks", at the end.
    if threading.main_thread().is_alive():
        return True
    for thread in threading.enumerate():
        # The list still contains the main thread, which has ended. So ask `is_alive`.
        if thread.is_alive() and not thread.daemon and not isinstance(thread, Follower):
            return True
    return False


def position_of(entry_id: bytes) -> Position:
    """Return the position of an entry of the stream."""
    milliseconds, _, number = entry_id.decode().partition("-")
    return int(milliseconds), int(number)


def has_ended(status: str | None) -> bool:
    """Return whether a job with this status has ended."""
    return status is None or status in creator_6.ENDED


def end_of(job: rq.job.Job, status: str | None) -> JobEvent:
    """Return the event for the end of a job that has ended with this status."""
    if status is None:
        return JobEvent(job.id, "failed", "the job is gone from Redis")
    result = result_of(job)
    if status == JobStatus.FINISHED:
        value = None
        if result is not None:
            value = processor_7.through_json(result.return_value)
        return JobEvent(job.id, "complete", value)
    error = ""
    if result is not None:
        error = error_in(result.exc_string)
    # A canceled job has no error, for example.
    return JobEvent(job.id, "failed", error or status)


def result_of(job: rq.job.Job) -> rq.results.Result | None:
    """Return what RQ has recorded at the end of a job, or None if that can't be read here."""
    try:
        return job.latest_result()
    except redis_client.AWAY:
        # For `take_turn`: it waits if Redis is away, and logs a wrong password.
        raise
    except Exception:
        # What a job returns is pickled, and this program may lack the class of it. Or Redis refuses
        # to tell.
        Follower.has_failed = True
        logger.exception("The result of job %s can't be read", job.id)
        return None


def error_in(text: str | None) -> str:
    """Return the error in a text that RQ has recorded, without its class; "" if there is none.

    The text is like "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); ", or it is
    a traceback, such as

        Traceback (most recent call last):
          File "shop.py", line 7, in pay
            raise PaymentError("no money: none at all")
        shop.PaymentError: no money: none at all
    """
    if not text:
        return ""
    header = "Traceback (most recent call last):\n"
    if header not in text:
        return text.rstrip("; ")
    _, _, rest = text.rpartition(header)
    lines = rest.splitlines()
    # Skip where it happened.
    while lines and lines[0].startswith(" "):
        del lines[0]
    error = "\n".join(lines)
    # What stands before the first ": " is a class only if it has no space in it.
    name, _, message = error.partition(": ")
    if " " in name or not message:
        return error
    return message


# Forks. Skip this unless your program forks while it follows jobs, for example by `multiprocessing`.
#
# In the child, only the thread that forked goes on. What another thread had locked at that moment
# stays locked there for ever: one of the two locks, or the output, while a handler prints. So before
# a fork, take both locks: then no other thread has them, and no handler prints. After the fork,
# release them in the parent, and make new ones in the child.
#
# A handler may fork, too. Its thread holds `handler_lock` already, and takes it a second time, as an
# `RLock` allows. In the child, this thread is the only one. It does what the child is for, and exits,
# without returning from the handler. (A child of `multiprocessing` does so by itself. After a bare
# `os.fork`, call `os._exit`.) So the old lock stays held there, and a new follower in the child would
# wait for it for ever. It needs the new lock. (To `is_script_running`, this thread counts as the main
# thread of the child, although it is a `Follower`.)


def before_fork() -> None:
    """Take both locks.

    Wait for a handler for a second at most: it may take long, or it may wait for the very thread
    that forks. After that second, the fork takes place even if a handler is printing.
    """
    handler_lock.acquire(timeout=1)
    followers_lock.acquire()


def after_fork_in_parent() -> None:
    """Release both locks."""
    followers_lock.release()
    try:
        handler_lock.release()
    except RuntimeError:
        # `acquire` has timed out, so this thread does not have that lock.
        pass


def after_fork_in_child() -> None:
    """Begin anew: with new locks, and without followers, as their threads are gone."""
    global followers_lock, handler_lock
    followers_lock = threading.Lock()
    handler_lock = threading.RLock()
    followers.clear()
    Follower.has_failed = False


os.register_at_fork(
    before=before_fork,
    after_in_parent=after_fork_in_parent,
    after_in_child=after_fork_in_child,
)


if __name__ == "__main__":
    redis_client.run(main)
