"""Task 7: process jobs, one at a time. The twin of 6-job_processor.js."""

import importlib
import os

import redis
import rq
from redis.retry import Retry

redis_client = importlib.import_module("0_redis_client")
QUEUE = "push_notification_code"


def send_notification(phone_number: str, message: str) -> None:
    """Send `message` to `phone_number`. Twin of `sendNotification`."""
    line = f"Sending notification to {phone_number}, with message: {message}"
    print(line, flush=True)  # as RQ's work horse flushes nothing at its end


def main() -> None:
    """Work on the queue until stopped. Twin of `queue.process`."""
    PatientWorker([QUEUE], connection=redis_client.create_client()).work()


# The exercise ends here. `rq.Worker` would do for it; the workers below lose no job.


class NotificationError(Exception):
    """A notification that must not be sent: its job fails, without a traceback."""


class Patient:
    """A worker that waits while Redis is away or full, and stops between two jobs."""

    def __init__(self, *args, **opts):
        opts["connection"].ping()  # a silent Redis ends it after 5 s; RQ waits for 11
        super().__init__(*args, **opts | {"worker_ttl": 16, "maintenance_interval": 5})
        errors = redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError
        nap = redis.backoff.ConstantBackoff(0.5)
        nap.compute = lambda _: os._exit(0) if self.stopping and not self.taken else 0.5
        self.connection.set_retry(Retry(nap, retries=-1, supported_errors=errors))
        take = lambda job_id, **_: setattr(self, "taken", job_id) or job_id
        self.connection.set_response_callback("BLMOVE", take)  # RQ's wait for a job
        self.stopping, self.taken = False, None

    def request_stop(self, signum, frame):
        try:
            super().request_stop(signum, frame)
        except rq.exceptions.StopRequested:  # it would drop a job that just arrives
            self.stopping = True

    @property
    def should_run_maintenance_tasks(self):
        if self.stopping:  # RQ asks before each wait for a job, a good place to stop
            raise rq.exceptions.StopRequested
        due = super().should_run_maintenance_tasks  # not until all know Redis is back
        return due and self.connection.info("server")["uptime_in_seconds"] > 10

    def handle_job_success(self, *args, **options):
        self.set_state("busy")  # waits until Redis has room; RQ's transaction does not
        super().handle_job_success(*args, **options)

    def handle_exception(self, job, *exc_info):
        if not issubclass(exc_info[0], NotificationError):
            super().handle_exception(job, *exc_info)


class PatientWorker(Patient, rq.Worker): ...


class PatientSimpleWorker(Patient, rq.SimpleWorker): ...


if __name__ == "__main__":
    redis_client.run(main)
