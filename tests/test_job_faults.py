"""The job scripts through load and faults, on a real Redis."""

import collections
import importlib
import os
import signal
import sys
import time

import pytest
import redis
from conftest import ROOT, Script, wait_until, work
from rq import Callback, Queue

job_creator = importlib.import_module("6_job_creator")
creator_script = importlib.import_module("7_job_creator")
job_script = importlib.import_module("8_job")

QUEUE = "push_notification_code_2"
ALLOWED = {"phoneNumber": "4153518743", "message": "hello"}


def told_of_each_job(lines):
    """Return the texts told of each job, by its id."""
    told = collections.defaultdict(list)
    for line in lines:
        if line.startswith("Notification job ") and "created" not in line:
            job_id, text = line.removeprefix("Notification job ").split(" ", 1)
            told[job_id].append(text)
    return told


def start_processor(start, server, name="7_job_processor.py"):
    """Start a processor, and wait until its workers are registered."""
    workers = server.client.scard("rq:workers")
    script = start(name, server.url)
    added = 2 if name == "7_job_processor.py" else 1
    wait_until(
        lambda: server.client.scard("rq:workers") == workers + added, state=script
    )
    return script


def queue_sleep(server, seconds, queue_name=QUEUE):
    """Queue a job that takes some seconds."""
    queue = Queue(queue_name, connection=server.rq_connection)
    return queue.enqueue("time.sleep", seconds)


def work_horses(processor):
    """Return the ids of the processes that run a job: each leads a group of its own."""
    pids = [pid for pid in processor.processes() if pid != processor.process.pid]
    return [pid for pid in pids if os.getpgid(pid) == pid]


def status(server, job):
    return server.client.hget(job.key, "status")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["6_job_processor.py", "7_job_processor.py"])
def test_a_stopped_processor_finishes_the_job_in_hand(
    start, redis_server, name, signum
):
    processor = start_processor(start, redis_server, name)
    queue_name = importlib.import_module(name.removesuffix(".py")).QUEUE
    job = queue_sleep(redis_server, 0.5, queue_name)
    wait_until(lambda: status(redis_server, job) == "started")
    processor.stop(signum)
    assert processor.end() == 0
    assert status(redis_server, job) == "finished"
    assert processor.processes() == []
    assert processor.errors == []


@pytest.mark.parametrize("name", ["6_job_processor.py", "7_job_processor.py"])
def test_a_second_ctrl_c_gives_the_job_in_hand_up(start, redis_server, name):
    processor = start_processor(start, redis_server, name)
    queue_name = importlib.import_module(name.removesuffix(".py")).QUEUE
    job = queue_sleep(redis_server, 60, queue_name)
    wait_until(lambda: status(redis_server, job) == "started")
    processor.stop(signal.SIGINT)
    time.sleep(1.1)  # RQ takes a second signal within a second for the same
    processor.stop(signal.SIGINT)
    processor.end()
    assert processor.processes() == []


@pytest.mark.parametrize("name", ["6_job_processor.py", "7_job_processor.py"])
def test_no_job_is_lost_when_a_processor_is_stopped_under_load(
    start, redis_server, name
):
    queue_name = importlib.import_module(name.removesuffix(".py")).QUEUE
    queue = Queue(queue_name, connection=redis_server.rq_connection)
    queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(100))
    for jobs_left in 80, 50, 20:
        processor = start(name, redis_server.url)
        wait_until(lambda left=jobs_left: len(queue) < left)
        processor.stop(signal.SIGINT)
        assert processor.end() == 0
        assert redis_server.client.llen(queue.intermediate_queue_key) == 0
        assert len(queue) + queue.finished_job_registry.count == 100


class Following:
    """A creator's follower at work in a thread, and what it prints."""

    def __init__(self, server, capsys, queue_name=QUEUE):
        self.queue = Queue(queue_name, connection=server.rq_connection)
        self.follower = creator_script.Follower(self.queue)
        self.capsys = capsys

    def enqueue(self, function, *args, **options):
        [job_id] = job_creator.new_job_ids(self.queue.connection)
        job = self.queue.enqueue(
            function,
            args=args,
            job_id=job_id,
            on_success=Callback("7_job_processor.report_completed"),
            on_failure=Callback("7_job_processor.report_failed"),
            **options,
        )
        self.follower.waiting.add(job_id)
        return job

    def until_all_ended(self, timeout=20):
        """Follow, and return the lines."""
        end = time.monotonic() + timeout
        while self.follower.waiting:
            assert time.monotonic() < end, self.follower.waiting
            self.follower.show(self.follower.read())
        return self.capsys.readouterr().out.splitlines()


@pytest.fixture
def following(redis_server, capsys):
    return Following(redis_server, capsys)


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


def test_a_worker_stopped_while_redis_is_away_finishes_the_job_in_hand(redis_server):
    options = f"--url {redis_server.url} --job-monitoring-interval 1 {QUEUE}"
    command = f"{sys.executable} -m rq.cli worker -w 6_job_processor.PatientWorker"
    worker = Script(*command.split(), *options.split(), cwd=ROOT)
    try:
        job = queue_sleep(redis_server, 0.5)
        wait_until(lambda: status(redis_server, job) == "started")
        redis_server.stop()
        worker.stop(signal.SIGTERM)
        time.sleep(1.5)  # the worker wants to give a sign of life, every second
        assert worker.process.poll() is None  # and does not leave its work horse alone
        redis_server.start()
        assert worker.end() == 0
        assert status(redis_server, job) == "finished"
        assert worker.processes() == []
    finally:
        worker.kill()


def test_a_second_signal_ends_a_processor_whatever_it_waits_for(start, redis_server):
    processor = start_processor(start, redis_server)
    job = queue_sleep(redis_server, 60)
    wait_until(lambda: status(redis_server, job) == "started")
    redis_server.stop()
    processor.stop(signal.SIGTERM)
    time.sleep(1.1)  # RQ takes a second signal within a second for the same
    processor.stop(signal.SIGTERM)
    processor.end()
    assert processor.processes() == []


def test_a_processor_whose_workers_are_killed_while_redis_is_away_can_be_stopped(
    start, redis_server
):
    processor = start_processor(start, redis_server)
    redis_server.stop()
    killed = set(processor.processes()) - {processor.process.pid}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(processor.processes()) - killed) == 3)
    processor.stop(signal.SIGTERM)
    assert processor.end() == 0
    assert processor.processes() == []
    assert processor.errors == []


@pytest.mark.parametrize(
    "options",
    [
        {"socket_timeout": 0.1},
        {"decode_responses": True},
        {"single_connection_client": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_any_client_of_the_caller_will_do(redis_server, capsys, monkeypatch, options):
    monkeypatch.setattr(creator_script, "SILENCE", 0.2)
    client = redis.Redis(port=redis_server.port, **options)
    queue = Queue(QUEUE, connection=client)
    for _ in range(3):
        job_script.create_push_notifications_jobs([ALLOWED], queue)
    redis_server.client.delete("rq:job:2")
    work(redis_server.rq_connection, QUEUE)
    job_script.wait_for_jobs()
    told = told_of_each_job(capsys.readouterr().out.splitlines())
    assert {job_id: texts[-1] for job_id, texts in told.items()} == {
        "1": "completed",
        "2": "failed: the job is gone from Redis",
        "3": "completed",
    }


def test_a_process_forked_while_another_thread_prints_can_create_jobs():
    code = """
import importlib, os, threading, time
lock = importlib.import_module("8_job")._lock

def print_all_the_time():
    while True:
        with lock:
            time.sleep(0.001)
        time.sleep(0.0001)

threading.Thread(target=print_all_the_time, daemon=True).start()
for _ in range(100):
    if not (pid := os.fork()):
        os._exit(not lock.acquire(timeout=2))
    assert os.waitpid(pid, 0)[1] == 0
"""
    script = Script(sys.executable, "-W", "ignore", "-c", code, PYTHONPATH=str(ROOT))
    try:
        assert script.end(timeout=20) == 0, script
    finally:
        script.kill()


def test_a_killed_worker_is_replaced_and_its_job_runs_to_its_end(
    start, redis_server, following
):
    processor = start_processor(start, redis_server)
    job = following.enqueue("time.sleep", 2)
    wait_until(lambda: status(redis_server, job) == "started")
    worker = redis_server.client.hget(job.key, "worker_name")
    os.kill(int(redis_server.client.hget(f"rq:worker:{worker}", "pid")), signal.SIGKILL)
    wait_until(lambda: redis_server.client.scard("rq:workers") == 3)
    others = [following.enqueue("time.sleep", 1) for _ in range(2)]
    # Two at a time again.
    wait_until(lambda: {status(redis_server, job) for job in others} == {"started"})
    assert "failed" not in "".join(following.until_all_ended())
    processor.stop(signal.SIGTERM)
    assert processor.end() == 0
    assert processor.processes() == []


def test_a_new_processor_fails_the_jobs_that_a_killed_one_had_in_hand(
    start, redis_server, following
):
    processor = start_processor(start, redis_server)
    jobs = [following.enqueue("time.sleep", 60) for _ in range(2)]
    jobs += [following.enqueue("time.time") for _ in range(3)]
    wait_until(lambda: {status(redis_server, job) for job in jobs[:2]} == {"started"})
    processor.kill()
    # RQ waits a minute for news from their workers. Let it be over.
    wip = f"rq:wip:{QUEUE}"
    for execution in redis_server.client.zrange(wip, 0, -1):
        redis_server.client.zadd(wip, {execution: time.time() - 1}, xx=True)
    start_processor(start, redis_server)
    assert sorted(following.until_all_ended()) == [
        "Notification job 1 failed: AbandonedJobError",
        "Notification job 2 failed: AbandonedJobError",
        "Notification job 3 completed",
        "Notification job 4 completed",
        "Notification job 5 completed",
    ]


def test_a_job_lost_on_its_way_to_a_killed_worker_is_failed(
    start, redis_server, following
):
    job = following.enqueue("time.time")
    # The worker was killed after it took the job off the queue, before it ran it.
    redis_server.client.lmove(
        following.queue.key, following.queue.intermediate_queue_key
    )
    start_processor(start, redis_server)
    # RQ gives it a minute after it was first seen there. Let it be over.
    seen = f"{following.queue.intermediate_queue_key}:first_seen:{job.id}"
    wait_until(lambda: redis_server.client.exists(seen))
    redis_server.client.set(seen, time.time() - 61)
    start_processor(start, redis_server)  # looks at its start, the first in 5 s
    error = "Job was stuck in intermediate queue."
    assert following.until_all_ended() == [f"Notification job 1 failed: {error}"]


def test_jobs_outlive_a_redis_restart(start, redis_server, capsys):
    processor = start_processor(start, redis_server)
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    jobs = job_script.create_push_notifications_jobs([ALLOWED] * 200, queue)
    processor.wait_for("Sending", 20)
    redis_server.stop()
    redis_server.start()
    job_script.wait_for_jobs()
    told = told_of_each_job(capsys.readouterr().out.splitlines())
    assert sorted(told) == sorted(job.id for job in jobs)
    assert {texts[-1] for texts in told.values()} == {"completed"}
    wait_until(lambda: {status(redis_server, job) for job in jobs} == {"finished"})
    # At least once; more often only what was in hand.
    assert 200 <= len(processor.lines) <= 202
    assert processor.errors == []


def test_a_processor_and_a_creator_outlive_a_long_absence_of_redis(
    start, redis_server, following
):
    processor = start_processor(start, redis_server)
    alone = start_processor(start, redis_server, "6_job_processor.py")
    job = following.enqueue("time.sleep", 0.5)
    wait_until(lambda: status(redis_server, job) == "started")
    redis_server.stop()
    time.sleep(1)  # the job ends meanwhile, and its work horse waits to tell
    redis_server.start()
    assert following.until_all_ended() == ["Notification job 1 completed"]
    for name, script in ("6_job_creator.py", alone), ("7_job_creator.py", processor):
        creator = start(name, redis_server.url)
        assert creator.end() == 0
        assert script.errors == []


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
        assert "not created: command not allowed when used memory" in error
    assert redis_server.client.keys() == []


def test_a_processor_waits_until_a_full_redis_has_room(start, redis_server, following):
    following.enqueue("time.time")
    redis_server.client.config_set("maxmemory", 1)
    processor = start("7_job_processor.py", redis_server.url)

    def refused() -> int:
        errors = redis_server.client.info("errorstats")
        return errors.get("errorstat_OOM", {"count": 0})["count"]

    wait_until(lambda: refused() > 5)
    redis_server.client.config_set("maxmemory", 0)
    assert following.until_all_ended() == ["Notification job 1 completed"]
    assert processor.errors == []


def test_a_full_redis_takes_none_of_a_long_list(redis_server, capsys):
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    used = redis_server.client.info("memory")["used_memory"]
    redis_server.client.config_set("maxmemory", used + 500_000)
    with pytest.raises(redis.RedisError, match="not allowed when used memory"):
        job_script.create_push_notifications_jobs([ALLOWED] * 2_000, queue)
    assert redis_server.client.keys("rq:*") == []
    assert capsys.readouterr().out == ""


def test_a_list_of_20_000_is_queued_whole(redis_server, capsys, monkeypatch):
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    jobs = job_script.create_push_notifications_jobs([ALLOWED] * 20_000, queue)
    assert queue.job_ids == [job.id for job in jobs]
    assert [job.id for job in jobs] == [str(number) for number in range(1, 20_001)]
    assert capsys.readouterr().out.count("created") == 20_000
    monkeypatch.setattr(creator_script, "SILENCE", 0.1)
    redis_server.client.flushall()
    job_script.wait_for_jobs()


def test_a_wrong_entry_at_the_end_of_20_000_leaves_redis_as_it_was(redis_server):
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    wrong = {"phoneNumber": 4153518743, "message": "hello"}
    with pytest.raises(ValueError, match=r"^jobs\[20000\] "):
        job_script.create_push_notifications_jobs([ALLOWED] * 20_000 + [wrong], queue)
    assert redis_server.client.keys() == []


@pytest.mark.parametrize(
    "text", ["\u00fc \u2603 \U0001f600", "two\nlines", "\x00\x7f", ""]
)
def test_phone_number_and_message_hold_any_text(start, redis_server, capsys, text):
    processor = start_processor(start, redis_server)
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    job = {"phoneNumber": text, "message": text}
    job_script.create_push_notifications_jobs([job], queue)
    job_script.wait_for_jobs()
    assert capsys.readouterr().out.splitlines()[-1] == "Notification job 1 completed"
    sent = f"Sending notification to {text}, with message: {text}".split("\n")
    wait_until(lambda: len(processor.lines) == len(sent))
    assert processor.lines == sent


CREATOR_OF_500 = """
import importlib, sys
from rq import Queue
connection = importlib.import_module("0_redis_client").connect()
job_script = importlib.import_module("8_job")
jobs = [{"phoneNumber": "4153518743", "message": f"{sys.argv[1]} {n}"} for n in range(500)]
queue = Queue("push_notification_code_2", connection=connection)
for n in range(0, 500, 50):
    job_script.create_push_notifications_jobs(jobs[n:n + 50], queue)
job_script.wait_for_jobs()
"""


def test_four_creators_and_two_processors_at_once(start, redis_server):
    processors = [start_processor(start, redis_server) for _ in range(2)]
    command = "-c", CREATOR_OF_500
    creators = [
        Script(
            sys.executable,
            *command,
            str(number),
            REDIS_URL=redis_server.url,
            PYTHONPATH=str(ROOT),
        )
        for number in range(4)
    ]
    ids = set()
    for creator in creators:
        assert creator.end(timeout=60) == 0
        assert creator.errors == []
        told = told_of_each_job(creator.lines)
        assert len(told) == 500
        for job_id, texts in told.items():
            assert texts == ["0% complete", "50% complete", "completed"]
            created = creator.lines.index(f"Notification job created: {job_id}")
            progress = creator.lines.index(f"Notification job {job_id} 0% complete")
            assert created < progress
        ids.update(told)
    assert len(ids) == 2000
    sent = collections.Counter(line for script in processors for line in script.lines)
    assert len(sent) == 2000
    assert set(sent.values()) == {1}
