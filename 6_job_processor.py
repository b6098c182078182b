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
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.suspension import is_suspended
from rq.worker import BaseWorker, WorkerStatus

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`. Twin of `sendNotification`."""
    line = f"Sending notification to {phone_number}, with message: {message}"
    # `run` lets every line leave at once. `rq worker` does not, nor at its work horse's end.
    print(line, flush=True)


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`."""
    client = redis_client.create_client()
    client.ping()
    PatientWorker([QUEUE], connection=client).work()


# The exercise ends here. RQ's own `Worker` would do for it. The workers that follow also
# wait while Redis is away, lose no job when they are stopped, and queue delayed jobs.

# All in seconds. With 16, RQ waits for a job for 16 - 15 = 1, so that a stop is noticed soon,
# and for an answer of Redis for 1 + 10 = 11.
WORKER_TTL = 16
# RQ looks after a running job so often. Its lease is 60 longer.
JOB_MONITORING_INTERVAL = 5
# A command that Redis could not answer is tried again after this.
RETRY_INTERVAL = 0.5
# Between two jobs, a worker looks for delayed jobs that are due, gives a sign of life, and
# cares for abandoned jobs so often.
LOOK_INTERVAL = 1
HEARTBEAT_INTERVAL = 1
MAINTENANCE_INTERVAL = 5
# The look for delayed jobs waits for an answer for so long.
LOOK_TIMEOUT = 2
# A worker that has not looked at the clock for so long has been away, and then cares for no
# abandoned job for so long.
ABSENCE = 30
REST_AFTER_ABSENCE = 10
# While suspended, a worker asks so often whether it still is.
SUSPENSION_INTERVAL = 0.5
# A stop takes no longer than this, beside the time for which a job is in hand.
STOP_TIMEOUT = 1.5
# The process that is to stop is looked at so often.
STOP_INTERVAL = 0.1


class NotificationError(Exception):
    """A notification that must not be sent: its job fails, without a traceback.

    Task 9 raises it. It stands here because `handle_exception` below looks for it.
    """


AWAY_OR_FULL = (*redis_client.AWAY, redis.OutOfMemoryError)


class PatientRetry(Retry):
    """Tries a command again for as long as Redis is away or full."""

    def __init__(self):
        # -1 is redis-py's word for what the loop below does: for ever.
        super().__init__(NoBackoff(), retries=-1, supported_errors=AWAY_OR_FULL)

    def call_with_retry(
        self,
        do: Callable,
        fail: Callable,
        is_retryable: Callable | None = None,
        with_failure_count: bool = False,
    ):
        """Send a command by `do`. After a failure wait, then call `fail`.

        redis-py calls this. Its `fail` closes the connection, so that the next `do` makes a
        new one; while a key is watched, it raises `WatchError`, which RQ takes for a changed
        key, and begins again at once. So the wait comes before.
        """
        failures = 0
        while True:
            try:
                return do()
            except redis.AuthenticationError:
                # It is a `ConnectionError`, too. This one is told, not waited for.
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
    """Queues delayed jobs that are due: a part of a worker, not a process of its own."""

    def __init__(self, queues: list[Queue], connection: redis.Redis, serializer):
        super().__init__(
            queues,
            connection,
            # Or `rq worker` would log once a second, at level INFO, that a lock is acquired.
            logging_level=logging.WARNING,
            serializer=serializer,
        )
        # RQ makes a client of its own for this. Here that tries once: tried again, a
        # transaction whose answer was lost would queue its jobs twice.
        self.connection.set_retry(Retry(NoBackoff(), retries=0))
        # What its pool makes connections with; there is none yet.
        self.connection.get_connection_kwargs()["socket_timeout"] = LOOK_TIMEOUT

    def enqueue(self) -> None:
        """Queue what is due, but in queues whose lock another worker has just now.

        If Redis is away or full, what is due is left to the next look. A lock that was not
        released ends by itself.
        """
        try:
            self.acquire_locks()
            self.enqueue_scheduled_jobs()
            self.release_locks()
        except AWAY_OR_FULL:
            return


class Patient(BaseWorker):
    """A worker that waits while Redis is away or full, and stops between two jobs.

    It makes the client that it is given as patient as itself. Some intervals of RQ's are
    its own: `worker_ttl` and `job_monitoring_interval` change nothing.

    `PatientWorker` below has two parents, this one and RQ's `Worker`. Python looks for a
    method here first and then there: so `super()` is RQ's `Worker`.
    """

    def __init__(
        self, queues, name: str | None = None, *, connection: redis.Redis, **options
    ):
        # The first commands are sent below.
        connection.set_retry(PatientRetry())
        options["worker_ttl"] = WORKER_TTL
        options["job_monitoring_interval"] = JOB_MONITORING_INTERVAL
        super().__init__(queues, name, connection=connection, **options)
        self.due_jobs = DueJobs(self.queues, connection, self.serializer)
        self.jobs_done = 0
        # A burst has found the queue empty, or an idle worker has waited for long enough.
        self.is_done = False
        # A signal has come, and another.
        self.stop_requested = False
        self.force_stop_requested = False
        # `work` is over.
        self.has_ended = threading.Event()
        # By `time.time()`, which shows a sleep of the machine, and a clock that is set: when
        # this worker was there last. 0 is never.
        self.last_seen = 0.0
        # By `time.monotonic()`, which does not. 0 is at once; but maintenance rests first, as
        # after any absence.
        self.next_heartbeat = 0.0
        self.next_look = 0.0
        self.next_maintenance = 0.0

    def work(self, burst: bool = False, logging_level=None, **options) -> bool:
        """Work until stopped. `with_scheduler` changes nothing: due jobs are queued.

        At an error, RQ logs it and returns as if all were well. Here the process ends with
        exit status 1.
        """
        options["with_scheduler"] = False
        try:
            worked = super().work(burst, logging_level, **options)
        finally:
            self.has_ended.set()
        if not self.was_to_end(options.get("max_jobs")):
            sys.exit(1)
        return worked

    def was_to_end(self, max_jobs: int | None) -> bool:
        """Tell whether the work has ended for another reason than an error."""
        return self.stop_requested or self.is_done or self.jobs_done == max_jobs

    # RQ's `work` calls these in turn, again and again: `check_for_suspension`,
    # `run_maintenance_tasks`, `dequeue_job_and_maintain_ttl`, `execute_job` and `heartbeat`.
    # `StopRequested`, raised in any of them, ends it.

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while `rq suspend` is in force. RQ's own wait hears of no stop."""
        while is_suspended(self.connection, self) and not self.stop_requested:
            if burst:
                self.is_done = True
                raise StopRequested
            self.set_state(WorkerStatus.SUSPENDED)
            time.sleep(SUSPENSION_INTERVAL)

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Always true, so that RQ calls the next method before each wait for a job."""
        return True

    def run_maintenance_tasks(self) -> None:
        """Do what is to be done between two jobs, as far as it is due."""
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

    def dequeue_job_and_maintain_ttl(self, timeout, max_idle_time=None):
        """Wait for a job. Without one, the work is done."""
        result = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        if result is None:
            self.is_done = True
        return result

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job, and count it."""
        super().execute_job(job, queue)
        self.jobs_done += 1

    def heartbeat(self, timeout=None, pipeline=None) -> None:
        """Give a sign of life. Once a second will do; RQ sends three for each job.

        In a pipeline it can't be left out, as RQ finds the answers by their place.
        """
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

    def set_state(self, state: str, pipeline=None) -> None:
        """Tell Redis the state of the worker, but not once more for each second of waiting."""
        if state != self.get_state():
            super().set_state(state, pipeline)

    def handle_exception(self, job: Job, *exc_info) -> None:
        """Log the error of a job with its traceback, unless it was to be expected.

        RQ fails the job after this. An expected error does not come to the exception
        handlers either that a worker may be given.
        """
        error_class, _, _ = exc_info
        if issubclass(error_class, NotificationError):
            return
        super().handle_exception(job, *exc_info)

    # A stop comes as a signal, whatever the worker is at. It is noted, and the loop above
    # looks for the note before it waits for another job. A job in hand is finished first.

    def request_stop(self, signum, frame) -> None:
        """Note that the worker is to stop.

        RQ raises `StopRequested` wherever the signal finds it, if it is not at work. That
        loses a job which is just arriving.
        """
        self.stop_requested = True
        threading.Thread(target=self.enforce_stop, daemon=True).start()
        # RQ's own is needed, as it sets the handler for a second signal.
        with suppress(StopRequested):
            super().request_stop(signum, frame)

    def request_force_stop(self, signum, frame) -> None:
        """At a second signal, give the job in hand up.

        RQ ignores one that comes within a second: that is the same Ctrl-C, which a pool hands
        on. Otherwise it raises `SystemExit`.
        """
        try:
            super().request_force_stop(signum, frame)
        except SystemExit:
            self.force_stop_requested = True
            raise

    def set_shutdown_requested_date(self) -> None:
        """Write nothing: RQ calls this while it handles the signal, and Redis may be away."""

    def enforce_stop(self) -> None:
        """In a thread of its own, end the process if the stop waits for Redis for too long."""
        waited = 0.0
        while waited < STOP_TIMEOUT:
            if self.has_ended.wait(STOP_INTERVAL):
                return
            if self.force_stop_requested or not self.has_job_in_hand():
                waited += STOP_INTERVAL
        # `sys.exit` would end this thread only.
        os._exit(0)

    def has_job_in_hand(self) -> bool:
        """Tell whether a job runs, which a stop must wait for."""
        return self.get_state() == WorkerStatus.BUSY


class PatientWorker(Patient, Worker):
    """Runs each job in a process of its own, as RQ's `Worker` does."""

    def has_job_in_hand(self) -> bool:
        """Tell whether a work horse runs. The worker is busy before that, and after it."""
        return self.horse_pid != 0


class PatientSimpleWorker(Patient, SimpleWorker):
    """Runs jobs in its own process: faster, but a job that crashes takes it along.

    For `rq worker-pool`: the README shows it. A job's lease is its time-out here.
    """

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job. No sign of life is given meanwhile, but the worker has not been away."""
        super().execute_job(job, queue)
        self.last_seen = time.time()


if __name__ == "__main__":
    redis_client.run(main)
