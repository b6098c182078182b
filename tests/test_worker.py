"""The workers of the processors, on a real Redis: stops, delayed jobs, a full Redis, rights."""

import signal
import sys
import time
from datetime import datetime, timedelta

import pytest
from conftest import ROOT, Script, processes_of_session, wait_until
from jobs import (
    QUEUES,
    let_jobs_in_hand_look_abandoned,
    queue_sleep,
    start_hasty_processor,
    start_processor,
    start_processors,
    status,
    wait_for_status,
)
from rq import Callback, Queue, Retry
from rq.suspension import resume, suspend

WORKER_CLASSES = "PatientWorker", "PatientSimpleWorker"


@pytest.fixture
def rq_command():
    """A function that runs a command of RQ, such as `rq worker`; all end after the test."""
    scripts = []

    def run(command, url, *options):
        # RQ greets with HELLO, which Redis 5 does not know, unless the URL says this.
        url += "?protocol=2"
        words = sys.executable, "-m", "rq.cli", *command.split(), "--url", url
        scripts.append(Script(*words, *options, cwd=ROOT))
        return scripts[-1]

    yield run
    for script in scripts:
        script.kill()


@pytest.fixture
def start_all(start, rq_command, redis_server):
    """A function that starts both processors, and a pool of RQ with the Simple worker.

    The pool works on a queue `simple`.
    """

    def start_all():
        scripts = start_processors(start, redis_server, *QUEUES)
        pool = "worker-pool -n 2 -q -w 6_job_processor.PatientSimpleWorker simple"
        scripts.append(rq_command(pool, redis_server.url))
        wait_until(lambda: redis_server.client.scard("rq:workers") == 5, state=scripts)
        return scripts

    return start_all


def queues(server):
    """Return the queues that the scripts of `start_all` work on."""
    names = [*QUEUES.values(), "simple"]
    return [Queue(name, connection=server.rq_connection) for name in names]


def wait_until_idle(server, scripts, state="idle"):
    def states():
        keys = server.client.smembers("rq:workers")
        return [server.client.hget(key, "state") for key in keys]

    wait_until(lambda: states() == [state] * 5, state=scripts)


def assert_end_in_time(scripts, signum):
    """Stop scripts; make sure that each ends in time, with status 0, and says nothing."""
    for script in scripts:
        script.stop(signum)
    end = time.monotonic() + 3
    for script in scripts:
        assert script.end(end - time.monotonic()) == 0
        assert script.processes() == []
        assert script.errors == []


# Stopping.


def test_a_stopped_processor_finishes_the_job_in_hand(start, redis_server):
    processors = start_processors(start, redis_server, *QUEUES, *QUEUES)
    one_at_a_time, two_at_a_time = QUEUES.values()
    names = [one_at_a_time] * 2 + [two_at_a_time] * 3  # one of six workers is idle
    jobs = queue_sleep(redis_server, 0.5, *names)
    wait_for_status(redis_server, jobs, "started")
    signums = signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM
    for processor, signum in zip(processors, signums):
        processor.stop(signum)
    for processor in processors:
        assert processor.end() == 0
        assert processor.processes() == []
        assert processor.errors == []
    assert [status(redis_server, job) for job in jobs] == ["finished"] * 5


def test_a_job_in_hand_is_not_cut_short_by_the_time_for_a_stop(start_all, redis_server):
    scripts = start_all()
    jobs = [queue.enqueue("time.sleep", 4) for queue in queues(redis_server)]
    wait_for_status(redis_server, jobs, "started")
    for script in scripts:
        script.stop(signal.SIGINT)
    for script in scripts:
        assert script.end() == 0
    assert [status(redis_server, job) for job in jobs] == ["finished"] * 3


def test_a_second_ctrl_c_gives_the_job_in_hand_up(start, redis_server):
    processors = start_processors(start, redis_server, *QUEUES)
    jobs = queue_sleep(redis_server, 60)
    wait_for_status(redis_server, jobs, "started")
    for processor in processors:
        processor.stop(signal.SIGINT)
    time.sleep(1.1)  # RQ takes a second signal within a second for the same
    for processor in processors:
        processor.stop(signal.SIGINT)
    for processor in processors:
        processor.end()
        assert processor.processes() == []
    # A later processor fails them.
    assert [job.get_status() for job in jobs] == ["started", "started"]


def test_no_job_is_lost_when_processors_are_stopped_under_load(start, redis_server):
    processors = start_processors(start, redis_server, *QUEUES, *QUEUES, *QUEUES)
    connection = redis_server.rq_connection
    both = [Queue(name, connection=connection) for name in QUEUES.values()]
    for queue in both:
        queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(1000))
    lefts = 990, 990, 970, 970, 950, 950
    for processor, queue, left in zip(processors, both * 3, lefts):
        wait_until(lambda queue=queue, left=left: len(queue) < left)
        processor.stop(signal.SIGINT)
    assert [processor.end() for processor in processors] == [0] * 6
    for queue in both:
        assert redis_server.client.llen(queue.intermediate_queue_key) == 0
        assert 0 < len(queue) == 1000 - queue.finished_job_registry.count


def test_workers_of_the_pool_of_rq_stop_without_losing_a_job(rq_command, redis_server):
    pools = {}
    for name in WORKER_CLASSES:
        queue = Queue(name, connection=redis_server.rq_connection)
        queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(2000))
        command = f"worker-pool -n 3 -q -w 6_job_processor.{name} {name}"
        pools[queue] = rq_command(command, redis_server.url)
    for queue, pool in pools.items():
        wait_until(lambda queue=queue: queue.finished_job_registry.count > 50)
        pool.stop(signal.SIGINT)
    for queue, pool in pools.items():
        pool.end()
        assert pool.processes() == []
        assert redis_server.client.llen(queue.intermediate_queue_key) == 0
        assert 0 < len(queue) == 2000 - queue.finished_job_registry.count


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("before", [True, False])
def test_one_signal_ends_suspended_workers(start_all, redis_server, signum, before):
    connection = redis_server.rq_connection
    if before:
        suspend(connection)
    scripts = start_all()
    if not before:
        wait_until_idle(redis_server, scripts)
        suspend(connection)
        for queue in queues(redis_server) * 2:
            queue.enqueue("time.time")  # an idle worker hears of it after its next job
    wait_until_idle(redis_server, scripts, "suspended")
    assert_end_in_time(scripts, signum)


def test_suspended_workers_work_when_they_are_resumed(start_all, redis_server):
    connection = redis_server.rq_connection
    suspend(connection)
    scripts = start_all()
    wait_until_idle(redis_server, scripts, "suspended")
    jobs = [queue.enqueue("time.time") for queue in queues(redis_server)]
    resume(connection)
    wait_for_status(redis_server, jobs, "finished")


@pytest.mark.parametrize("seconds", [0, 0.1, 0.6])
def test_one_signal_ends_workers_when_redis_has_gone_away_after_a_job(
    start_all, redis_server, seconds
):
    scripts = start_all()
    jobs = [queue.enqueue("time.time") for queue in queues(redis_server) for _ in "12"]
    wait_for_status(redis_server, jobs, "finished")
    time.sleep(seconds)
    redis_server.process.kill()
    redis_server.process.wait()
    assert_end_in_time(scripts, signal.SIGINT)


def test_one_signal_ends_workers_whose_redis_does_not_answer(start_all, redis_server):
    scripts = start_all()
    wait_until_idle(redis_server, scripts)
    redis_server.process.send_signal(signal.SIGSTOP)
    time.sleep(1.1)  # until each waits for an answer
    try:
        assert_end_in_time(scripts, signal.SIGINT)
    finally:
        redis_server.process.send_signal(signal.SIGCONT)


# Delayed jobs.


def test_delayed_jobs_are_queued_when_they_are_due(start_all, redis_server):
    start_all()
    now = datetime.now().astimezone()
    jobs = []
    for queue in queues(redis_server):
        jobs.append(queue.enqueue_in(timedelta(seconds=2), "time.time"))
        jobs.append(queue.enqueue_at(now + timedelta(seconds=2), "time.time"))
        retry = Retry(max=2, interval=1)
        jobs.append(queue.enqueue("operator.truediv", 1, 0, retry=retry))
    ends = "finished", "failed"
    wait_until(lambda: {status(redis_server, job) for job in jobs} == set(ends))
    for job in jobs:
        job.refresh()
        if job.is_failed:
            assert job.retries_left == 0
        else:
            # RQ keeps whole seconds, so it may come up to a second early.
            assert 1 <= (job.ended_at - now).total_seconds() < 4.2


def test_jobs_that_are_due_at_once_run_once_each(start_all, redis_server):
    start_all()
    for queue in queues(redis_server):
        for _ in range(100):
            queue.enqueue_in(timedelta(seconds=1), "6_job_processor.redis.Redis")
    every = queues(redis_server)
    wait_until(lambda: [q.finished_job_registry.count for q in every] == [100] * 3)
    successes = "successful_job_count"
    counts = [
        int(redis_server.client.hget(key, successes) or 0)
        for key in redis_server.client.smembers("rq:workers")
    ]
    assert sum(counts) == 300


def test_a_killed_processor_leaves_nothing_that_keeps_delayed_jobs(start, redis_server):
    processor = start_processor(start, redis_server)
    assert len(processor.processes()) == 3  # no scheduler is among them
    queue = Queue(QUEUES["7_job_processor.py"], connection=redis_server.rq_connection)
    processor.kill()
    job = queue.enqueue_in(timedelta(seconds=1), "time.time")
    start_processor(start, redis_server)
    # Unless it was killed just while it queued what was due: then after a minute.
    wait_for_status(redis_server, [job], "finished")


def test_the_pool_of_rq_starts_no_scheduler_for_these_workers(rq_command, redis_server):
    pools = [
        rq_command(f"worker-pool -n 2 -q -w 6_job_processor.{name} q", redis_server.url)
        for name in WORKER_CLASSES
    ]
    wait_until(lambda: redis_server.client.scard("rq:workers") == 4)
    for pool in pools:
        assert len(processes_of_session(pool.process.pid)) == 1 + 2


# Signs of life.


def test_a_worker_stays_registered_while_it_waits_and_while_it_works(
    start_all, redis_server
):
    scripts = start_all()
    jobs = [queue.enqueue("time.sleep", 7) for queue in queues(redis_server)]
    wait_for_status(redis_server, jobs, "started")
    time.sleep(6)
    for key in redis_server.client.smembers("rq:workers"):
        assert redis_server.client.ttl(key) > 58  # of 76 s at rest, and of 65 s at work
    for queue in queues(redis_server)[:2]:  # the Simple worker's lease is a longer one
        [(_, until)] = redis_server.client.zrange(
            f"rq:wip:{queue.name}", 0, -1, withscores=True
        )
        assert until - time.time() > 60
    assert [script.errors for script in scripts] == [[], [], []]


def test_a_running_job_outlives_the_sleep_of_the_machine(redis_server):
    name = "6_job_processor.py"
    both = [
        start_hasty_processor(redis_server, name, ABSENCE=2, REST_AFTER_ABSENCE=5)
        for _ in range(2)
    ]
    try:
        [job] = queue_sleep(redis_server, 7, QUEUES[name])
        wait_for_status(redis_server, [job], "started")
        worker_key = f"rq:worker:{redis_server.client.hget(job.key, 'worker_name')}"
        pid = int(redis_server.client.hget(worker_key, "pid"))
        [busy] = [script for script in both if script.process.pid == pid]
        [idle] = [script for script in both if script is not busy]
        locked = "rq:maintenance:" + QUEUES[name]
        before = redis_server.client.info("commandstats")
        # All sleep until the job's lease is over; the idle worker is the first to wake.
        for script in both:
            script.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        assert let_jobs_in_hand_look_abandoned(redis_server, QUEUES[name]) == 1
        idle.process.send_signal(signal.SIGCONT)
        time.sleep(2)
        assert status(redis_server, job) == "started", (locked, before)
        busy.process.send_signal(signal.SIGCONT)
        wait_for_status(redis_server, [job], "finished")
    finally:
        for script in both:
            script.kill()
    assert [script.errors for script in both] == [[], []]


# A Redis that is full, or that gives only the rights that RQ needs.


def refused(server):
    """Return how many commands Redis has refused as it is full."""
    server.require(6, 2)
    errors = server.client.info("errorstats")
    return errors.get("errorstat_OOM", {"count": 0})["count"]


def test_a_processor_waits_until_a_full_redis_has_room(start, redis_server):
    queue = Queue(QUEUES["7_job_processor.py"], connection=redis_server.rq_connection)
    job = queue.enqueue("time.time")
    redis_server.client.config_set("maxmemory", 1)
    processor = start("7_job_processor.py", redis_server.url)
    wait_until(lambda: refused(redis_server) > 5)
    redis_server.client.config_set("maxmemory", 0)
    wait_for_status(redis_server, [job], "finished")
    assert processor.errors == []


def fill_redis(job, connection, result):
    """A callback after which Redis is full, just before RQ records a job's end."""
    connection.config_set("maxmemory", 1)


@pytest.mark.parametrize("name", WORKER_CLASSES)
def test_a_job_whose_end_a_full_redis_refuses_does_not_hammer_it(
    rq_command, redis_server, name
):
    queue = Queue("q", connection=redis_server.rq_connection)
    command = f"worker --quiet --path tests -w 6_job_processor.{name} q"
    rq_command(command, redis_server.url)
    fill = Callback("test_worker.fill_redis")
    job = queue.enqueue("time.time", on_success=fill)
    wait_until(lambda: refused(redis_server) > 0)
    before = refused(redis_server)
    time.sleep(1)
    assert refused(redis_server) - before < 100  # some for each of two attempts
    redis_server.client.config_set("maxmemory", 0)
    wait_for_status(redis_server, [job], "finished")


def test_workers_need_no_dangerous_rights(start, rq_command, redis_server):
    url = redis_server.url_of_user("+@all", "-@dangerous")
    scripts = [start(name, url) for name in QUEUES]
    worker = "worker --quiet -w 6_job_processor.PatientSimpleWorker simple"
    scripts.append(rq_command(worker, url))
    jobs = [queue.enqueue("time.time") for queue in queues(redis_server)]
    jobs += [
        queue.enqueue_in(timedelta(seconds=1), "time.time")
        for queue in queues(redis_server)
    ]
    wait_for_status(redis_server, jobs, "finished")
    assert_end_in_time(scripts, signal.SIGTERM)


def test_an_error_that_ends_a_worker_ends_all_with_status_1(
    start, rq_command, redis_server
):
    url = redis_server.url_of_user("+@all", "-blmove", "-blpop")
    scripts = [start(name, url) for name in QUEUES]
    worker = "worker --quiet -w 6_job_processor.PatientSimpleWorker simple"
    scripts.append(rq_command(worker, url))
    for script in scripts:
        assert script.end() == 1
        assert script.lines == []
        assert "no permissions to run the 'blmove' command" in "\n".join(script.errors)
        assert script.processes() == []
