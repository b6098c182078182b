"""The workers of the processors, on a real Redis: stops, and a Redis that is full."""

import signal
import sys
import time

import pytest
from conftest import ROOT, Script, wait_until
from jobs import QUEUES, queue_sleep, start_processors, status, wait_for_status
from rq import Queue


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


# Stopping.


def test_a_stopped_processor_finishes_the_job_in_hand(start, redis_server):
    processors = start_processors(start, redis_server, *QUEUES, *QUEUES)
    one_at_a_time, two_at_a_time = QUEUES.values()
    queues = [one_at_a_time] * 2 + [two_at_a_time] * 3  # one of six workers is idle
    jobs = queue_sleep(redis_server, 0.5, *queues)
    wait_for_status(redis_server, jobs, "started")
    signums = signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM
    for processor, signum in zip(processors, signums):
        processor.stop(signum)
    for processor in processors:
        assert processor.end() == 0
        assert processor.processes() == []
        assert processor.errors == []
    assert [status(redis_server, job) for job in jobs] == ["finished"] * 5


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
    queues = [Queue(name, connection=connection) for name in QUEUES.values()]
    for queue in queues:
        queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(1000))
    lefts = 990, 990, 970, 970, 950, 950
    for processor, queue, left in zip(processors, queues * 3, lefts):
        wait_until(lambda queue=queue, left=left: len(queue) < left)
        processor.stop(signal.SIGINT)
    assert [processor.end() for processor in processors] == [0] * 6
    for queue in queues:
        assert redis_server.client.llen(queue.intermediate_queue_key) == 0
        assert 0 < len(queue) == 1000 - queue.finished_job_registry.count


def test_workers_of_the_pool_of_rq_stop_without_losing_a_job(rq_command, redis_server):
    pools = {}
    for name in "PatientWorker", "PatientSimpleWorker":
        queue = Queue(name, connection=redis_server.rq_connection)
        queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(2000))
        command = f"worker-pool -n 3 -q -w 6_job_processor.{name} {name}"
        pools[queue] = rq_command(command, redis_server)
    for queue, pool in pools.items():
        wait_until(lambda queue=queue: queue.finished_job_registry.count > 50)
        pool.stop(signal.SIGINT)
    for queue, pool in pools.items():
        pool.end()
        assert pool.processes() == []
        assert redis_server.client.llen(queue.intermediate_queue_key) == 0
        assert 0 < len(queue) == 2000 - queue.finished_job_registry.count


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
