"""Task 7: process jobs, one at a time. The twin of 6-job_processor.js."""

import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, SimpleWorker, Worker
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import is_suspended
from rq.worker import BaseWorker, WorkerStatus

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`. Twin of `sendNotification`."""
    line = f"Sending notification to {phone_number}, with message: {message}"
    # Without `flush`, the line would be lost under `rq worker`, in which this may run, too.
    print(line, flush=True)


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`."""
    client = redis_client.create_client()
    client.ping()
    PatientWorker([QUEUE], connection=client).work()


# The exercise ends here. RQ's own `Worker` would do for it. The workers below also wait
# while Redis is away, lose no job when they are stopped, and queue delayed jobs.

# All of these are in seconds.

# How long a worker waits for a job, before it looks for other things to do.
DEQUEUE_TIMEOUT = 1
# How long Redis remembers a worker that gives no sign of life. RQ adds 60.
WORKER_TTL = 15
# How often RQ renews the lease of a running job. A lease lasts for this, and 60 more.
JOB_MONITORING_INTERVAL = 5
# The pause before a command is sent again that Redis could not answer.
RETRY_INTERVAL = 0.5
# How often a worker looks for delayed jobs that are due.
LOOK_INTERVAL = 1
# How long that look waits for an answer of Redis.
LOOK_TIMEOUT = 2
# How often a worker gives a sign of life.
HEARTBEAT_INTERVAL = 1
# How often it looks for jobs that dead workers have left behind.
MAINTENANCE_INTERVAL = 5
# After a gap as long as this, a worker assumes that all workers were asleep or without Redis.
ABSENCE = 30
# How long it then waits for signs of life of the others, before it looks for dead workers.
REST_AFTER_ABSENCE = 10
# How often a suspended worker asks whether it still is.
SUSPENSION_INTERVAL = 0.5
# How long a stop may take, not counting the time for a job in hand.
STOP_TIMEOUT = 1.5
# How often a worker that is to stop looks whether that time is over.
STOP_INTERVAL = 0.1


class NotificationError(Exception):
    """A notification that must not be sent: its job fails, without a traceback in the log.

    Task 9 raises it. It is defined here because `handle_exception` below knows it.
    """


# Errors after which it helps to wait, and to try again.
AWAY_OR_FULL = (*redis_client.AWAY, redis.OutOfMemoryError)


class PatientRetry(Retry):
    """Sends a command again and again while Redis is away or full."""

    def __init__(self):
        # In redis-py, -1 retries stand for no limit.
        super().__init__(NoBackoff(), retries=-1, supported_errors=AWAY_OR_FULL)

    def call_with_retry(
        self,
        do: Callable,
        fail: Callable,
        is_retryable: Callable | None = None,
        with_failure_count: bool = False,
    ):
        """Call `do`, which sends a command. After an error wait, call `fail`, and try again.

        redis-py calls this for each command. Its `fail` closes the connection; the next `do`
        opens another. In a transaction, `fail` also raises `WatchError`, and RQ starts the
        transaction again at once. So the wait must come before `fail`.
        """
        failures = 0
        while True:
            try:
                return do()
            except redis.AuthenticationError:
                # It is one of AWAY, too, but waiting would not help.
                raise
            except AWAY_OR_FULL as error:
                if is_retryable is not None and not is_retryable(error):
                    raise
                failures += 1
                time.sleep(RETRY_INTERVAL)
                if with_failure_count:
                    fail(error, failures)
                else:
                    fail(error)


class DueJobs(RQScheduler):
    """Queues delayed jobs that are due. In RQ this is a process; here a worker calls it."""

    def __init__(self, queues: list[Queue], connection: redis.Redis, serializer):
        super().__init__(
            queues,
            connection,
            # At level INFO, `rq worker` would log each second that a lock is acquired.
            logging_level=logging.WARNING,
            serializer=serializer,
        )
        # `self.connection` is another client than `connection`; RQ has made it. It must send
        # a command only once: if the answer to a transaction is lost, and it is sent again,
        # its jobs are queued twice.
        self.connection.set_retry(Retry(NoBackoff(), retries=0))
        # This is the dict from which that client will make its first connection.
        self.connection.get_connection_kwargs()["socket_timeout"] = LOOK_TIMEOUT

    def enqueue(self) -> None:
        """Queue the jobs that are due, except in queues that another worker has locked.

        If Redis is away or full, they wait for the next look. A lock that is not released
        expires.
        """
        try:
            self.acquire_locks()
            self.enqueue_scheduled_jobs()
            self.release_locks()
        except AWAY_OR_FULL:
            return
        except redis_client.REFUSED as error:
            # RQ takes the locks by a script. Redis before 7 has another error for a script
            # that finds it full.
            if "OOM" not in str(error):
                raise


class Patient(BaseWorker):
    """A worker that waits while Redis is away or full, and stops between two jobs.

    It changes the `Retry` of the client that it is given, and sets `worker_ttl` and
    `job_monitoring_interval` itself.

    `PatientWorker` below has two parents, this class and RQ's `Worker`. Python looks for a
    method first here and then there. So `super()` is RQ's `Worker`, not `BaseWorker`.
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
        self.jobs_done = 0
        # Whether a wait has ended without a job: see `burst` and `max_idle_time` of `work`.
        self.is_done = False
        # Whether a first signal has come, and a second.
        self.stop_requested = False
        self.force_stop_requested = False
        # Set when `work` is over.
        self.has_ended = threading.Event()
        # When this worker was last active, by `time.time()`. That clock shows a gap when the
        # machine was asleep. 0 means never, so a worker begins as if after an absence.
        self.last_seen = 0.0
        # When each of these is due, by `time.monotonic()`, a clock that nobody sets.
        self.next_heartbeat = 0.0
        self.next_look = 0.0
        self.next_maintenance = 0.0

    def work(self, burst: bool = False, logging_level=None, **options) -> bool:
        """Work until stopped. `with_scheduler` is ignored: delayed jobs are queued anyway.

        After an error, RQ logs it and returns as if all were well. Here the process ends with
        status 1.
        """
        options["with_scheduler"] = False
        try:
            worked = super().work(burst, logging_level, **options)
        finally:
            self.has_ended.set()
        if not self.has_ended_as_planned(options.get("max_jobs")):
            sys.exit(1)
        return worked

    def has_ended_as_planned(self, max_jobs: int | None) -> bool:
        """Return whether `work` has ended for another reason than an error.

        RQ's `work` does not tell.
        """
        return self.stop_requested or self.is_done or self.jobs_done == max_jobs

    # RQ's `work` calls these in turn, again and again: `check_for_suspension`,
    # `run_maintenance_tasks`, `dequeue_job_and_maintain_ttl`, `execute_job` and `heartbeat`.
    # `StopRequested`, raised in any of them, ends it.

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while `rq suspend` is in force. RQ's own wait would not notice a stop."""
        while is_suspended(self.connection, self) and not self.stop_requested:
            if burst:
                self.is_done = True
                raise StopRequested
            self.set_state(WorkerStatus.SUSPENDED)
            time.sleep(SUSPENSION_INTERVAL)

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Always true: RQ calls the next method before it waits for a job."""
        return True

    def run_maintenance_tasks(self) -> None:
        """Do what is due between two jobs, or stop there."""
        if self.stop_requested:
            raise StopRequested
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_INTERVAL
        self.due_jobs.enqueue()
        self.care_for_abandoned_jobs()

    def care_for_abandoned_jobs(self) -> None:
        """Fail the jobs that dead workers have left behind, if it is time to look for them."""
        self.notice_absence()
        if time.monotonic() < self.next_maintenance:
            return
        super().run_maintenance_tasks()
        self.next_maintenance = time.monotonic() + MAINTENANCE_INTERVAL

    @property
    def dequeue_timeout(self) -> int:
        """How long RQ waits for a job, in seconds. It gives up a connection after 10 more."""
        return DEQUEUE_TIMEOUT

    def dequeue_job_and_maintain_ttl(self, timeout, max_idle_time=None):
        """Wait for a job. RQ returns None if no job comes, and `work` ends."""
        result = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        if result is None:
            self.is_done = True
        return result

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job, and count it."""
        super().execute_job(job, queue)
        self.jobs_done += 1

    def heartbeat(self, timeout=None, pipeline=None) -> None:
        """Give a sign of life, once a second at most. RQ would send three for each job.

        With a pipeline, RQ counts on an answer to it, so that one is always sent.
        """
        self.notice_absence()
        if pipeline is None and time.monotonic() < self.next_heartbeat:
            return
        super().heartbeat(timeout, pipeline)
        self.next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL

    def notice_absence(self) -> None:
        """After a gap, put maintenance off.

        In the gap Redis was away, or the machine was asleep, or its clock was set. The jobs
        of other workers look abandoned then, until these have given a sign of life.
        """
        now = time.time()
        if now - self.last_seen > ABSENCE:
            self.next_maintenance = time.monotonic() + REST_AFTER_ABSENCE
        self.last_seen = now

    def set_state(self, state: str, pipeline=None) -> None:
        """Write a new state to Redis. RQ would write "idle" again before each wait for a job."""
        if state != self.get_state():
            super().set_state(state, pipeline)

    def handle_exception(self, job: Job, *exc_info) -> None:
        """Log the error of a job with its traceback, unless it is a `NotificationError`.

        RQ fails the job after this. Its own method also calls the exception handlers of the
        worker; a `NotificationError` does not reach them.
        """
        error_class, _, _ = exc_info
        if issubclass(error_class, NotificationError):
            return
        super().handle_exception(job, *exc_info)

    # A signal may come at any moment. It sets a flag, which the methods above read before the
    # worker waits for another job. A job in hand is finished first.

    def request_stop(self, signum, frame) -> None:
        """At a first signal, note that the worker is to stop.

        RQ's own method raises `StopRequested` at once, unless a job runs. A job that Redis
        has just handed over would be lost.
        """
        if os.getpid() != self.pid:
            # This is a work horse, in the moment before it sets handlers of its own.
            return
        self.stop_requested = True
        threading.Thread(target=self.enforce_stop, daemon=True).start()
        # It also sets the handler for a second signal.
        with suppress(StopRequested):
            super().request_stop(signum, frame)

    def request_force_stop(self, signum, frame) -> None:
        """At a second signal, give up the job in hand.

        RQ raises `SystemExit`. It ignores a signal that comes within a second of the first:
        after a Ctrl-C, the workers of a pool get one from the terminal, and one from the pool.
        """
        try:
            super().request_force_stop(signum, frame)
        except SystemExit:
            self.force_stop_requested = True
            raise

    def set_shutdown_requested_date(self) -> None:
        """Write nothing. RQ calls this in its signal handler, and Redis may be away."""

    def enforce_stop(self) -> None:
        """End the process if a stop takes too long, because Redis does not answer.

        This runs in a thread of its own, while the main thread may wait for Redis.
        """
        waited = 0.0
        while waited < STOP_TIMEOUT:
            if self.has_ended.wait(STOP_INTERVAL):
                return
            # The time for a job in hand does not count.
            if self.force_stop_requested or not self.has_job_in_hand():
                waited += STOP_INTERVAL
        # `sys.exit` would end this thread only.
        os._exit(0)

    def has_job_in_hand(self) -> bool:
        """Return whether a job runs, which a stop must wait for."""
        raise NotImplementedError


class PatientWorker(Patient, Worker):
    """Runs each job in a process of its own, as RQ's `Worker` does."""

    def has_job_in_hand(self) -> bool:
        """Return whether a work horse runs, which a stop must wait for."""
        return self.horse_pid != 0


class PatientSimpleWorker(Patient, SimpleWorker):
    """Runs jobs in its own process. That is faster, but a job that crashes ends the worker.

    Use it with `rq worker-pool`, as the README shows.
    """

    is_performing = False

    def has_job_in_hand(self) -> bool:
        """Return whether a job runs, which a stop must wait for."""
        return self.is_performing

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Run a job, and record its end."""
        self.is_performing = True
        try:
            return super().perform_job(job, queue, execution)
        finally:
            self.is_performing = False

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Take and run a job. Its time is no gap, though there is no sign of life in it."""
        super().execute_job(job, queue)
        self.last_seen = time.time()


if __name__ == "__main__":
    redis_client.run(main)
