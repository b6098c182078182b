"""Every script on fakeredis, in this process: no server, in seconds."""

import importlib
import threading
import time
from datetime import timedelta

import pytest
from conftest import CONNECTED, wait_until, work
from rq import Callback, Queue, Retry
from rq.job import Job
from rq.utils import now


def test_client(run):
    assert run("0_redis_client.py") == [CONNECTED]


@pytest.mark.parametrize("name", ["1_redis_op.py", "2_redis_op_async.py"])
def test_basic_operations(run, fake_redis, name):
    fake_redis.set("Holberton", "School")
    assert run(name) == [CONNECTED, "School", "Reply: OK", "100"]
    assert fake_redis.get("HolbertonSanFrancisco") == b"100"


def test_hash(run):
    hash_lines = [
        "{'Portland': '50',",
        " 'Seattle': '80',",
        " 'New York': '20',",
        " 'Bogota': '20',",
        " 'Cali': '40',",
        " 'Paris': '2'}",
    ]
    for reply in "10":
        assert run("4_redis_advanced_op.py") == [
            CONNECTED,
            *[f"Reply: {reply}"] * 6,
            *hash_lines,
        ]


def in_background(name):
    """Start the `main` of a script in a thread."""
    thread = threading.Thread(target=importlib.import_module(name).main)
    thread.start()
    return thread


def test_publisher_and_subscriber(run, fake_redis, capsys):
    threads = threading.active_count()
    subscriber = in_background("5_subscriber")
    wait_until(lambda: fake_redis.pubsub_numsub("holberton school channel")[0][1])
    lines = run("5_publisher.py")
    subscriber.join()
    wait_until(lambda: threading.active_count() == threads)  # the publisher's timers
    lines += capsys.readouterr().out.splitlines()
    sent = [
        "Holberton Student #1 starts course",
        "Holberton Student #2 starts course",
        "KILL_SERVER",
        "Holberton Student #3 starts course",
    ]
    assert [line for line in lines if "About" in line] == [
        f"About to send {text}" for text in sent
    ]
    assert [line for line in lines if "About" not in line] == [
        CONNECTED,
        CONNECTED,
        *sent[:3],
    ]


def test_publishing_does_not_block_the_caller(fake_redis, capsys):
    timer = importlib.import_module("5_publisher").publish_message("hello", 50)
    assert capsys.readouterr().out == ""
    timer.join()
    assert capsys.readouterr().out == "About to send hello\n"


def test_task_6_and_7(fake_redis, capsys):
    creator = in_background("6_job_creator")
    wait_until(lambda: fake_redis.llen("rq:queue:push_notification_code"))
    work(fake_redis, "push_notification_code")
    creator.join()
    message = "This is the code to verify your account"
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "Notification job completed",
        "Notification job created: 1",
        f"Sending notification to 4153518780, with message: {message}",
    ]


def test_task_8_and_9(fake_redis, capsys):
    creator = in_background("7_job_creator")
    wait_until(lambda: fake_redis.llen("rq:queue:push_notification_code_2") == 11)
    work(fake_redis, "push_notification_code_2")
    creator.join()
    lines = capsys.readouterr().out.splitlines()
    assert sum("created" in line for line in lines) == 11
    assert sum("0% complete" in line for line in lines) == 11 + 9
    assert sum("is blacklisted" in line for line in lines) == 2
    assert sum("completed" in line for line in lines) == 9
    assert sum("Sending" in line for line in lines) == 9


def test_task_10_script_stays_until_its_job_has_ended(fake_redis, capsys):
    script = in_background("8_job")
    wait_until(lambda: fake_redis.llen("rq:queue:push_notification_code_3"))
    work(fake_redis, "push_notification_code_3")
    script.join()
    assert capsys.readouterr().out.splitlines() == [
        "Notification job created: 1",
        "Notification job 1 0% complete",
        "Notification job 1 failed: Phone number 4153518780 is blacklisted",
    ]


def test_job_functions_can_be_called_without_a_worker(capsys):
    processor = importlib.import_module("7_job_processor")
    processor.send_notification("1", "hello")
    assert capsys.readouterr().out == "Sending notification to 1, with message: hello\n"
    with pytest.raises(processor.BlacklistedError, match="^Phone number 4153518781 is"):
        processor.send_notification("4153518781", "hello")


def test_the_worker_looks_after_jobs_every_5_seconds(fake_redis):
    processor = importlib.import_module("6_job_processor")
    worker = processor.PatientWorker(["q"], connection=fake_redis)
    assert (worker.job_monitoring_interval, worker.maintenance_interval) == (5, 5)


def test_maintenance_waits_after_an_absence_of_redis(fake_redis):
    processor = importlib.import_module("6_job_processor")
    worker = processor.PatientWorker(["q"], connection=fake_redis)
    worker.last_cleaned_at = now() - timedelta(seconds=6)
    assert worker.should_run_maintenance_tasks
    fake_redis.get_retry()._backoff.compute(1)  # as redis-py does after each failure
    assert not worker.should_run_maintenance_tasks
    worker.last_cleaned_at -= timedelta(seconds=11)
    assert worker.should_run_maintenance_tasks


def test_a_lost_counter_overwrites_no_job(fake_redis):
    creator = importlib.import_module("7_job_creator")
    queue = Queue("q", connection=fake_redis)
    first = creator.queue_jobs(creator.JOBS, queue)
    fake_redis.delete("job_ids")
    second = creator.queue_jobs(creator.JOBS[:3], queue)
    assert {job.id for job in first}.isdisjoint(job.id for job in second)
    assert len(queue) == 14


def test_a_job_with_attempts_left_is_not_reported_as_failed(fake_redis):
    queue = Queue("q", connection=fake_redis)
    queue.enqueue(
        "7_job_processor.send_notification",
        "4153518780",
        "hello",
        retry=Retry(max=1),
        on_failure=Callback("7_job_processor.report_failed"),
    )
    work(fake_redis, "q")
    events = [fields[b"event"] for _, fields in fake_redis.xrange("events:q")]
    assert events == [b"progress", b"progress", b"failed"]


def test_the_stream_of_events_is_bounded(fake_redis, monkeypatch):
    processor = importlib.import_module("7_job_processor")
    monkeypatch.setattr(processor, "EVENTS_KEPT", 100)
    job = Job.create("time.time", id="1", connection=fake_redis, origin="q")
    for _ in range(1000):
        processor.write_event(job, "progress", "50")
    assert 100 <= fake_redis.xlen("events:q") < 300


def follow(fake_redis, *jobs):
    """Return a follower of `jobs`, dicts, which are queued."""
    creator = importlib.import_module("7_job_creator")
    queue = Queue("q", connection=fake_redis)
    follower = creator.Follower(queue)
    follower.waiting.update(job.id for job in creator.queue_jobs(jobs, queue))
    return follower


ALLOWED = {"phoneNumber": "4153518743", "message": "hello"}
BLACKLISTED = {"phoneNumber": "4153518780", "message": "hello"}


def test_a_creator_that_starts_late_still_sees_all_events(fake_redis, capsys):
    follower = follow(fake_redis, ALLOWED, BLACKLISTED)
    work(fake_redis, "q")
    capsys.readouterr()
    follower.show(follower.read())
    assert follower.waiting == set()
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_lost_events_are_made_up_for_from_what_rq_knows(fake_redis, capsys):
    follower = follow(fake_redis, ALLOWED, BLACKLISTED, ALLOWED)
    fake_redis.delete("rq:job:3")
    work(fake_redis, "q")
    fake_redis.delete("events:q")
    capsys.readouterr()
    while follower.waiting:
        follower.show(follower.read())
    assert capsys.readouterr().out.splitlines() == [
        "Notification job 1 completed",
        "Notification job 2 failed: Phone number 4153518780 is blacklisted",
        "Notification job 3 failed: the job is gone from Redis",
    ]


def test_a_follower_is_silent_about_the_jobs_of_others(fake_redis, capsys):
    follower = follow(fake_redis, ALLOWED)
    follow(fake_redis, ALLOWED)
    work(fake_redis, "q")
    capsys.readouterr()
    follower.show(follower.read())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("Notification job 1 ") for line in lines)


def test_a_job_ends_once_however_often_it_is_told(fake_redis, capsys):
    follower = follow(fake_redis, ALLOWED)
    capsys.readouterr()
    follower.show(
        [("1", "completed", ""), ("1", "progress", "50"), ("1", "completed", "")]
    )
    assert capsys.readouterr().out == "Notification job 1 completed\n"


def test_what_happens_before_a_call_returns_is_printed_after_created(
    fake_redis, capsys, monkeypatch
):
    job_script = importlib.import_module("8_job")
    creator = importlib.import_module("7_job_creator")
    queue = Queue("q", connection=fake_redis)
    queue_jobs = creator.queue_jobs
    job_script.create_push_notifications_jobs([ALLOWED], queue)

    def queue_jobs_of_a_slow_call(*args):
        jobs = queue_jobs(*args)
        work(fake_redis, "q")
        time.sleep(0.2)  # in which the follower could tell of job 2, and must not
        return jobs

    monkeypatch.setattr(creator, "queue_jobs", queue_jobs_of_a_slow_call)
    job_script.create_push_notifications_jobs([ALLOWED], queue)
    job_script.wait_for_jobs()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if " 2 " in line or line.endswith(" 2")] == [
        "Notification job created: 2",
        "Notification job 2 0% complete",
        "Notification job 2 50% complete",
        "Notification job 2 completed",
    ]
