"""What is told of jobs, on fakeredis: the events in the stream, and who follows them."""

import importlib
import threading
import time

import pytest
from conftest import wait_until
from jobs import wait_for_followers, work
from rq import Queue, Retry
from rq.job import Job

processor = importlib.import_module("7_job_processor")
creator = importlib.import_module("7_job_creator")

ALLOWED = {"phoneNumber": "4153518743", "message": "hello"}
BLACKLISTED = {"phoneNumber": "4153518780", "message": "hello"}


@pytest.fixture
def queue(fake_redis, monkeypatch):
    """A queue whose follower asks RQ soon."""
    monkeypatch.setattr(creator, "SILENCE", 20)
    yield Queue("q", connection=fake_redis)
    fake_redis.flushall()  # what is not done by now counts as failed
    wait_for_followers()
    wait_until(lambda: threading.active_count() == 1)


def events(queue):
    """Return the events in the stream of a queue."""
    return [
        (fields[b"event"].decode(), fields[b"detail"].decode())
        for _, fields in queue.connection.xrange(f"events:{queue.name}")
    ]


def told(capsys):
    """Wait for the end of all jobs; return the lines printed of them since the last."""
    wait_for_followers()
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if "created" not in line and "Sending" not in line]


def test_a_job_writes_its_events_in_order(queue):
    creator.queue_jobs([ALLOWED], queue)
    work(queue.connection, queue)
    wait_for_followers()
    assert events(queue) == [("progress", "0"), ("progress", "50"), ("completed", "")]


def test_a_job_with_attempts_left_is_not_reported_as_failed(queue):
    function = processor.send_notification
    arguments = "4153518780", "hello"
    queue.enqueue(function, *arguments, retry=Retry(max=1), **processor.HOOKS)
    work(queue.connection, queue)
    assert [event for event, _ in events(queue)] == ["progress", "progress", "failed"]


def test_a_job_that_raises_an_error_without_text_is_told_by_its_class(queue, capsys):
    with creator.following(queue) as waiting:
        waiting.add(queue.enqueue("builtins.next", iter(()), **processor.HOOKS).id)
    work(queue.connection, queue)
    [line] = told(capsys)
    assert line.endswith(" failed: StopIteration")


def test_the_stream_of_events_is_bounded(queue, monkeypatch):
    monkeypatch.setattr(processor, "EVENTS_KEPT", 100)
    job = Job.create("time.time", id="1", connection=queue.connection, origin="q")
    for _ in range(1000):
        processor.write_event(job, "progress", "50")
    assert 100 <= queue.connection.xlen("events:q") < 300


def test_all_that_happens_to_a_job_is_told_once(queue, capsys):
    creator.queue_jobs([ALLOWED], queue)
    creator.queue_jobs([BLACKLISTED], queue)
    work(queue.connection, queue)
    assert told(capsys) == [
        "Notification job 1 0% complete",
        "Notification job 1 50% complete",
        "Notification job 1 completed",
        "Notification job 2 0% complete",
        "Notification job 2 failed: Phone number 4153518780 is blacklisted",
    ]


def test_nothing_is_told_of_the_jobs_of_others(queue, capsys):
    other = queue.enqueue(processor.send_notification, *ALLOWED.values(), job_id="9")
    creator.queue_jobs([ALLOWED], queue)
    work(queue.connection, queue)
    assert other.is_finished
    assert [line.split()[2] for line in told(capsys)] == ["1"] * 3


def test_a_job_of_ones_own_with_an_id_of_rq_is_followed(queue, capsys):
    with creator.following(queue) as waiting:
        function = processor.send_notification
        job = queue.enqueue(function, *ALLOWED.values(), **processor.HOOKS)
        waiting.add(job.id)
    work(queue.connection, queue)
    texts = ["0% complete", "50% complete", "completed"]
    assert told(capsys) == [f"Notification job {job.id} {text}" for text in texts]


def test_lost_events_are_made_up_for_from_what_rq_knows(queue, capsys):
    numbers = {"1": "4153518743", "2": "4153518780", "3": "4153518743"}
    for job_id, number in numbers.items():  # without the hooks, so they tell no end
        queue.enqueue(processor.send_notification, number, "hello", job_id=job_id)
    queue.connection.delete("rq:job:3")
    work(queue.connection, queue)
    queue.connection.delete("events:q")
    with creator.following(queue) as waiting:
        waiting.update(numbers)
    assert sorted(told(capsys)) == [
        "Notification job 1 completed",
        "Notification job 2 failed: Phone number 4153518780 is blacklisted",
        "Notification job 3 failed: the job is gone from Redis",
    ]


def test_created_is_the_first_line_of_a_job(queue, capsys, monkeypatch):
    creator.queue_jobs([ALLOWED], queue)  # so that a follower is at work
    enqueue_many = queue.enqueue_many

    def enqueue_and_run(datas):
        jobs = enqueue_many(datas)
        work(queue.connection, queue)
        time.sleep(0.1)  # in which the follower could tell of job 2, and must not
        return jobs

    monkeypatch.setattr(queue, "enqueue_many", enqueue_and_run)
    creator.queue_jobs([ALLOWED], queue)
    wait_for_followers()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "job 2 " in line or line.endswith(" 2")] == [
        "Notification job created: 2",
        "Notification job 2 0% complete",
        "Notification job 2 50% complete",
        "Notification job 2 completed",
    ]


def test_one_thread_follows_the_jobs_of_all_calls_of_a_queue(queue, fake_redis):
    for _ in range(5):
        creator.queue_jobs([ALLOWED], queue)
        creator.queue_jobs([ALLOWED], Queue("q", connection=fake_redis))
    assert threading.active_count() == 2
    creator.queue_jobs([ALLOWED], Queue("another", connection=fake_redis))
    assert threading.active_count() == 3


def test_jobs_that_are_not_queued_leave_nothing_behind(queue, capsys):
    with pytest.raises(KeyError), creator.following(queue):
        raise KeyError
    assert threading.active_count() == 1
    creator.queue_jobs([ALLOWED], queue)  # and the next ones are followed
    work(queue.connection, queue)
    assert len(told(capsys)) == 3


def test_a_lost_counter_overwrites_no_job(queue):
    first = creator.queue_jobs([ALLOWED] * 11, queue)
    queue.connection.delete("job_ids")
    second = creator.queue_jobs([ALLOWED] * 3, queue)
    assert {job.id for job in first}.isdisjoint(job.id for job in second)
    assert len(queue) == 14
