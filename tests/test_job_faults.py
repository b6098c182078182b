"""The job scripts through faults, on a real Redis: kills, restarts, a full Redis.

Most of them wait, so these are scenarios: `scenarios.py` tells how they are played. What
runs jobs in this process needs the main thread of it, and is an ordinary test.
"""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
import redis
import scenarios
from conftest import ROOT, run_code, wait_until
from jobs import (
    let_jobs_in_hand_look_abandoned,
    start_hasty_processor,
    start_processor,
    status,
    told_of_each_job,
    wait_for_status,
    work,
)
from rq import Queue
from test_job_scripts import assert_lines_of_eleven_jobs

creator_7 = importlib.import_module("7_job_creator")
job_script = importlib.import_module("8_job")

QUEUE = "push_notification_code_2"
ALLOWED = {"phoneNumber": "4153518743", "message": "hello"}
scenario = scenarios.Scenarios()


def work_horses(processor):
    """Return the ids of the processes that run a job: each leads a group of its own."""
    pids = [pid for pid in processor.processes() if pid != processor.process.pid]
    return [pid for pid in pids if os.getpgid(pid) == pid]


class Following:
    """A creator that queues any function, and what it is told of its jobs."""

    def __init__(self, server):
        self.queue = Queue(QUEUE, connection=server.rq_connection)
        self.jobs = []
        self.ends = []

    def enqueue(self, function, *arguments):
        hooks = creator_7.processor_7.HOOKS
        job = self.queue.enqueue(function, *arguments, **hooks)
        self.jobs.append(job)
        creator_7.follow([job], self.queue, self.note_end)
        return job

    def note_end(self, job, event, detail):
        self.ends.append((job.id, detail if event == "failed" else event))

    def until_all_ended(self):
        """Wait for the end of all jobs; return their errors, or "complete"."""
        wait_until(lambda: len(self.ends) >= len(self.jobs), state=self.ends)
        ends = dict(self.ends)
        assert len(ends) == len(self.ends)
        return [ends[job.id] for job in self.jobs]


@scenario
def a_killed_work_horse_fails_its_job_and_the_creator_says_so(start, start_redis):
    server = start_redis()
    processor = start_processor(start, server)
    following = Following(server)
    job = following.enqueue("time.sleep", 60)
    wait_for_status(server, [job], "started")
    [horse] = work_horses(processor)
    os.kill(horse, signal.SIGKILL)
    error = "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9)"
    assert following.until_all_ended() == [error]
    assert status(server, job) == "failed"
    following.enqueue("time.time")
    assert following.until_all_ended() == [error, "complete"]


@scenario
def a_killed_worker_is_replaced_and_its_job_runs_to_its_end(start, start_redis):
    server = start_redis()
    processor = start_processor(start, server)
    following = Following(server)
    job = following.enqueue("time.sleep", 1.5)
    wait_for_status(server, [job], "started")
    worker = server.client.hget(job.key, "worker_name")
    os.kill(int(server.client.hget(f"rq:worker:{worker}", "pid")), signal.SIGKILL)
    wait_until(lambda: server.client.scard("rq:workers") == 3)
    others = [following.enqueue("time.sleep", 0.5) for _ in range(2)]
    # Two at a time again.
    wait_for_status(server, others, "started")
    assert following.until_all_ended() == ["complete"] * 3
    processor.stop(signal.SIGTERM)
    assert processor.end() == 0
    assert processor.processes() == []


@scenario
def jobs_outlive_a_redis_restart(start, start_redis):
    server = start_redis()
    processor = start_processor(start, server)
    following = Following(server)
    jobs = [following.enqueue("time.sleep", 0.3) for _ in range(10)]
    # Both workers are at work, and none is just taking a job: that one could be lost.
    wait_until(lambda: [status(server, job) for job in jobs].count("started") == 2)
    server.stop()
    server.start()
    assert following.until_all_ended() == ["complete"] * 10
    wait_for_status(server, jobs, "finished")
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


@scenario
def creators_report_their_jobs_as_failed_when_redis_is_emptied(start, start_redis):
    server = start_redis()
    creators = start_creators(start, server)
    server.client.flushall()
    for script, count in zip(creators, CREATORS.values()):
        assert script.end() == 0
        assert script.errors == []
        assert sum("created" in line for line in script.lines) == count
        assert sum("failed" in line for line in script.lines) == count


@scenario
def a_full_redis_is_one_clear_line_and_nothing_is_queued(start, start_redis):
    server = start_redis()
    server.client.config_set("maxmemory", 1)
    for script in [start(name, server.url) for name in CREATORS]:
        assert script.end() == 1
        assert script.lines == []
        [error] = script.errors
        assert error.startswith("Redis: command not allowed when used memory")
    assert server.client.keys() == []


def test_a_full_redis_takes_none_of_a_long_list(redis_server, capsys):
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    used = redis_server.client.info("memory")["used_memory"]
    redis_server.client.config_set("maxmemory", used + 500_000)
    with pytest.raises(redis.RedisError, match="not allowed when used memory"):
        job_script.create_push_notifications_jobs([ALLOWED] * 2_000, queue)
    assert redis_server.client.keys("rq:*") == []
    assert capsys.readouterr().out == ""


@scenario
def a_new_processor_fails_the_jobs_that_a_killed_one_had_in_hand(start, start_redis):
    server = start_redis()
    processor = start_processor(start, server)
    following = Following(server)
    jobs = [following.enqueue("time.sleep", 60) for _ in range(2)]
    for _ in range(3):
        following.enqueue("time.time")
    wait_for_status(server, jobs, "started")
    processor.kill()
    assert let_jobs_in_hand_look_abandoned(server, QUEUE) == 2
    with start_hasty_processor(server, "7_job_processor.py"):
        ends = following.until_all_ended()
    assert ends == ["AbandonedJobError"] * 2 + ["complete"] * 3


@scenario
def a_job_lost_on_its_way_to_a_killed_worker_is_failed(start, start_redis):
    server = start_redis()
    server.require(6, 2)  # before, RQ has no intermediate queue
    following = Following(server)
    job = following.enqueue("time.time")
    # The worker was killed after it took the job off the queue, before it ran it.
    intermediate = following.queue.intermediate_queue_key
    server.client.lmove(following.queue.key, intermediate)
    with start_hasty_processor(server, "7_job_processor.py"):
        # RQ gives it a minute after it was first seen there. Let it be over.
        seen = f"{intermediate}:first_seen:{job.id}"
        wait_until(lambda: server.client.exists(seen))
        server.client.set(seen, time.time() - 61)
        assert following.until_all_ended() == ["Job was stuck in intermediate queue."]


@scenario
def a_handler_finds_that_rq_has_recorded_the_end_with_which_it_is_called(
    start, start_redis
):
    server = start_redis()
    start_processor(start, server)
    queue = Queue(QUEUE, connection=server.rq_connection)
    statuses = []

    def note_status(job, event, detail):
        if event in creator_7.ENDS:
            statuses.append((event, job.get_status()))

    jobs = [queue.prepare_data("time.time", **creator_7.processor_7.HOOKS)] * 30
    jobs += [queue.prepare_data("time.fail", **creator_7.processor_7.HOOKS)] * 30
    creator_7.follow(queue.enqueue_many(jobs), queue, note_status)
    wait_until(lambda: len(statuses) == 60)
    assert set(statuses) == {("complete", "finished"), ("failed", "failed")}


# Creators that are stopped, forked, or not allowed to read.


def test_a_creator_that_was_stopped_tells_all_that_it_missed(start, redis_server):
    creator = start("7_job_creator.py", redis_server.url)
    creator.wait_for("created", 11)
    os.kill(creator.process.pid, signal.SIGSTOP)
    with redis_server.rq_connection.pipeline() as pipe:
        for number in range(3000):  # of jobs of others, more than are read at once
            event = creator_7.JobEvent(f"other {number}", "progress", 50)
            event.write(pipe, QUEUE)
        pipe.execute()
    work(redis_server.rq_connection, QUEUE)
    time.sleep(1.1)  # so that it has heard nothing for long enough to ask RQ
    os.kill(creator.process.pid, signal.SIGCONT)
    assert creator.end() == 0
    assert_lines_of_eleven_jobs(creator.lines, 1)


FORKING = """
import importlib, multiprocessing, sys, threading
creator_6 = importlib.import_module("6_job_creator")
job_script = importlib.import_module("8_job")
JOBS = [{"phoneNumber": "1", "message": "hello"}] * 20

def create():
    job_script.create_push_notifications_jobs(JOBS, creator_6.create_queue("q"))

def create_and_wait():
    create()
    job_script.creator_7.wait_for_jobs()

def fork(count):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=create_and_wait) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        if child.exitcode != 0:
            print("a child failed", file=sys.stderr)

def fork_at_the_end(job, event, detail):
    if event == "complete":
        fork(1)
        forker = threading.Thread(target=fork, args=[1])
        forker.start()
        forker.join()

create()
queue = creator_6.create_queue("q")
job = queue.enqueue("time.time", **job_script.creator_7.processor_7.HOOKS)
job_script.creator_7.follow([job], queue, fork_at_the_end)
forker = threading.Thread(target=fork, args=[2], daemon=True)
forker.start()
fork(16)
forker.join()
job_script.creator_7.wait_for_jobs()
"""


def test_processes_forked_while_jobs_are_followed_follow_their_own(redis_server):
    url, connection = redis_server.url, redis_server.rq_connection
    with run_code(FORKING, url) as script:
        end = time.monotonic() + 60
        while script.process.poll() is None and time.monotonic() < end:
            work(connection, "q")
        assert script.end() == 0
    told = told_of_each_job([line.strip() for line in script.lines])
    assert len(told) == 21 * 20
    texts = ["0% complete", "50% complete", "completed"]
    assert all(told[job_id] == texts for job_id in told)
    assert script.errors == []


def test_jobs_are_told_while_any_thread_goes_on(redis_server):
    code = """
import importlib, threading
creator_6 = importlib.import_module("6_job_creator")
job_script = importlib.import_module("8_job")
jobs = [{"phoneNumber": "1", "message": "hello"}]
job_script.create_push_notifications_jobs(jobs, creator_6.create_queue("q"))
threading.Thread(target=input).start()
"""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {"REDIS_URL": redis_server.url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=env, **options) as process:
        assert process.stdout.readline() == "Notification job created: 1\n"
        work(redis_server.rq_connection, "q")
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[-1] == "Notification job 1 completed\n"
        process.communicate("\n", timeout=10)
    assert process.returncode == 0


@scenario.given(fault="no right to read")
@scenario.given(fault="no stream")
def a_creator_that_cannot_read_the_stream_says_so_and_tells_the_ends(
    start, start_redis, fault
):
    server = start_redis()
    url = server.url
    if fault == "no stream":
        server.client.set(f"events:{QUEUE}", "a string")
    else:
        url = server.url_of_user("+@all", "-xread")
    creator = start("7_job_creator.py", url)
    creator.wait_for("created", 11)
    start_processor(start, server)
    assert creator.end() == 1
    [error] = creator.errors
    assert error.startswith("Redis refuses what is needed to follow jobs: ")
    text = "\n".join(creator.lines)
    assert (text.count("completed"), text.count("failed")) == (9, 2)


@pytest.mark.parametrize("scenario", scenario.collected)
def test_that(scenario, outcomes):
    outcomes[scenario].result()
