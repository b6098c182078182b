"""Task 7: process jobs, one at a time. The twin of 6-job_processor.js."""

import importlib
import logging
import signal
import sys
import threading
from contextlib import suppress
from datetime import timedelta

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the worker sets its own

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from rq import Worker
from rq.exceptions import StopRequested
from rq.utils import now

redis_client = importlib.import_module("0_redis_client")

QUEUE = "push_notification_code"


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`. Twin of `sendNotification`."""
    line = f"Sending notification to {phone_number}, with message: {message}\n"
    # In one write, as other workers print here too, and flushed, as RQ's work horse, the
    # process forked for a job, does not flush at its end.
    print(line, end="", flush=True)


class PatientWorker(Worker):
    """An RQ worker that outlives a Redis restart and drops no job when it is stopped.

    `Worker` alone would do the exercise; its methods below are called by RQ.
    """

    def __init__(self, queues: list, *, connection: redis.Redis, **options):
        # Every command of the worker and of its work horses waits until Redis is back.
        errors = redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError
        connection.set_retry(Retry(Patience(self), retries=-1, supported_errors=errors))
        # Seconds between two looks at its own job, and at the jobs of killed workers.
        intervals = {"job_monitoring_interval": 5, "maintenance_interval": 5}
        super().__init__(queues, connection=connection, **(intervals | options))

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple | None:
        """Wait for a job, checking twice a second whether to stop.

        RQ's own wait is cut short by the signal, which can drop a job just received.
        """
        if timeout is None or max_idle_time:  # burst mode, or an end when idle
            return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        while not self._stop_requested:
            found = super().dequeue_job_and_maintain_ttl(timeout=0.5, max_idle_time=0.5)
            if found:
                return found
        raise StopRequested

    def _shutdown(self) -> None:
        self._stop_requested = True

    def teardown(self) -> None:
        self._horse_pid = 0  # a second Ctrl-C has killed it
        with suppress(StopRequested):  # Redis is away: nothing to unregister from
            super().teardown()


class Patience(ConstantBackoff):
    """Waits half a second between attempts, until the worker is asked to stop.

    With a job in hand it waits on, so that the job is not lost.
    """

    def __init__(self, worker: PatientWorker):
        super().__init__(0.5)
        self.worker = worker

    def __deepcopy__(self, memo: dict) -> "Patience":
        return self  # redis-py copies the retry object for each connection

    def compute(self, failures: int) -> float:
        worker = self.worker
        # Not in the thread in which RQ listens for commands: it ends with the process.
        in_main_thread = threading.current_thread() is threading.main_thread()
        job_in_hand = worker.is_horse or worker.horse_pid
        if worker._stop_requested and in_main_thread and not job_in_hand:
            raise StopRequested
        # When Redis is back, the jobs of other workers seem abandoned until these have
        # given a sign of life. Leave them 10 seconds for it.
        worker.last_cleaned_at = now() + timedelta(seconds=5)
        return super().compute(failures)


def keep_stdout_clean() -> None:
    """Send RQ's warnings and errors to standard error, and drop the rest of its log."""
    logging.basicConfig(format="%(message)s")
    logging.disable(logging.INFO)
    # A message may hold characters that the terminal does not know.
    sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`."""
    keep_stdout_clean()
    PatientWorker([QUEUE], connection=redis_client.connect()).work()


if __name__ == "__main__":
    main()
