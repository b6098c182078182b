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
from rq import SimpleWorker, Worker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import is_suspended
from rq.worker import WorkerStatus

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

RETRY_INTERVAL = 0.5  # in seconds, like all that follow
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

        def wait_and_fail(*error):
            time.sleep(RETRY_INTERVAL)
            fail(*error)

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
        self.enqueue_scheduled_jobs()
        self.release_locks()


class Patient:
    """A worker that waits while Redis is away or full, and stops between two jobs."""

    def __init__(self, *args, **options):
        # `worker_ttl` lets RQ wait for a job for a second at a time, and give up a silent
        # connection after 11. Before each wait it runs the maintenance, if that is due.
        options["worker_ttl"] = 16
        options["maintenance_interval"] = 0
        options["job_monitoring_interval"] = JOB_MONITORING_INTERVAL
        options["connection"].set_retry(PatientRetry())
        self.stop_requested = False
        self.last_seen = 0.0
        self.next_heartbeat = 0.0
        self.next_look = 0.0
        self.next_maintenance = 0.0
        super().__init__(*args, **options)
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
        has_an_end = burst or options.get("max_jobs") or options.get("max_idle_time")
        if not has_an_end and not self.stop_requested:
            sys.exit(1)
        return worked

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
        """End at once, unless a job has arrived since."""
        if self.get_state() != WorkerStatus.BUSY:
            os._exit(0)

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while `rq suspend` is in force. RQ's own wait hears of no stop."""
        while is_suspended(self.connection, self) and not self.stop_requested:
            if burst:
                raise StopRequested
            self.set_state(WorkerStatus.SUSPENDED)
            time.sleep(1)

    def run_maintenance_tasks(self) -> None:
        """Do what is to be done between two jobs: RQ calls this before each wait for one."""
        if self.stop_requested:
            raise StopRequested
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_INTERVAL
        self.due_jobs.enqueue()
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
        """Log the error of a job with its traceback, unless it was to be expected."""
        if not issubclass(exc_info[0], NotificationError):
            super().handle_exception(job, *exc_info)


class PatientWorker(Patient, Worker):
    """Runs each job in a process of its own, as RQ's `Worker` does."""


class PatientSimpleWorker(Patient, SimpleWorker):
    """Runs jobs in its own process: faster, but a job that crashes takes it along."""


if __name__ == "__main__":
    redis_client.run(main)
