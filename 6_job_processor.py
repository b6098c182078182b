"""Task 7: process jobs, one at a time. The twin of 6-job_processor.js."""

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, SimpleWorker, Worker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import is_suspended
from rq.utils import get_connection_from_queues
from rq.worker import BaseWorker, WorkerStatus

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`. Twin of `sendNotification`."""
    line = f"Sending notification to {phone_number}, with message: {message}"
    # RQ's work horse flushes nothing at its end.
    print(line, flush=True)


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`."""
    client = redis_client.create_client()
    client.ping()
    PatientWorker([QUEUE], connection=client).work()


# The exercise ends here. RQ's own `Worker` would do for it. The workers that follow also
# wait while Redis is away, lose no job when they are stopped, and queue delayed jobs.

# In seconds, like all that follow. RQ waits for a job for 15 seconds less than this, and
# for an answer of Redis for 10 seconds more than that.
WORKER_TTL = 16
RETRY_INTERVAL = 0.5
LOOK_INTERVAL = 1
HEARTBEAT_INTERVAL = 1
MAINTENANCE_INTERVAL = 5
STOP_TIMEOUT = 1.5
JOB_MONITORING_INTERVAL = 5
ABSENCE = 30
REST_AFTER_ABSENCE = 10


class NotificationError(Exception):
    """A notification that must not be sent: its job fails, without a traceback."""


class PatientRetry(Retry):
    """Tries a command again for as long as Redis is away or full."""

    def __init__(self):
        errors = (*redis_client.AWAY, redis.OutOfMemoryError)
        super().__init__(NoBackoff(), retries=-1, supported_errors=errors)

    def call_with_retry(self, do: Callable, fail: Callable, *args, **options):
        """Wait after a failure, before redis-py is told of it.

        While a key is watched, redis-py does not try again, but raises `WatchError`. RQ
        takes that for a changed key and begins again, without a wait of its own.
        """

        def wait_and_fail(error: Exception, *count: int) -> None:
            if isinstance(error, redis.AuthenticationError):
                # Redis is there, and won't change its mind.
                raise error
            time.sleep(RETRY_INTERVAL)
            fail(error, *count)

        return super().call_with_retry(do, wait_and_fail, *args, **options)


class DueJobs(RQScheduler):
    """Queues delayed jobs that are due: a part of a worker, not a process of its own."""

    def __init__(self, worker: Worker | SimpleWorker):
        # RQ would log at level INFO, once a second, that it has acquired a lock.
        super().__init__(
            worker.queues, worker.connection, logging_level=logging.WARNING
        )
        self.worker = worker

    @property
    def connection(self) -> redis.Redis:
        """The client of the worker, which waits while Redis is away. RQ makes another."""
        return self.worker.connection

    def enqueue(self) -> None:
        """Queue what is due, unless another worker is just at it."""
        self.acquire_locks()
        try:
            self.enqueue_scheduled_jobs()
        finally:
            self.release_locks()


class Patient(BaseWorker):
    """A worker that waits while Redis is away or full, and stops between two jobs.

    It makes the client that it is given as patient as itself.
    """

    def __init__(self, queues, *args, connection: redis.Redis | None = None, **options):
        if connection is None:
            connection = get_connection_from_queues(queues)
        connection.set_retry(PatientRetry())
        options["worker_ttl"] = WORKER_TTL
        options["job_monitoring_interval"] = JOB_MONITORING_INTERVAL
        self.stop_requested = False
        self.is_leaving = False
        self.is_done = False
        self.jobs_taken = 0
        # The clock, when it last gave a sign of life. It has been away until now.
        self.last_seen = 0.0
        # By `time.monotonic()`: now.
        self.next_heartbeat = 0.0
        self.next_look = 0.0
        self.next_maintenance = 0.0
        super().__init__(queues, *args, connection=connection, **options)
        self.due_jobs = DueJobs(self)

    def work(
        self, burst: bool = False, *, with_scheduler: bool = False, **options
    ) -> bool:
        """Work until stopped; `with_scheduler` changes nothing, as due jobs are queued.

        RQ ends its loop at an error that it has logged as if it were told to end. Here
        that is exit status 1.
        """
        worked = super().work(burst, **options)
        # What limits a stop must not end what comes after the worker.
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.jobs_taken == options.get("max_jobs"):
            self.is_done = True
        if not self.is_done and not self.stop_requested:
            sys.exit(1)
        return worked

    def dequeue_job_and_maintain_ttl(self, timeout, max_idle_time=None):
        """Wait for a job. If none comes, a burst or an idle worker is done."""
        result = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        if result is None:
            self.is_done = True
        else:
            self.jobs_taken += 1
        return result

    def request_stop(self, signum, frame) -> None:
        """Note that the worker is to stop.

        RQ raises `StopRequested` wherever the signal finds it, if it is not at work. That
        loses a job which is just arriving.
        """
        self.stop_requested = True
        if self.get_state() != WorkerStatus.BUSY:
            self.limit_stop()
        with suppress(StopRequested):
            super().request_stop(signum, frame)

    def set_shutdown_requested_date(self) -> None:
        """Write nothing: RQ calls this while it handles the signal, and Redis may be away."""

    def set_state(self, state: str, pipeline=None) -> None:
        """Set the state of the worker, unless it is in that state already.

        Once it has no job in hand, a stop takes no longer.
        """
        if state == self.get_state():
            return
        if self.stop_requested and state != WorkerStatus.BUSY:
            self.limit_stop()
        super().set_state(state, pipeline)

    def limit_stop(self) -> None:
        """Let the stop come soon, whether Redis answers or not.

        With a job in hand, the alarm is RQ's, for the time-out of the job.
        """
        signal.signal(signal.SIGALRM, self.give_up)
        signal.setitimer(signal.ITIMER_REAL, STOP_TIMEOUT)

    def give_up(self, signum, frame) -> None:
        """End at once, unless a job is in hand that is to be finished."""
        if self.is_leaving or self.get_state() != WorkerStatus.BUSY:
            os._exit(0)

    def teardown(self) -> None:
        """Say goodbye to Redis. A second signal comes here with a job in hand."""
        self.is_leaving = True
        if self.stop_requested:
            self.limit_stop()
        super().teardown()

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while `rq suspend` is in force. RQ's own wait hears of no stop."""
        while is_suspended(self.connection, self) and not self.stop_requested:
            if burst:
                self.is_done = True
                raise StopRequested
            self.set_state(WorkerStatus.SUSPENDED)
            time.sleep(1)

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Always true: when each task is due, the next method knows."""
        return True

    def run_maintenance_tasks(self) -> None:
        """Do what is to be done between two jobs: RQ calls this before each wait for one."""
        if self.stop_requested:
            raise StopRequested
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_INTERVAL
        self.due_jobs.enqueue()
        self.care_for_abandoned_jobs()

    def care_for_abandoned_jobs(self) -> None:
        """Run the maintenance of RQ, if it is due and this worker has been here for a while."""
        self.notice_absence()
        if time.monotonic() < self.next_maintenance:
            return
        super().run_maintenance_tasks()
        self.next_maintenance = time.monotonic() + MAINTENANCE_INTERVAL

    def heartbeat(self, timeout=None, pipeline=None) -> None:
        """Give a sign of life. Once a second will do; RQ sends three for each job."""
        self.notice_absence()
        if pipeline is None and time.monotonic() < self.next_heartbeat:
            return
        super().heartbeat(timeout, pipeline)
        self.next_heartbeat = time.monotonic() + HEARTBEAT_INTERVAL

    def notice_absence(self) -> None:
        """Put maintenance off if this worker has not been here for a while.

        Redis was away, the machine slept, or its clock was set. The jobs that others have
        in hand look abandoned then, until these give a sign of life.
        """
        now = time.time()
        if now - self.last_seen > ABSENCE:
            self.next_maintenance = time.monotonic() + REST_AFTER_ABSENCE
        self.last_seen = now

    def handle_exception(self, job: Job, *exc_info) -> None:
        """Log the error of a job with its traceback, unless it was to be expected.

        Nor does an expected one come to the exception handlers that a worker may be given.
        """
        if not issubclass(exc_info[0], NotificationError):
            super().handle_exception(job, *exc_info)


class PatientWorker(Patient, Worker):
    """Runs each job in a process of its own, as RQ's `Worker` does."""


class PatientSimpleWorker(Patient, SimpleWorker):
    """Runs jobs in its own process: faster, but a job that crashes takes it along."""

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job. No sign of life comes from it meanwhile, but it has not been away."""
        super().execute_job(job, queue)
        self.last_seen = time.time()


if __name__ == "__main__":
    redis_client.run(main)
