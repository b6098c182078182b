"""The workers of the processors, on a real Redis: stops, and a Redis that is away or full."""

import os
import signal
import sys
import time

import pytest
from conftest import NOT_CONNECTED, ROOT, Script, wait_until
from jobs import (
    let_jobs_in_hand_look_abandoned,
    start_processor,
    start_processors,
    status,
)
from rq import Queue

QUEUES = {
    "6_job_processor.py": "push_notification_code",
    "7_job_processor.py": "push_notification_code_2",
}


@pytest.fixture
def rq_command():
    """A function that runs a command of RQ, such as `rq worker`; all end after the test."""
    scripts = []

    def run(command, server, *options):
        words = sys.executable, "-m", "rq.cli", *command.split(), "--url", server.url
        scripts.append(Script(*words, *options, cwd=ROOT))
        return scripts[-1]

    yield run
    for script in scripts:
        script.kill()


def states(server):
    """Return the states of all workers."""
    keys = server.client.smembers("rq:workers")
    return [server.client.hget(key, "state") for key in keys]


def queue_sleep(server, seconds, *queue_names):
    """Queue a job that takes some seconds, in each queue (of all processors)."""
    return [
        Queue(name, connection=server.rq_connection).enqueue("time.sleep", seconds)
        for name in queue_names or QUEUES.values()
    ]


def wait_for_status(server, jobs, wanted):
    wait_until(lambda: {status(server, job) for job in jobs} == {wanted})


def start_both(start, server, url=""):
    return start_processors(start, server, *QUEUES, url=url)


# Stopping.


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_processor_finishes_the_job_in_hand(start, redis_server, signum):
    processors = start_both(start, redis_server)
    jobs = queue_sleep(redis_server, 0.5)
    wait_for_status(redis_server, jobs, "started")
    for processor in processors:
        processor.stop(signum)
    for processor, job in zip(processors, jobs):
        assert processor.end() == 0
        assert status(redis_server, job) == "finished"
        assert processor.processes() == []
        assert processor.errors == []


def test_a_second_ctrl_c_gives_the_job_in_hand_up(start, redis_server):
    processors = start_both(start, redis_server)
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


def test_no_job_is_lost_when_a_processor_is_stopped_under_load(start, redis_server):
    connection = redis_server.rq_connection
    queues = [Queue(name, connection=connection) for name in QUEUES.values()]
    for queue in queues:
        queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(100))
    for jobs_left in 80, 50, 20:
        processors = [start(name, redis_server.url) for name in QUEUES]
        for queue, processor in zip(queues, processors):
            wait_until(lambda queue=queue, left=jobs_left: len(queue) < left)
            processor.stop(signal.SIGINT)
        for queue, processor in zip(queues, processors):
            assert processor.end() == 0
            assert redis_server.client.llen(queue.intermediate_queue_key) == 0
            assert len(queue) + queue.finished_job_registry.count == 100


@pytest.mark.parametrize("worker_class", ["PatientWorker", "PatientSimpleWorker"])
def test_workers_of_the_pool_of_rq_stop_without_losing_a_job(
    rq_command, redis_server, worker_class
):
    queue = Queue("q", connection=redis_server.rq_connection)
    queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(2000))
    command = f"worker-pool -n 3 -q -w 6_job_processor.{worker_class} q"
    pool = rq_command(command, redis_server)
    wait_until(lambda: queue.finished_job_registry.count > 50, state=pool)
    pool.stop(signal.SIGINT)
    pool.end()
    assert redis_server.client.llen(queue.intermediate_queue_key) == 0
    assert len(queue) + queue.finished_job_registry.count == 2000
    assert pool.processes() == []


# A Redis that is away.


def test_a_processor_outlives_an_absence_of_redis(start, redis_server):
    processors = start_both(start, redis_server)
    jobs = queue_sleep(redis_server, 0.5)
    wait_for_status(redis_server, jobs, "started")
    redis_server.stop()
    time.sleep(1)  # the jobs end meanwhile, and their work horses wait to tell
    redis_server.start()
    wait_for_status(redis_server, jobs, "finished")
    wait_for_status(redis_server, queue_sleep(redis_server, 0), "finished")
    assert [processor.errors for processor in processors] == [[], []]


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("name", QUEUES)
def test_a_job_just_taken_when_redis_goes_away_is_run_when_it_is_back(
    start, redis_server, proxy, name, stopped
):
    [processor] = start_processors(start, redis_server, name, url=proxy.url)
    proxy.away_from = b"HGETALL"  # by which a worker reads the job that it has taken
    jobs = queue_sleep(redis_server, 0, QUEUES[name])
    wait_until(lambda: proxy.is_away)
    assert redis_server.client.llen(f"rq:queue:{QUEUES[name]}:intermediate") == 1
    if stopped:
        processor.stop(signal.SIGTERM)
        time.sleep(0.7)  # in which the workers try again
    proxy.come_back()
    wait_for_status(redis_server, jobs, "finished")
    if stopped:
        assert processor.end() == 0
    assert processor.errors == []


def test_a_processor_stopped_while_redis_is_away_keeps_the_job_until_it_is_back(
    start, redis_server
):
    processor = start_processor(start, redis_server, "6_job_processor.py")
    jobs = queue_sleep(redis_server, 0.3, QUEUES["6_job_processor.py"])
    wait_for_status(redis_server, jobs, "started")
    redis_server.stop()
    processor.stop(signal.SIGTERM)
    time.sleep(1)  # the work horse is done by now, and can't tell
    assert processor.process.poll() is None
    redis_server.start()
    assert processor.end() == 0
    assert status(redis_server, jobs[0]) == "finished"
    assert processor.processes() == []


def test_a_processor_whose_workers_are_killed_while_redis_is_away_can_be_stopped(
    start, redis_server
):
    processor = start_processor(start, redis_server, "7_job_processor.py")
    redis_server.stop()
    for pid in set(processor.processes()) - {processor.process.pid}:
        os.kill(pid, signal.SIGKILL)
    processor.wait_for(NOT_CONNECTED, 2)  # by those in their place, which end at once
    processor.stop(signal.SIGTERM)
    assert processor.end() == 0
    assert processor.processes() == []


def test_maintenance_waits_until_the_workers_know_that_redis_is_back(
    start, redis_server
):
    # A job in hand, whose worker has given no sign of life for over a minute.
    processor = start_processor(start, redis_server, "6_job_processor.py")
    queue_name = QUEUES["6_job_processor.py"]
    jobs = queue_sleep(redis_server, 2, queue_name)
    wait_for_status(redis_server, jobs, "started")
    assert let_jobs_in_hand_look_abandoned(redis_server, queue_name) == 1
    redis_server.stop()
    redis_server.start()
    # A new worker would fail it as abandoned, were it not for the age of Redis.
    other = start("6_job_processor.py", redis_server.url)
    wait_for_status(redis_server, jobs, "finished")
    assert processor.errors == other.errors == []


# A Redis that is full.


def refused(server):
    """Return how many commands Redis has refused as it is full."""
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


def test_a_job_whose_end_a_full_redis_refuses_does_not_hammer_it(
    rq_command, redis_server
):
    queue = Queue("q", connection=redis_server.rq_connection)
    command = "worker --quiet --path tests -w 6_job_processor.PatientWorker q"
    rq_command(command, redis_server)
    job = queue.enqueue("time.time", on_success="test_worker.fill_redis")
    wait_until(lambda: refused(redis_server) > 0)
    before = refused(redis_server)
    time.sleep(1)
    assert refused(redis_server) - before < 20
    redis_server.client.config_set("maxmemory", 0)
    wait_for_status(redis_server, [job], "finished")
