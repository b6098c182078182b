"""The job scripts through faults, on a real Redis: kills, restarts, a full Redis."""

import importlib
import os
import signal
import time

import pytest
import redis
from conftest import wait_until
from jobs import (
    let_jobs_in_hand_look_abandoned,
    start_processor,
    status,
    told_of_each_job,
    wait_for_followers,
    work,
)
from rq import Queue

creator_script = importlib.import_module("7_job_creator")
job_script = importlib.import_module("8_job")
processor_script = importlib.import_module("7_job_processor")

QUEUE = "push_notification_code_2"
ALLOWED = {"phoneNumber": "4153518743", "message": "hello"}


def work_horses(processor):
    """Return the ids of the processes that run a job: each leads a group of its own."""
    pids = [pid for pid in processor.processes() if pid != processor.process.pid]
    return [pid for pid in pids if os.getpgid(pid) == pid]


class Following:
    """A creator that queues any function, and what it prints of its jobs."""

    def __init__(self, server, capsys):
        self.queue = Queue(QUEUE, connection=server.rq_connection)
        self.capsys = capsys
        self.count = 0

    def enqueue(self, function, *arguments):
        self.count += 1
        with creator_script.following(self.queue) as waiting:
            waiting.add(str(self.count))
            options = {"job_id": str(self.count), **processor_script.HOOKS}
            return self.queue.enqueue(function, *arguments, **options)

    def until_all_ended(self):
        """Wait for the end of all jobs, and return the lines."""
        wait_for_followers()
        return self.capsys.readouterr().out.splitlines()


@pytest.fixture
def following(redis_server, capsys):
    return Following(redis_server, capsys)


@pytest.fixture(scope="module", autouse=True)
def old_server(shared_redis):
    """A Redis that grows old while the tests before those that need it run."""
    return shared_redis


@pytest.fixture
def old_redis(old_server):
    """A Redis that has run for so long that workers do maintenance on it; empty."""
    old_server.client.flushall()
    wait_until(lambda: old_server.client.info("server")["uptime_in_seconds"] > 10, 15)
    return old_server


def test_a_killed_work_horse_fails_its_job_and_the_creator_says_so(
    start, redis_server, following
):
    processor = start_processor(start, redis_server)
    job = following.enqueue("time.sleep", 60)
    wait_until(lambda: status(redis_server, job) == "started")
    [horse] = work_horses(processor)
    os.kill(horse, signal.SIGKILL)
    error = "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9)"
    assert following.until_all_ended() == [f"Notification job 1 failed: {error}"]
    assert status(redis_server, job) == "failed"
    following.enqueue("time.time")
    assert following.until_all_ended() == ["Notification job 2 completed"]


def test_a_killed_worker_is_replaced_and_its_job_runs_to_its_end(
    start, redis_server, following
):
    processor = start_processor(start, redis_server)
    job = following.enqueue("time.sleep", 1.5)
    wait_until(lambda: status(redis_server, job) == "started")
    worker = redis_server.client.hget(job.key, "worker_name")
    os.kill(int(redis_server.client.hget(f"rq:worker:{worker}", "pid")), signal.SIGKILL)
    wait_until(lambda: redis_server.client.scard("rq:workers") == 3)
    others = [following.enqueue("time.sleep", 0.5) for _ in range(2)]
    # Two at a time again.
    wait_until(lambda: {status(redis_server, job) for job in others} == {"started"})
    assert "failed" not in "".join(following.until_all_ended())
    processor.stop(signal.SIGTERM)
    assert processor.end() == 0
    assert processor.processes() == []


def test_jobs_outlive_a_redis_restart(start, redis_server, capsys):
    processor = start_processor(start, redis_server)
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    jobs = job_script.create_push_notifications_jobs([ALLOWED] * 100, queue)
    processor.wait_for("Sending", 20)
    redis_server.stop()
    redis_server.start()
    wait_for_followers()
    told = told_of_each_job(capsys.readouterr().out.splitlines())
    assert sorted(told) == sorted(job.id for job in jobs)
    assert {texts[-1] for texts in told.values()} == {"completed"}
    wait_until(lambda: {status(redis_server, job) for job in jobs} == {"finished"})
    # At least once; more often only what was in hand.
    assert 100 <= len(processor.lines) <= 102
    assert processor.errors == []


CREATORS = {"6_job_creator.py": 1, "7_job_creator.py": 11, "8_job.py": 1}  # jobs


def start_creators(start, server):
    """Start all the creators, and wait until their jobs are created."""
    creators = [start(name, server.url) for name in CREATORS]
    for script, count in zip(creators, CREATORS.values()):
        script.wait_for("created", count)
    return creators


def test_creators_outlive_a_redis_restart(start, redis_server):
    creators = start_creators(start, redis_server)
    redis_server.stop()
    redis_server.start()
    connection = redis_server.rq_connection
    work(connection, *Queue.all(connection))
    for script in creators:
        assert script.end() == 0
        assert script.errors == []
    ends = [line for script in creators for line in script.lines if "complet" in line]
    assert len([line for line in ends if line.endswith("completed")]) == 1 + 9


def test_creators_report_their_jobs_as_failed_when_redis_is_emptied(
    start, redis_server
):
    creators = start_creators(start, redis_server)
    redis_server.client.flushall()
    for script, count in zip(creators, CREATORS.values()):
        assert script.end() == 0
        assert script.errors == []
        assert sum("created" in line for line in script.lines) == count
        assert sum("failed" in line for line in script.lines) == count


def test_a_full_redis_is_one_clear_line_and_nothing_is_queued(start, redis_server):
    redis_server.client.config_set("maxmemory", 1)
    for script in [start(name, redis_server.url) for name in CREATORS]:
        assert script.end() == 1
        assert script.lines == []
        [error] = script.errors
        assert error.startswith("Redis: command not allowed when used memory")
    assert redis_server.client.keys() == []


def test_a_full_redis_takes_none_of_a_long_list(redis_server, capsys):
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    used = redis_server.client.info("memory")["used_memory"]
    redis_server.client.config_set("maxmemory", used + 500_000)
    with pytest.raises(redis.RedisError, match="not allowed when used memory"):
        job_script.create_push_notifications_jobs([ALLOWED] * 2_000, queue)
    assert redis_server.client.keys("rq:*") == []
    assert capsys.readouterr().out == ""


def test_a_new_processor_fails_the_jobs_that_a_killed_one_had_in_hand(
    start, old_redis, capsys
):
    following = Following(old_redis, capsys)
    processor = start_processor(start, old_redis)
    jobs = [following.enqueue("time.sleep", 60) for _ in range(2)]
    jobs += [following.enqueue("time.time") for _ in range(3)]
    wait_until(lambda: {status(old_redis, job) for job in jobs[:2]} == {"started"})
    processor.kill()
    assert let_jobs_in_hand_look_abandoned(old_redis, QUEUE) == 2
    start_processor(start, old_redis)
    assert sorted(following.until_all_ended()) == [
        "Notification job 1 failed: AbandonedJobError",
        "Notification job 2 failed: AbandonedJobError",
        "Notification job 3 completed",
        "Notification job 4 completed",
        "Notification job 5 completed",
    ]


def test_a_job_lost_on_its_way_to_a_killed_worker_is_failed(start, old_redis, capsys):
    following = Following(old_redis, capsys)
    job = following.enqueue("time.time")
    # The worker was killed after it took the job off the queue, before it ran it.
    old_redis.client.lmove(following.queue.key, following.queue.intermediate_queue_key)
    start_processor(start, old_redis)
    # RQ gives it a minute after it was first seen there. Let it be over.
    seen = f"{following.queue.intermediate_queue_key}:first_seen:{job.id}"
    wait_until(lambda: old_redis.client.exists(seen))
    old_redis.client.set(seen, time.time() - 61)
    start_processor(start, old_redis)  # looks at its start, the first in 5 s
    error = "Job was stuck in intermediate queue."
    assert following.until_all_ended() == [f"Notification job 1 failed: {error}"]
