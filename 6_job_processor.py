"""Task 7: process jobs, one at a time. The twin of 6-job_processor.js."""

import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, SimpleWorker, Worker
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import is_suspended
from rq.timeouts import HorseMonitorTimeoutException
from rq.utils import now
from rq.worker import BaseWorker, WorkerStatus

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`. Twin of `sendNotification`."""
    line = f"Sending notification to {phone_number}, with message: {message}"
    # `rq worker` may run this function, too. RQ does not flush the output at the end of a job.
    print(line, flush=True)


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`."""
    client = redis_client.create_client()
    client.ping()  # without Redis, end here: the worker would wait for it
    # The worker is defined below. It is given no function to call: each job names its own.
    PatientWorker([QUEUE], connection=client).work()


# The exercise ends here. RQ's own `Worker` would do for it. The rest is for a second reading:
# workers that also wait while Redis is away, lose no job when they are stopped, and queue
# delayed jobs.
#
# RQ's `work` is a loop that calls other methods. This is that loop, in short. The classes at the
# end of this file override all of these methods.
#
#     work                                    repeats this until a method raises `StopRequested` (or,
#                                             with RQ's option `burst`, until the queue is empty):
#         check_for_suspension                waits while `rq suspend` is in force
#             heartbeat
#         run_maintenance_tasks               looks for dead workers
#         dequeue_job_and_maintain_ttl        waits for a job; before each second of that:
#             heartbeat
#             run_maintenance_tasks
#         execute_job                         forks a work horse
#             perform_job                     in the work horse (a `SimpleWorker` has none)
#                 handle_exception            after an error of the job
#             monitor_work_horse              meanwhile, in the worker, again and again:
#                 wait_for_horse              for JOB_MONITORING_INTERVAL seconds at most
#                 heartbeat                   (RQ also renews the lease of the job)
#         heartbeat
#
#     request_stop                            at a first signal, in the middle of any of these
#         set_shutdown_requested_date
#     request_force_stop                      at a second signal
#     set_state                               called by most of these
#
# A stop:
#
# 1. A first signal may come at any moment. If no job runs, RQ's own `request_stop` raises an error
#    there and then, and a job that is just arriving would be lost. Here, it only notes the signal,
#    and starts a thread for `enforce_stop`.
# 2. A job in hand is finished, and one that has just arrived is run.
# 3. Before the worker waits for another job, `run_maintenance_tasks` sees the note, and raises
#    `StopRequested`, which ends `work`.
# 4. If Redis is away, the worker waits for it, and does not get to step 3. Then `enforce_stop` ends
#    the process.
# 5. A second signal comes to `request_force_stop`. If it comes within a second of the first, RQ
#    ignores it. Otherwise the job in hand is given up: RQ kills the work horse, and raises
#    `SystemExit`, which ends `work` and the process.


# Waiting for Redis.

# Seconds until a command is tried again.
RETRY_INTERVAL = 0.5

# What Redis answers when its memory is full (out of memory), or its disk.
FULL = (
    "OOM command not allowed",
    "MISCONF Redis is configured to save",
    "MISCONF Errors writing to the AOF file",
)


def is_full(error: Exception) -> bool:
    """Return whether Redis has refused a command because its memory or its disk is full.

    For a full memory, redis-py has a class, whose text lacks the "OOM". It does not always use it.
    """
    if isinstance(error, redis.OutOfMemoryError):
        return True
    return any(text in str(error) for text in FULL)


def will_pass(error: Exception) -> bool:
    """Return whether it helps to wait after an error: Redis is away or full."""
    # REFUSED comes first, as a wrong password is in AWAY, too.
    if isinstance(error, redis_client.REFUSED):
        return is_full(error)
    return isinstance(error, redis_client.AWAY)


class PatientRetry(Retry):
    """Sends a command again and again while Redis is away or full.

    It also does so if Redis has carried out the command, and only the answer was lost. So a command
    or a transaction may be carried out twice:

    - The end of a job is recorded twice. If the job is to run again, by `rq.Retry` or `rq.Repeat`,
      it may run once too often.
    - When a job is taken from the queue, another one is taken. RQ fails the first one after a
      minute. (Before Redis 6.2, or if the worker has several queues, the first one is lost.)
    - A worker that looks for dead workers takes a lock. Here, no worker knows that it has the lock.
      So nobody looks until the lock expires, after 15 minutes.
    - Delayed jobs would be queued twice. So `DueJobs`, below, does not use this class.
    """

    # When a command of this process last failed, by `time.monotonic()`, for `Absences` below. It
    # is an attribute of the class, as redis-py copies the object for each connection.
    last_failure = float("-inf")

    def __init__(self):
        # Without a limit. `will_pass` decides which errors are tried again.
        super().__init__(NoBackoff(), retries=-1, supported_errors=(redis.RedisError,))

    def call_with_retry(
        self,
        do: Callable,
        fail: Callable,
        is_retryable: Callable | None = None,
        with_failure_count: bool = False,
    ):
        """Call `do`, which sends a command, until it succeeds. redis-py calls this.

        redis-py's own method does so. For each error, it asks `is_retryable` whether to try again:
        here, that is `will_pass`. Then it calls `fail`, which closes the connection: here, there is
        a wait before that.
        """

        def wait_and_fail(*arguments) -> None:
            PatientRetry.last_failure = time.monotonic()
            # redis-py could wait itself, but only after `fail`. On a connection that watches keys,
            # `fail` raises `WatchError`, so that wait would never be reached. And after a
            # `WatchError`, RQ begins its transaction again, at once.
            time.sleep(RETRY_INTERVAL)
            fail(*arguments)

        return super().call_with_retry(do, wait_and_fail, will_pass, with_failure_count)


# Signs of life. All times are in seconds.
#
# A worker gives two signs of life. By a heartbeat, it stays registered in Redis; `rq info` shows
# that. During a job, it also renews the lease of the job. When a lease is over, its worker counts
# as dead, and another worker fails the job.

# How long a worker waits for a job, before it looks for other things to do. RQ gives up a silent
# connection 10 seconds later than that: after 11.
DEQUEUE_TIMEOUT = 1
# How often it gives a heartbeat.
HEARTBEAT_INTERVAL = 1
# For how long a heartbeat is good. RQ adds 60, so it is 75.
WORKER_TTL = 15
# How often RQ renews the lease of a job. It is good for 60 more, so for 65.
JOB_MONITORING_INTERVAL = 5
# How often a worker looks for leases that are over.
MAINTENANCE_INTERVAL = 5


# Delayed jobs.

# How often a worker looks for delayed jobs that are due, in seconds.
LOOK_INTERVAL = 1
# How long it waits for an answer about them, on a second connection.
LOOK_TIMEOUT = 2


class DueJobs(RQScheduler):
    """Queues delayed jobs that are due.

    RQ runs its scheduler in a process of its own. Here, a worker calls `enqueue`.
    """

    def __init__(self, queues: list[Queue], connection: redis.Redis, serializer):
        super().__init__(
            queues,
            connection,
            # At level INFO, `rq worker` would log a line each second.
            logging_level=logging.WARNING,
            serializer=serializer,
        )
        # `self.connection` is another client, which RQ makes with the settings of `connection`.
        # It has not connected yet. `settings` is the very dict from which it will make its
        # connections, not a copy.
        settings = self.connection.get_connection_kwargs()
        settings["socket_timeout"] = LOOK_TIMEOUT
        # If the answer to a transaction was lost, and it was sent again, its jobs would be queued
        # twice.
        self.connection.set_retry(redis_client.SEND_ONCE)
        # The text of the last unforeseen error, so that it is not logged each second.
        self.last_error = ""

    def enqueue(self) -> None:
        """Queue the jobs that are due, except in queues that another worker has locked.

        One worker at a time looks at the delayed jobs of a queue, the one that has its lock. If
        Redis is away or full, these jobs wait for the next look.

        After any error, this worker keeps its locks, as it may be unable to release them. The next
        `acquire_locks` renews the locks that this worker has. If that does not come within a
        minute, they expire, and other workers can take them.
        """
        try:
            self.acquire_locks()
            self.enqueue_scheduled_jobs()
            self.release_locks()
            self.last_error = ""
        except Exception as error:
            if will_pass(error):
                return
            if isinstance(error, redis_client.REFUSED):
                # A missing permission, say. Waiting does not help, so this ends the worker.
                raise
            # A delayed job that can't be read, say. If it ended this worker, it would end the
            # others, too, one after the other. Until somebody deletes it, the other delayed jobs
            # of these queues wait.
            if str(error) != self.last_error:
                self.last_error = str(error)
                redis_client.logger.exception("Delayed jobs can't be queued")


# Absences.
#
# If Redis was away, or a laptop closed, for some minutes, all leases are over, and all workers look
# dead to each other. So after that comes a pause, in which each renews its lease, and none looks
# for dead workers. They take jobs as usual.
#
# When Redis is away, even for a moment, `PatientRetry` notes that. When the machine was asleep, or
# somebody has set the clock forward, a worker finds, by the clock, that it was not active for a
# long time. A pause that was not needed does no harm.

# How long a long time is.
ABSENCE = 30
# How long the pause is. To renew a lease, a worker may need 11 to give up a silent connection, and 5
# until the renewal is due (JOB_MONITORING_INTERVAL). The rest is to spare.
PAUSE_AFTER_ABSENCE = 20


class Absences:
    """What a worker knows about absences."""

    def __init__(self):
        # By `time.time()`, the clock by which leases end. It goes on while the machine is asleep;
        # `time.monotonic()`, by which all other times here are, may stand still.
        self.last_active = time.time()
        # A new worker does not know whether there was an absence. It begins as if there was.
        self.last_absence = time.monotonic()

    def note_activity(self) -> None:
        """Note that the worker is active now, and whether it was not for a long time.

        RQ calls `heartbeat` all the time, and that calls this. `run_maintenance_tasks` does so, too,
        just before it looks for dead workers.
        """
        if time.time() - self.last_active > ABSENCE:
            self.last_absence = time.monotonic()
        self.last_active = time.time()

    def skip_pause(self) -> None:
        """Begin as if there was no absence."""
        self.last_absence = float("-inf")

    def was_one_recently(self) -> bool:
        """Return whether the pause after an absence is not over."""
        last = max(self.last_absence, PatientRetry.last_failure)
        return time.monotonic() < last + PAUSE_AFTER_ABSENCE


class NotificationError(Exception):
    """A notification that must not be sent: its job fails, without a traceback in the log.

    Task 9 raises it. It is defined here because `handle_exception` below knows it.
    """


# How often a suspended worker asks whether it still is.
SUSPENSION_INTERVAL = 0.5
# How long a stop may take, not counting the time for a job in hand.
STOP_TIMEOUT = 1.5
# How often `enforce_stop` looks at that.
STOP_INTERVAL = 0.1


class Patient(BaseWorker):
    """What the two workers below add to RQ's: they wait for Redis, and stop between two jobs.

    It stands before RQ's class in `class PatientWorker(Patient, Worker)`. `super()` goes through the
    classes of an object in order: `PatientWorker`, `Patient`, `Worker`, `BaseWorker`. So here, it
    calls a method of `Worker` (or of `SimpleWorker`, in a `PatientSimpleWorker`).

    A worker changes the `Retry` of the client that it is given. It sets `worker_ttl` and
    `job_monitoring_interval` itself, and ignores `with_scheduler`, which it does not need.
    """

    def __init__(
        self, queues, name: str | None = None, *, connection: redis.Redis, **options
    ):
        # First, as `super().__init__` sends commands.
        connection.set_retry(PatientRetry())
        options["worker_ttl"] = WORKER_TTL
        options["job_monitoring_interval"] = JOB_MONITORING_INTERVAL
        super().__init__(queues, name, connection=connection, **options)
        self.due_jobs = DueJobs(self.queues, connection, self.serializer)
        # The process in which `work` was called, for `is_fork`.
        self.working_pid = 0
        # How many jobs it has run, for RQ's option `max_jobs`: end after so many.
        self.jobs_done = 0
        # True when no job is left to wait for. That can happen with RQ's options `burst` (end when
        # the queue is empty) and `max_idle_time` (end after so many seconds without a job).
        self.is_out_of_jobs = False
        # True after a first signal: the worker ends when it has no job in hand.
        self.is_stopping = False
        # True after a second one: it ends in any case.
        self.has_given_up = False
        # A flag on which a thread can wait: set when `work` has ended.
        self.work_is_over = threading.Event()
        # When a stop has taken too long: see `enforce_stop`.
        self.stop_deadline = float("inf")
        self.absences = Absences()
        # When each of these is due.
        self.next_heartbeat = 0.0
        self.next_look = 0.0
        self.next_maintenance = 0.0

    def work(self, burst: bool = False, logging_level=None, **options) -> bool:
        """Work until stopped. After an error, end the process with status 1.

        RQ's own method logs the error, and returns as if all were well.
        """
        options["with_scheduler"] = False
        self.working_pid = os.getpid()
        # `work` may be called a second time, unless the worker was stopped.
        self.jobs_done = 0
        self.is_out_of_jobs = False
        self.work_is_over.clear()
        if burst:
            # It may end before a pause is over, and would never look for dead workers.
            self.absences.skip_pause()
        try:
            worked = super().work(burst, logging_level, **options)
        finally:
            self.work_is_over.set()
        if not self.has_ended_as_planned(options.get("max_jobs")):
            sys.exit(1)
        return worked

    def has_ended_as_planned(self, max_jobs: int | None) -> bool:
        """Return whether `work` has ended for another reason than an error."""
        if max_jobs is not None and self.jobs_done >= max_jobs:
            return True
        return self.is_stopping or self.is_out_of_jobs

    # Between two jobs.

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while `rq suspend` is in force, or until a stop.

        RQ's own method ends only if `request_stop` raises an error, and here it does not.
        `is_suspended` also gives a heartbeat of this worker.
        """
        while is_suspended(self.connection, self) and not self.is_stopping:
            if burst:
                # A burst does not wait for jobs that it may not take.
                self.is_out_of_jobs = True
                raise StopRequested
            self.set_state(WorkerStatus.SUSPENDED)
            time.sleep(SUSPENSION_INTERVAL)

    @property
    def dequeue_timeout(self) -> int:
        """How long RQ waits for a job, in seconds: the `timeout` of the next method."""
        return DEQUEUE_TIMEOUT

    def dequeue_job_and_maintain_ttl(self, timeout, max_idle_time=None):
        """Return a job. Wait for it for as long as it takes.

        RQ's own method does so, for `timeout` seconds again and again. It returns None only if no
        job is left to wait for. Then `work` ends.
        """
        result = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        if result is None:
            self.is_out_of_jobs = True
        return result

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Always true, so that RQ calls `run_maintenance_tasks` before each wait for a job."""
        return True

    def run_maintenance_tasks(self) -> None:
        """Do what is due between two jobs. If the worker is to stop, do so here.

        RQ's own method looks for dead workers, and fails the jobs that they had in hand.
        """
        if self.is_stopping:
            raise StopRequested
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + LOOK_INTERVAL
            self.due_jobs.enqueue()
        self.absences.note_activity()
        if self.absences.was_one_recently():
            return
        if time.monotonic() >= self.next_maintenance:
            super().run_maintenance_tasks()
            self.next_maintenance = time.monotonic() + MAINTENANCE_INTERVAL

    def heartbeat(self, timeout=None, pipeline=None) -> None:
        """Give a heartbeat, or leave it out if the last was less than a second ago.

        RQ gives several for each job. But in a pipeline (commands that are sent together), none may
        be left out: RQ expects each answer at a fixed place.
        """
        self.absences.note_activity()
        if pipeline is None and time.monotonic() < self.next_heartbeat:
            return
        super().heartbeat(timeout, pipeline)
        self.next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL

    def set_state(self, state: str, pipeline=None) -> None:
        """Write the state to Redis ("idle", "busy" …) if it has changed, to save a command.

        RQ writes "idle" twice after each job. `get_state` does not ask Redis.
        """
        if state != self.get_state():
            super().set_state(state, pipeline)

    # A stop.

    def is_fork(self) -> bool:
        """Return whether this process is a fork of the worker: a work horse.

        A new horse has the handlers of the worker, until RQ sets its own. A Ctrl-C goes to all
        processes of a terminal. But it is up to the worker to stop the horse.
        """
        return os.getpid() != self.working_pid

    def request_stop(self, signum, frame) -> None:
        """Note that the worker is to stop.

        RQ's `work` makes this the handler for SIGINT (Ctrl-C) and SIGTERM.
        """
        if self.is_fork() or self.is_stopping:
            # After a Ctrl-C, the workers of a pool get two signals: from the terminal, and from the
            # pool. If the second comes at once, it comes here. Ignore it, too.
            return
        self.is_stopping = True
        self.stop_deadline = time.monotonic() + STOP_TIMEOUT
        # RQ's own method makes `request_force_stop` the handler from now on. Then, if no job runs, it
        # raises `StopRequested`, which is dropped here. (If a job runs, it sets a flag of RQ's. That
        # does no harm: we stop earlier than RQ looks at it.)
        with suppress(StopRequested):
            super().request_stop(signum, frame)
        # A daemon thread does not keep the process alive.
        threading.Thread(target=self.enforce_stop, daemon=True).start()

    def set_shutdown_requested_date(self) -> None:
        """Do nothing. RQ calls this in `request_stop`.

        It would write the time of the first signal to Redis, which may be away. Only
        `request_force_stop` needs that time, and RQ has put it in an attribute of the worker.
        """

    def request_force_stop(self, signum, frame) -> None:
        """Give up the job in hand. This is the handler for a second signal.

        RQ's own method does so: see step 5. In a `PatientSimpleWorker`, there is no horse, and
        `SystemExit` is raised inside the job. RQ takes it for an error of the job, and calls
        `handle_exception`. After that, the worker ends in `run_maintenance_tasks`.
        """
        if self.is_fork():
            return
        try:
            super().request_force_stop(signum, frame)
        except SystemExit:
            self.has_given_up = True
            raise

    def enforce_stop(self) -> None:
        """End the process if the stop takes too long, because Redis does not answer.

        This runs in a thread of its own, as the main thread may be waiting for Redis. The deadline
        is STOP_TIMEOUT after the latest of these: the signal (`request_stop` sets it), the start of
        a job that comes just after the signal (`execute_job`), and the last moment at which a job
        was in hand (here). Without a stop, nobody reads it.
        """
        while time.monotonic() < self.stop_deadline:
            if self.work_is_over.wait(STOP_INTERVAL):
                return
            # If the job is given up, the worker may still wait for Redis on its way out.
            if self.has_job_in_hand() and not self.has_given_up:
                self.stop_deadline = time.monotonic() + STOP_TIMEOUT
        # `sys.exit` would end this thread only. The status is 0, as a stop was asked for.
        os._exit(0)

    def has_job_in_hand(self) -> bool:
        """Return whether a job runs. The two workers below know."""
        raise NotImplementedError

    # A job.

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job, and count it."""
        # For `enforce_stop`.
        self.stop_deadline = time.monotonic() + STOP_TIMEOUT
        super().execute_job(job, queue)
        self.jobs_done += 1

    def handle_exception(self, job: Job, *exc_info) -> None:
        """Log the error of a job with its traceback, unless it was to be expected.

        RQ fails the job after this.
        """
        error_class, _error, _traceback = exc_info
        if issubclass(error_class, NotificationError):
            return
        if self.has_given_up:
            # This is the `SystemExit` of `request_force_stop`. After this job, the worker ends.
            return
        super().handle_exception(job, *exc_info)


class PatientWorker(Patient, Worker):
    """Runs each job in a process of its own, as RQ's `Worker` does: the work horse."""

    # The job in hand, and for how many intervals the worker has waited for it.
    monitored_job: Job | None = None
    intervals = 0

    def has_job_in_hand(self) -> bool:
        """Return whether a work horse runs. When it has ended, RQ sets `horse_pid` to 0."""
        return self.horse_pid != 0

    def monitor_work_horse(self, job: Job, queue: Queue, execution: Execution) -> None:
        """Wait until the work horse ends. Meanwhile, RQ renews the lease of its job.

        RQ does not tell `wait_for_horse` which job it is, so note it here.
        """
        self.monitored_job = job
        self.intervals = 0
        super().monitor_work_horse(job, queue, execution)

    def wait_for_horse(self):
        """Wait until the work horse ends, or for JOB_MONITORING_INTERVAL seconds.

        When an interval is over, RQ's own method raises `HorseMonitorTimeoutException`. RQ catches
        it. If `now() - job.started_at` is a minute longer than the job may take, RQ kills the
        horse. Otherwise it renews the lease, and calls this again. (The job's own time-out is the
        affair of the horse, which has a timer for it.)

        But a job of ten seconds may be done, and Redis away for ten minutes: the horse only waits
        to record the end. Or the machine was asleep for ten minutes, and the horse, too. This time
        must not count. It is in no interval. (Without Redis, RQ waits between two intervals, to
        renew the lease. Asleep, the timer of an interval stands still.) So count the intervals,
        and set `started_at` so that RQ computes their sum.
        """
        try:
            return super().wait_for_horse()
        except HorseMonitorTimeoutException:
            self.intervals += 1
            worked = timedelta(seconds=self.intervals * JOB_MONITORING_INTERVAL)
            # The horse is a fork: it has its own object of the job, with the true start.
            self.monitored_job.started_at = now() - worked
            raise


class PatientSimpleWorker(Patient, SimpleWorker):
    """Runs jobs in its own process. That is faster, but a job that crashes ends the worker.

    Use it with `rq worker-pool`, as the README shows, and for short jobs. During a job, it gives no
    heartbeat, and does not renew the lease. RQ makes the lease a minute longer than the time-out of
    the job. So if the machine sleeps for longer than that, and the job is not done within
    PAUSE_AFTER_ABSENCE after it wakes, another worker fails it. After a job that took longer than
    ABSENCE, this worker looks for no dead workers for a while, as if there had been an absence.
    """

    is_performing = False

    def has_job_in_hand(self) -> bool:
        """Return whether a job runs."""
        return self.is_performing

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Run a job, and record its end."""
        self.is_performing = True
        try:
            return super().perform_job(job, queue, execution)
        finally:
            self.is_performing = False


if __name__ == "__main__":
    redis_client.run(main)
