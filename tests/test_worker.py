"""The workers of the processors, on a real Redis: stops, delayed jobs, a full Redis, rights.

Most of them wait, so these are scenarios: `scenarios.py` tells how they are played.
"""

import importlib
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta

import pytest
import redis
import scenarios
from conftest import ROOT, Script, processes_of_session, run_code, wait_until
from jobs import (
    QUEUES,
    keeping_signal_handlers,
    let_jobs_in_hand_look_abandoned,
    queue_sleep,
    start_hasty_processor,
    start_processor,
    start_processors,
    status,
    wait_for_status,
)
from rq import Callback, Queue, Retry
from rq.scheduler import RQScheduler
from rq.suspension import resume, suspend
from scenarios import pause

processor_6 = importlib.import_module("6_job_processor")
WORKER_CLASSES = "PatientWorker", "PatientSimpleWorker"
scenario = scenarios.Scenarios()


def rq_command(command, server_url):
    """Run a command of RQ, such as `rq worker`."""
    # RQ greets with HELLO, which Redis 5 does not know, unless the URL says this.
    url = server_url + "?protocol=2"
    words = sys.executable, "-m", "rq.cli", *command.split(), "--url", url
    return Script(*words, cwd=ROOT)


@contextmanager
def all_workers(start, server):
    """Start both processors, and a pool of RQ with the Simple worker; end the pool at last.

    The pool works on a queue `simple`.
    """
    scripts = start_processors(start, server, *QUEUES)
    pool = "worker-pool -n 2 -q -w 6_job_processor.PatientSimpleWorker simple"
    with rq_command(pool, server.url) as script:
        scripts.append(script)
        wait_until(lambda: server.client.scard("rq:workers") == 5, state=scripts)
        yield scripts


def queues(server):
    """Return the queues of all workers: of one of each kind."""
    names = [*QUEUES.values(), "simple"]
    return [Queue(name, connection=server.rq_connection) for name in names]


def wait_until_all_are(state, server, scripts):
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


# Signs of life.


@contextmanager
def two_of_whom_one_is_busy(server, seconds, **constants):
    """Run two hasty processors, and a job of some seconds; yield it, its worker, and the other.

    At last the job must have ended well, and both have said nothing.
    """
    name = "6_job_processor.py"
    with ExitStack() as stack:
        both = []
        for _ in range(2):
            script = start_hasty_processor(server, name, **constants)
            both.append(stack.enter_context(script))
        [job] = queue_sleep(server, seconds, QUEUES[name])
        wait_for_status(server, [job], "started")
        worker_key = f"rq:worker:{server.client.hget(job.key, 'worker_name')}"
        pid = int(server.client.hget(worker_key, "pid"))
        [busy] = [script for script in both if script.process.pid == pid]
        [idle] = [script for script in both if script is not busy]
        yield job, busy, idle
        wait_for_status(server, [job], "finished")
    assert [script.errors for script in both] == [[], []]


@scenario
def a_running_job_outlives_the_sleep_of_the_machine(start, start_redis):
    server = start_redis()
    constants = {"ABSENCE": 2, "PAUSE_AFTER_ABSENCE": 5}
    with two_of_whom_one_is_busy(server, 7, **constants) as (job, busy, idle):
        # All sleep until the job's lease is over; the idle worker is the first to wake.
        for script in busy, idle:
            script.process.send_signal(signal.SIGSTOP)
        pause(2.5)
        assert let_jobs_in_hand_look_abandoned(server, job.origin) == 1
        idle.process.send_signal(signal.SIGCONT)
        pause(2)
        assert status(server, job) == "started"
        busy.process.send_signal(signal.SIGCONT)


@scenario
def a_running_job_outlives_a_restart_of_redis_when_others_are_back_first(
    start, start_redis
):
    server = start_redis()
    with two_of_whom_one_is_busy(server, 9, PAUSE_AFTER_ABSENCE=3) as (job, busy, _):
        pause(3.5)  # both have rested after their start
        busy.process.send_signal(signal.SIGSTOP)
        assert let_jobs_in_hand_look_abandoned(server, job.origin, in_seconds=2) == 1
        server.stop()
        pause(2.1)
        server.start()
        pause(2)
        assert status(server, job) == "started"
        busy.process.send_signal(signal.SIGCONT)


@scenario
def a_worker_stays_registered_while_it_waits_and_while_it_works(start, start_redis):
    server = start_redis()
    with all_workers(start, server) as scripts:
        jobs = [queue.enqueue("time.sleep", 7) for queue in queues(server)]
        wait_for_status(server, jobs, "started")
        pause(6)
        for key in server.client.smembers("rq:workers"):
            assert server.client.ttl(key) > 58  # of 76 s at rest, and of 65 s at work
        for queue in queues(server)[:2]:  # the Simple worker's lease is a longer one
            [(_, until)] = server.client.zrange(
                f"rq:wip:{queue.name}", 0, -1, withscores=True
            )
            assert until - time.time() > 60
        assert [script.errors for script in scripts] == [[], [], []]


# A worker that looks at its work horse each second. In each, something has happened.
LOOKS_EACH_SECOND = """
import datetime, importlib
processor_6 = importlib.import_module("6_job_processor")
processor_6.JOB_MONITORING_INTERVAL = 1

class Worker(processor_6.PatientWorker):
    def wait_for_horse(self):
        {event}
        return super().wait_for_horse()

processor_6.PatientWorker = Worker
processor_6.redis_client.run(processor_6.main)
"""


@contextmanager
def looking_each_second(server, event):
    """Run a worker of task 7 to which `event` happens in each second of a job."""
    with run_code(LOOKS_EACH_SECOND.format(event=event), server.url) as script:
        yield script


@scenario
def a_worker_does_not_kill_its_work_horse_after_a_sleep_of_the_machine(
    start, start_redis
):
    server = start_redis()
    [job] = queue_sleep(server, 2.5, QUEUES["6_job_processor.py"])
    slept = "self.monitored_job.started_at -= datetime.timedelta(hours=1)"
    with looking_each_second(server, slept) as script:
        wait_for_status(server, [job], "finished")
        assert script.errors == []


@scenario
def a_worker_kills_a_work_horse_that_has_worked_for_too_long(start, start_redis):
    server = start_redis()
    [job] = queue_sleep(server, 60, QUEUES["6_job_processor.py"])
    with looking_each_second(server, "self.intervals += 3600") as script:
        wait_for_status(server, [job], "failed")
        assert "terminated unexpectedly" in "".join(script.errors)


# Delayed jobs.


@scenario
def jobs_that_are_due_at_once_run_once_each(start, start_redis):
    server = start_redis()
    with all_workers(start, server):
        for queue in queues(server):
            for _ in range(100):
                queue.enqueue_in(timedelta(seconds=1), "6_job_processor.redis.Redis")
        every = queues(server)
        wait_until(lambda: [q.finished_job_registry.count for q in every] == [100] * 3)
        successes = "successful_job_count"
        counts = [
            int(server.client.hget(key, successes) or 0)
            for key in server.client.smembers("rq:workers")
        ]
        assert sum(counts) == 300


@scenario
def delayed_jobs_are_queued_when_they_are_due(start, start_redis):
    server = start_redis()
    with all_workers(start, server):
        now = datetime.now().astimezone()
        jobs = []
        for queue in queues(server):
            jobs.append(queue.enqueue_in(timedelta(seconds=2), "time.time"))
            jobs.append(queue.enqueue_at(now + timedelta(seconds=2), "time.time"))
            retry = Retry(max=2, interval=1)
            jobs.append(queue.enqueue("operator.truediv", 1, 0, retry=retry))
        ends = "finished", "failed"
        wait_until(lambda: {status(server, job) for job in jobs} == set(ends))
        for job in jobs:
            job.refresh()
            if job.is_failed:
                assert job.retries_left == 0
            else:
                # RQ keeps whole seconds, so it may come up to a second early.
                assert 1 <= (job.ended_at - now).total_seconds() < 4.2


@scenario
def a_delayed_job_that_cannot_be_read_is_told_once_and_ends_no_worker(
    start, start_redis
):
    server = start_redis()
    processor = start_processor(start, server, "6_job_processor.py")
    [queue, *_] = queues(server)
    server.client.hset("rq:job:broken", "meta", "no job")
    server.client.zadd(f"rq:scheduled:{queue.name}", {"broken": 1})
    wait_until(lambda: processor.errors, state=processor)
    pause(2.2)  # it looks once a second
    job = queue.enqueue("time.time")
    wait_for_status(server, [job], "finished")
    assert "\n".join(processor.errors).count("Delayed jobs can't be queued") == 1


@scenario
def a_killed_processor_leaves_nothing_that_keeps_delayed_jobs(start, start_redis):
    server = start_redis()
    processor = start_processor(start, server)
    assert len(processor.processes()) == 3  # no scheduler is among them
    queue = Queue(QUEUES["7_job_processor.py"], connection=server.rq_connection)
    processor.kill()
    # Had it just queued what was due when it was killed, others would wait for a minute.
    server.client.delete(RQScheduler.get_locking_key(queue.name))
    job = queue.enqueue_in(timedelta(seconds=1), "time.time")
    start_processor(start, server)
    wait_for_status(server, [job], "finished")


@scenario
def the_pool_of_rq_starts_no_scheduler_for_these_workers(start, start_redis):
    server = start_redis()
    with ExitStack() as stack:
        pools = []
        for name in WORKER_CLASSES:
            command = f"worker-pool -n 2 -q -w 6_job_processor.{name} q"
            pools.append(stack.enter_context(rq_command(command, server.url)))
        wait_until(lambda: server.client.scard("rq:workers") == 4)
        for pool in pools:
            assert len(processes_of_session(pool.process.pid)) == 1 + 2


# Stopping.


@scenario
def a_job_in_hand_is_not_cut_short_by_the_time_for_a_stop(start, start_redis):
    server = start_redis()
    with all_workers(start, server) as scripts:
        jobs = [queue.enqueue("time.sleep", 4) for queue in queues(server)]
        wait_for_status(server, jobs, "started")
        for script in scripts:
            script.stop(signal.SIGINT)
        for script in scripts:
            assert script.end() == 0
        assert [status(server, job) for job in jobs] == ["finished"] * 3


# Gives a signal to each work horse before it can set handlers of its own.
SIGNAL_TO_THE_FORKED = """
import importlib, os, signal
processor_6 = importlib.import_module("6_job_processor")
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
processor_6.redis_client.run(processor_6.main)
"""


@scenario
def a_signal_just_after_the_fork_does_not_cut_the_job_short(start, start_redis):
    server = start_redis()
    [job] = queue_sleep(server, 2.5, QUEUES["6_job_processor.py"])
    with run_code(SIGNAL_TO_THE_FORKED, server.url) as script:
        wait_for_status(server, [job], "finished")
        assert script.errors == []


# Stops Redis when a worker has taken a job, and has not registered it yet.
SILENCE_AT_A_JOB = """
import importlib, os, signal
processor_6 = importlib.import_module("6_job_processor")
client = processor_6.redis_client.create_client()
redis_pid = client.info("server")["process_id"]

class Worker(processor_6.{worker_class}):
    def prepare_execution(self, job):
        os.kill(redis_pid, signal.SIGSTOP)
        print("taken", flush=True)
        return super().prepare_execution(job)

Worker(["q"], connection=client).work()
"""


@scenario.given(worker_class="PatientWorker")
@scenario.given(worker_class="PatientSimpleWorker")
def one_signal_ends_a_worker_whose_redis_falls_silent_before_its_job_runs(
    start, start_redis, worker_class
):
    server = start_redis()
    Queue("q", connection=server.rq_connection).enqueue("time.time")
    code = SILENCE_AT_A_JOB.format(worker_class=worker_class)
    with run_code(code, server.url) as script:
        script.wait_for("taken")
        script.stop(signal.SIGINT)
        assert script.end(timeout=3) == 0


@scenario
def a_second_ctrl_c_ends_workers_with_a_job_in_hand_while_redis_is_away(
    start, start_redis
):
    server = start_redis()
    with all_workers(start, server) as scripts:
        jobs = [queue.enqueue("time.sleep", 60) for queue in queues(server)]
        wait_for_status(server, jobs, "started")
        server.process.kill()
        server.process.wait()
        for script in scripts:
            script.stop(signal.SIGINT)
        pause(1.1)  # RQ takes a second signal within a second for the same
        for script in scripts[:2]:
            script.stop(signal.SIGINT)
        for script in scripts[:2]:
            script.end(timeout=3)
            assert script.processes() == []


@scenario
def a_second_ctrl_c_gives_the_job_in_hand_up(start, start_redis):
    server = start_redis()
    processors = start_processors(start, server, *QUEUES)
    jobs = queue_sleep(server, 60)
    wait_for_status(server, jobs, "started")
    for processor in processors:
        processor.stop(signal.SIGINT)
    pause(1.1)  # RQ takes a second signal within a second for the same
    for processor in processors:
        processor.stop(signal.SIGINT)
    for processor in processors:
        processor.end()
        assert processor.processes() == []
    # A later processor fails them.
    assert [job.get_status() for job in jobs] == ["started", "started"]


@scenario
def a_second_ctrl_c_fails_the_job_of_a_simple_worker_without_a_traceback(
    start, start_redis
):
    server = start_redis()
    with rq_command(SIMPLE_WORKER, server.url) as worker:
        [job] = queue_sleep(server, 60, "simple")
        wait_for_status(server, [job], "started")
        worker.stop(signal.SIGINT)
        pause(1.1)  # RQ takes a second signal within a second for the same
        worker.stop(signal.SIGINT)
        worker.end()
        assert "Traceback" not in "".join(worker.errors)
    assert job.get_status() == "failed"


STOPPED_WHILE_IT_STARTS = """
import importlib, os, signal
processor_7 = importlib.import_module("7_job_processor")

class Pool(processor_7.NotificationPool):
    def get_worker_process(self, *args, **options):
        if len(self.worker_dict) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().get_worker_process(*args, **options)

processor_7.NotificationPool = Pool
processor_7.redis_client.run(processor_7.main)
"""


@scenario
def a_signal_between_the_starts_of_two_workers_ends_both(start, start_redis):
    server = start_redis()
    with run_code(STOPPED_WHILE_IT_STARTS, server.url) as script:
        assert script.end() == 0
        assert script.processes() == []
        assert script.errors == []


@scenario.given(signum=signal.SIGINT)
@scenario.given(signum=signal.SIGTERM)
def one_signal_ends_workers_that_start_suspended(start, start_redis, signum):
    server = start_redis()
    suspend(server.rq_connection)
    with all_workers(start, server) as scripts:
        wait_until_all_are("suspended", server, scripts)
        assert_end_in_time(scripts, signum)


@scenario.given(signum=signal.SIGINT)
@scenario.given(signum=signal.SIGTERM)
def one_signal_ends_workers_that_are_suspended_later(start, start_redis, signum):
    server = start_redis()
    with all_workers(start, server) as scripts:
        wait_until_all_are("idle", server, scripts)
        suspend(server.rq_connection)
        for queue in queues(server) * 2:
            queue.enqueue("time.time")  # an idle worker hears of it after its next job
        wait_until_all_are("suspended", server, scripts)
        assert_end_in_time(scripts, signum)


@scenario
def suspended_workers_work_when_they_are_resumed(start, start_redis):
    server = start_redis()
    suspend(server.rq_connection)
    with all_workers(start, server) as scripts:
        wait_until_all_are("suspended", server, scripts)
        jobs = [queue.enqueue("time.time") for queue in queues(server)]
        resume(server.rq_connection)
        wait_for_status(server, jobs, "finished")


@scenario.given(seconds=0)
@scenario.given(seconds=0.1)
@scenario.given(seconds=0.6)
def one_signal_ends_workers_when_redis_has_gone_away_after_a_job(
    start, start_redis, seconds
):
    server = start_redis()
    with all_workers(start, server) as scripts:
        jobs = [queue.enqueue("time.time") for queue in queues(server) for _ in "12"]
        wait_for_status(server, jobs, "finished")
        pause(seconds)
        server.process.kill()
        server.process.wait()
        assert_end_in_time(scripts, signal.SIGINT)


@scenario
def one_signal_ends_workers_whose_redis_does_not_answer(start, start_redis):
    server = start_redis()
    with all_workers(start, server) as scripts:
        wait_until_all_are("idle", server, scripts)
        server.process.send_signal(signal.SIGSTOP)
        pause(1.1)  # until each waits for an answer
        assert_end_in_time(scripts, signal.SIGINT)


# Workers in this process.


@pytest.fixture
def worker(fake_redis):
    """A worker that does not work, in this process."""
    queue = Queue("q", connection=fake_redis)
    return processor_6.PatientWorker([queue], connection=fake_redis)


@pytest.fixture
def signal_handlers():
    """Keep pytest's signal handlers, though a worker works or is stopped in this process."""
    with keeping_signal_handlers():
        yield


@pytest.mark.usefixtures("signal_handlers")
def test_a_burst_fails_the_job_of_a_dead_worker_at_once(redis_server, monkeypatch):
    monkeypatch.setattr(processor_6.PatientRetry, "last_failure", float("-inf"))
    connection = redis_server.rq_connection
    queue = Queue("q", connection=connection)
    job = queue.enqueue("time.time")
    dead, burst = [
        processor_6.PatientWorker([queue], connection=connection) for _ in range(2)
    ]
    dequeued, _ = Queue.dequeue_any([queue], None, connection)
    dead.prepare_execution(dequeued)
    dequeued.set_status("started")
    let_jobs_in_hand_look_abandoned(redis_server, "q")
    burst.work(burst=True, logging_level="ERROR")
    assert status(redis_server, job) == "failed"


@pytest.mark.usefixtures("signal_handlers")
def test_a_second_signal_before_the_handler_is_changed_starts_no_second_clock(worker):
    worker.working_pid = os.getpid()
    before = threading.active_count()
    worker.request_stop(signal.SIGINT, None)
    worker.request_stop(signal.SIGINT, None)
    assert threading.active_count() == before + 1
    worker.work_is_over.set()
    wait_until(lambda: threading.active_count() == before)


def test_a_sleep_just_before_the_look_for_dead_workers_is_noticed(worker, monkeypatch):
    looks = []
    monkeypatch.setattr(worker, "clean_registries", lambda: looks.append("a look"))
    worker.absences.skip_pause()
    monkeypatch.setattr(processor_6.PatientRetry, "last_failure", float("-inf"))

    def sleep_meanwhile():
        worker.absences.last_active -= 3600

    monkeypatch.setattr(worker.due_jobs, "enqueue", sleep_meanwhile)
    worker.run_maintenance_tasks()
    assert looks == []
    # The next look for delayed jobs is not due yet, so this time there is no sleep.
    worker.absences.skip_pause()
    worker.run_maintenance_tasks()
    assert looks == ["a look"]


# A Redis that is full, or that gives only the rights that RQ needs.


def refused(server, error="OOM"):
    """Return how many commands Redis has refused as it is full."""
    errors = server.client.info("errorstats")
    return errors.get(f"errorstat_{error}", {"count": 0})["count"]


@scenario
def a_processor_waits_until_a_full_redis_has_room(start, start_redis):
    server = start_redis()
    server.require(6, 2)  # before, it does not count what it refuses
    queue = Queue(QUEUES["7_job_processor.py"], connection=server.rq_connection)
    job = queue.enqueue("time.time")
    server.client.config_set("maxmemory", 1)
    processor = start("7_job_processor.py", server.url)
    wait_until(lambda: refused(server) > 5)
    server.client.config_set("maxmemory", 0)
    wait_for_status(server, [job], "finished")
    assert processor.errors == []


@scenario
def a_processor_waits_until_a_full_disk_has_room(start, start_redis):
    server = start_redis()
    server.require(6, 2)
    processor = start_processor(start, server, "7_job_processor.py")
    # Where the snapshot is to be, there is something else, so it can't be written.
    in_the_way = server.folder / "dump.rdb"
    in_the_way.mkdir()
    server.client.bgsave()
    wait_until(lambda: refused(server, "MISCONF") > 5)
    in_the_way.rmdir()
    server.client.bgsave()
    wait_until(lambda: server.client.info()["rdb_last_bgsave_status"] == "ok")
    [job] = queue_sleep(server, 0, QUEUES[processor.name])
    wait_for_status(server, [job], "finished")
    assert (processor.lines, processor.errors) == ([], [])


FULL = "OOM command not allowed when used memory > 'maxmemory'"


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (redis.ConnectionError("gone"), True),
        (redis.TimeoutError("silent"), True),
        (redis.OutOfMemoryError("command not allowed"), True),
        (
            redis.exceptions.ExecAbortError(
                f"Transaction discarded because of: {FULL}"
            ),
            True,
        ),
        (redis.ResponseError(f"Error running script: -{FULL}"), True),
        (redis.ResponseError("MISCONF Errors writing to the AOF file"), True),
        (redis.ResponseError("WRONGTYPE"), False),
        (
            redis.exceptions.ExecAbortError("Transaction discarded because of: NOPERM"),
            False,
        ),
        (redis.AuthenticationError("wrong password"), False),
    ],
)
def test_a_command_is_tried_again_while_redis_is_away_or_full(
    monkeypatch, error, is_tried_again
):
    monkeypatch.setattr(processor_6, "RETRY_INTERVAL", 0)
    errors, failures = [error], []

    def do():
        if errors:
            raise errors.pop()
        return "answer"

    retry = processor_6.PatientRetry()
    if is_tried_again:
        assert retry.call_with_retry(do, failures.append) == "answer"
        assert failures == [error]
    else:
        with pytest.raises(type(error)):
            retry.call_with_retry(do, failures.append)


def test_the_look_for_delayed_jobs_passes_a_full_redis_over(redis_server):
    connection = redis_server.rq_connection
    queue = Queue("q", connection=connection)
    worker = processor_6.PatientWorker([queue], connection=connection)
    queue.enqueue_at(datetime.now(), "time.time")
    redis_server.client.config_set("maxmemory", 1)
    worker.due_jobs.enqueue()
    assert queue.count == 0
    redis_server.client.config_set("maxmemory", 0)
    worker.due_jobs.enqueue()
    assert queue.count == 1


def fill_redis(job, connection, result):
    """A callback after which Redis is full, just before RQ records a job's end."""
    connection.config_set("maxmemory", 1)


@scenario.given(name="PatientWorker")
@scenario.given(name="PatientSimpleWorker")
def a_job_whose_end_a_full_redis_refuses_does_not_hammer_it(start, start_redis, name):
    server = start_redis()
    server.require(6, 2)
    queue = Queue("q", connection=server.rq_connection)
    command = f"worker --quiet --path tests -w 6_job_processor.{name} q"
    with rq_command(command, server.url):
        fill = Callback("test_worker.fill_redis")
        job = queue.enqueue("time.time", on_success=fill)
        wait_until(lambda: refused(server) > 0)
        before = refused(server)
        pause(1)
        assert refused(server) - before < 100  # some for each of two attempts
        server.client.config_set("maxmemory", 0)
        wait_for_status(server, [job], "finished")


SIMPLE_WORKER = "worker --quiet -w 6_job_processor.PatientSimpleWorker simple"


@scenario
def workers_need_no_dangerous_rights(start, start_redis):
    server = start_redis()
    # Before, CLIENT is dangerous as a whole, and RQ warns that it can't use it.
    server.require(7)
    url = server.url_of_user("+@all", "-@dangerous")
    with rq_command(SIMPLE_WORKER, url) as simple:
        scripts = [simple] + [start(name, url) for name in QUEUES]
        jobs = [queue.enqueue("time.time") for queue in queues(server)]
        jobs += [
            queue.enqueue_in(timedelta(seconds=1), "time.time")
            for queue in queues(server)
        ]
        wait_for_status(server, jobs, "finished")
        assert_end_in_time(scripts, signal.SIGTERM)


@scenario
def an_error_that_ends_a_worker_ends_all_with_status_1(start, start_redis):
    server = start_redis()
    url = server.url_of_user("+@all", "-blmove", "-blpop")
    with rq_command(SIMPLE_WORKER, url) as simple:
        for script in [simple] + [start(name, url) for name in QUEUES]:
            assert script.end() == 1
            assert script.lines == []
            error = "\n".join(script.errors)
            assert "no permissions to run the 'blmove' command" in error
            assert script.processes() == []


@scenario
def a_stopped_processor_finishes_the_job_in_hand(start, start_redis):
    redis_server = start_redis()
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


# Stopping, when jobs are many: these need the machine for themselves.


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


def test_workers_of_the_pool_of_rq_stop_without_losing_a_job(redis_server):
    with ExitStack() as stack:
        pools = {}
        for name in WORKER_CLASSES:
            queue = Queue(name, connection=redis_server.rq_connection)
            queue.enqueue_many(Queue.prepare_data("time.time") for _ in range(2000))
            command = f"worker-pool -n 3 -q -w 6_job_processor.{name} {name}"
            pool = rq_command(command, redis_server.url)
            pools[queue] = stack.enter_context(pool)
        for queue, pool in pools.items():
            wait_until(lambda queue=queue: queue.finished_job_registry.count > 50)
            pool.stop(signal.SIGINT)
        for queue, pool in pools.items():
            pool.end()
            assert pool.processes() == []
            assert redis_server.client.llen(queue.intermediate_queue_key) == 0
            assert 0 < len(queue) == 2000 - queue.finished_job_registry.count


@scenario.given(options="--burst")
@scenario.given(options="--burst --max-jobs 2")
@scenario.given(options="--max-idle-time 1")
def a_worker_that_is_done_ends_with_status_0_and_after_an_error_with_1(
    start, start_redis, options
):
    server = start_redis()
    command = f"worker --quiet {options} -w 6_job_processor.PatientSimpleWorker q"
    queue = Queue("q", connection=server.rq_connection)
    jobs = [queue.enqueue("time.time") for _ in range(3)]
    with rq_command(command, server.url) as worker:
        assert worker.end() == 0
    assert [status(server, job) for job in jobs[:2]] == ["finished"] * 2
    url = server.url_of_user("+@all", "-blmove", "-lmove")
    with rq_command(command, url) as worker:
        assert worker.end() == 1


# Works three times: twice for one job, and then in vain.
WORKS_AGAIN = """
import importlib
processor_6 = importlib.import_module("6_job_processor")
client = processor_6.redis_client.create_client()
worker = processor_6.{worker_class}(["q"], connection=client)
assert worker.work(max_jobs=1)
assert worker.work(max_jobs=1)
assert not worker.work(burst=True)
"""


@scenario.given(worker_class="PatientWorker")
@scenario.given(worker_class="PatientSimpleWorker")
def a_worker_that_is_done_can_work_again(start, start_redis, worker_class):
    server = start_redis()
    queue = Queue("q", connection=server.rq_connection)
    for _ in range(2):
        queue.enqueue("time.time")
    code = WORKS_AGAIN.format(worker_class=worker_class)
    with run_code(code, server.url) as script:
        assert script.end() == 0
        assert script.errors == []


@scenario.given(name="PatientWorker")
@scenario.given(name="PatientSimpleWorker")
def an_error_at_the_last_job_ends_a_worker_with_status_1(start, start_redis, name):
    server = start_redis()
    url = server.url_of_user("+@all", "-zadd")
    Queue("q", connection=server.rq_connection).enqueue("time.time")
    command = f"worker --quiet --max-jobs 1 -w 6_job_processor.{name} q"
    with rq_command(command, url) as worker:
        assert worker.end() == 1


@pytest.mark.parametrize("scenario", scenario.collected)
def test_that(scenario, outcomes):
    outcomes[scenario].result()
