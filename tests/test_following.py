"""What is told of jobs, on fakeredis: the events in the stream, and who follows them."""

import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from conftest import wait_until
from jobs import wait_for_followers, work
from rq import Queue, Retry

processor_7 = importlib.import_module("7_job_processor")
creator_7 = importlib.import_module("7_job_creator")

ALLOWED = {"phoneNumber": "4153518743", "message": "hello"}
BLACKLISTED = {"phoneNumber": "4153518780", "message": "hello"}


@pytest.fixture
def queue(fake_redis, monkeypatch):
    """A queue whose follower asks RQ soon."""
    monkeypatch.setattr(creator_7, "CHECK_INTERVAL", 0.02)
    yield Queue("q", connection=fake_redis)
    fake_redis.flushall()  # what is not done by now counts as failed
    wait_for_followers()
    wait_until(lambda: threads() == 0)


def threads():
    """Return how many threads follow jobs."""
    return sum(isinstance(t, creator_7.Follower) for t in threading.enumerate())


class Heard(list):
    """A handler, and what it was told: the name of each event, and its detail."""

    def __call__(self, job, event, detail):
        self.append((event, detail))


def events(queue):
    """Return the events in the stream of a queue."""
    entries = queue.connection.xrange(f"events:{queue.name}")
    return [processor_7.JobEvent.read(fields)[1:] for _, fields in entries]


def told(capsys):
    """Wait for the end of all jobs; return the lines printed of them since the last."""
    wait_for_followers()
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if "created" not in line and "Sending" not in line]


def follow(queue, function, *arguments, handler, **options):
    """Queue one job of one's own, and follow it."""
    job = queue.enqueue(function, *arguments, **processor_7.HOOKS, **options)
    creator_7.follow([job], queue, handler)
    return job


# What is written.


def test_a_job_writes_its_events_in_order(queue):
    creator_7.queue_jobs([ALLOWED], queue)
    work(queue.connection, queue)
    wait_for_followers()
    assert events(queue) == [("progress", 0), ("progress", 50), ("complete", None)]


def test_a_job_with_attempts_left_has_not_failed_yet(queue):
    heard = Heard()
    function, arguments = "operator.truediv", (1, 0)
    follow(queue, function, *arguments, handler=heard, retry=Retry(max=2))
    work(queue.connection, queue)
    wait_for_followers()
    error = "division by zero"
    assert heard == [("failed attempt", error)] * 2 + [("failed", error)]


def test_an_error_without_text_is_told_by_its_class(queue):
    heard = Heard()
    follow(queue, "builtins.next", iter(()), handler=heard)
    work(queue.connection, queue)
    wait_for_followers()
    assert heard == [("failed", "StopIteration")]


@pytest.mark.parametrize("result", [None, 42, "text", [1, 2.5], {"a": {"b": None}}])
def test_what_a_job_returned_can_be_had(queue, result):
    heard = Heard()
    follow(queue, "copy.copy", result, handler=heard)
    work(queue.connection, queue)
    wait_for_followers()
    assert heard == [("complete", result)]


@pytest.mark.parametrize("result", [{1, 2}, b"bytes", {(1, 2): 3}, [complex(1)]])
def test_a_result_that_json_does_not_know_is_told_as_text_and_fails_no_job(
    queue, result
):
    heard = Heard()
    job = follow(queue, "copy.copy", result, handler=heard)
    work(queue.connection, queue)
    wait_for_followers()
    assert heard == [("complete", str(result))]
    assert job.is_finished and job.return_value() == result


class Textless(Exception):
    def __str__(self):
        raise ValueError("no text")


def test_a_result_or_an_error_without_a_text_is_told_by_its_class(queue):
    heard = Heard()
    job = follow(queue, "builtins.pow", 10, 5000, handler=heard)  # too long for a text
    work(queue.connection, queue)
    wait_for_followers()
    assert heard == [("complete", "int")]
    assert job.is_finished
    assert processor_7.text_of(Textless()) == "Textless"


def test_the_stream_of_events_is_bounded(queue, monkeypatch):
    monkeypatch.setattr(processor_7, "EVENTS_KEPT", 100)
    for _ in range(1000):
        processor_7.JobEvent("1", "progress", 50).write(queue.connection, "q")
    assert 100 <= queue.connection.xlen("events:q") < 300


# What is told.


def test_all_that_happens_to_a_job_is_told_once(queue, capsys):
    creator_7.queue_jobs([ALLOWED], queue)
    creator_7.queue_jobs([BLACKLISTED], queue)
    work(queue.connection, queue)
    assert told(capsys) == [
        "Notification job 1 0% complete",
        "Notification job 1 50% complete",
        "Notification job 1 completed",
        "Notification job 2 0% complete",
        "Notification job 2 failed: Phone number 4153518780 is blacklisted",
    ]


def test_nothing_is_told_of_the_jobs_of_others(queue, capsys):
    send = processor_7.send_notification
    other = queue.enqueue(send, *ALLOWED.values(), job_id="9", **processor_7.HOOKS)
    creator_7.queue_jobs([ALLOWED], queue)
    work(queue.connection, queue)
    assert other.is_finished
    assert [line.split()[2] for line in told(capsys)] == ["1"] * 3


def test_created_is_the_first_line_even_of_a_job_that_has_ended_by_then(
    queue, capsys, monkeypatch
):
    creator_7.queue_jobs([ALLOWED], queue)  # so that a follower is at work
    enqueue_many = queue.enqueue_many

    def enqueue_and_run(datas):
        jobs = enqueue_many(datas)
        work(queue.connection, queue)
        wait_until(lambda: "job 1 completed" in "".join(printed()))
        return jobs

    def printed():
        lines.extend(capsys.readouterr().out.splitlines())
        return lines

    lines = []
    monkeypatch.setattr(queue, "enqueue_many", enqueue_and_run)
    creator_7.queue_jobs([ALLOWED], queue)
    wait_for_followers()
    assert [line for line in printed() if "job 2 " in line or line.endswith(" 2")] == [
        "Notification job created: 2",
        "Notification job 2 0% complete",
        "Notification job 2 50% complete",
        "Notification job 2 completed",
    ]


@pytest.mark.parametrize("a_follower_is_at_work", [False, True])
def test_a_job_that_is_followed_after_its_end_is_told_from_its_beginning(
    queue, a_follower_is_at_work
):
    if a_follower_is_at_work:
        creator_7.queue_jobs([ALLOWED], queue)
    send = processor_7.send_notification
    job = queue.enqueue(send, *ALLOWED.values(), **processor_7.HOOKS)
    work(queue.connection, queue)
    heard = Heard()
    creator_7.follow([job], queue, heard)
    wait_for_followers()
    assert heard == [("progress", 0), ("progress", 50), ("complete", None)]


def test_a_job_may_have_several_handlers(queue):
    first, second, late = Heard(), Heard(), Heard()
    job = follow(queue, "time.time", handler=first)
    creator_7.follow([job], queue, second)
    work(queue.connection, queue)
    creator_7.follow([job], queue, late)
    wait_for_followers()
    assert len(first) == 1
    assert first == second == late


def test_a_handler_may_queue_and_follow_a_job(queue):
    heard = Heard()

    def follow_up(job, event, detail):
        follow(queue, "copy.copy", detail + 1, handler=heard)

    follow(queue, "copy.copy", 1, handler=follow_up)
    wait_until(lambda: work(queue.connection, queue) or heard)
    assert heard == [("complete", 2)]


def test_lost_events_are_made_up_for_from_what_rq_knows(queue, capsys):
    numbers = {"1": "4153518743", "2": "4153518780", "3": "4153518743"}
    send = processor_7.send_notification
    jobs = [  # without the hooks, so they tell no end
        queue.enqueue(send, number, "hello", job_id=job_id)
        for job_id, number in numbers.items()
    ]
    queue.connection.delete("rq:job:3")
    work(queue.connection, queue)
    queue.connection.delete("events:q")
    creator_7.follow(jobs, queue, creator_7.print_event)
    assert sorted(told(capsys)) == [
        "Notification job 1 completed",
        "Notification job 2 failed: Phone number 4153518780 is blacklisted",
        "Notification job 3 failed: the job is gone from Redis",
    ]


@pytest.mark.parametrize(("result", "detail"), [(42, 42), ((1, "a"), [1, "a"])])
def test_a_lost_end_has_the_result_that_rq_has_through_json(queue, result, detail):
    heard = Heard()
    job = queue.enqueue("copy.copy", result)  # without the hooks
    creator_7.follow([job], queue, heard)
    work(queue.connection, queue)
    wait_for_followers()
    assert heard == [("complete", detail)]


def test_a_result_that_cannot_be_read_here_keeps_no_other_end_back(queue, caplog):
    class Thing:
        pass

    Thing.__module__, Thing.__qualname__ = "gone", "Thing"
    sys.modules["gone"] = SimpleNamespace(Thing=Thing)
    first, second = Heard(), Heard()
    jobs = [queue.enqueue("copy.copy", result) for result in (Thing(), 42)]
    work(queue.connection, queue)
    del sys.modules["gone"]
    creator_7.follow(jobs[:1], queue, first)
    creator_7.follow(jobs[1:], queue, second)
    with pytest.raises(SystemExit):
        wait_for_followers()
    assert (first, second) == ([("complete", None)], [("complete", 42)])
    assert [record.exc_info[0] for record in logged(caplog)] == [ModuleNotFoundError]


def test_news_of_one_job_do_not_keep_the_lost_end_of_another_back(queue):
    lost, busy = Heard(), Heard()
    creator_7.follow([queue.enqueue("time.time")], queue, lost)
    creator_7.follow([queue.enqueue("time.time", job_id="busy")], queue, busy)
    queue.connection.delete(queue.jobs[0].key)

    def report_and_look():
        processor_7.JobEvent("busy", "progress", 50).write(queue.connection, "q")
        return lost

    wait_until(report_and_look)
    assert lost == [("failed", "the job is gone from Redis")]


FRAME = "Traceback (most recent call last):\n  File\n"


@pytest.mark.parametrize(
    ("exc_string", "error"),
    [
        (f"{FRAME}my.module.Error: a: b", "a: b"),
        (f"{FRAME}KeyError: 'x'\n", "'x'"),
        (f"{FRAME}StopIteration", "StopIteration"),
        (f"{FRAME}Error: a\n  b\nsecond: c\n", "a\n  b\nsecond: c"),
        (f"{FRAME}A: b\n\nDuring\n\n{FRAME}C: d\n", "d"),
        (f"{FRAME}E: SELECT 1;", "SELECT 1;"),
        ("Work-horse terminated; waitpid: 9; ", "Work-horse terminated; waitpid: 9"),
    ],
)
def test_the_error_of_a_lost_end_is_the_end_of_its_traceback_without_the_class(
    queue, exc_string, error
):
    job = queue.enqueue("time.time")
    with queue.connection.pipeline() as pipe:
        job._handle_failure(exc_string, pipe)
        pipe.execute()
    assert creator_7.end_of(job, "failed").detail == error


def test_a_handler_that_waits_for_jobs_is_told_that_it_cannot(queue, caplog):
    def wait(job, event, detail):
        creator_7.wait_for_jobs()

    follow(queue, "time.time", handler=wait)
    work(queue.connection, queue)
    with pytest.raises(SystemExit):
        wait_for_followers()
    [record] = logged(caplog)
    assert "can't wait for jobs" in str(record.exc_info[1])


# Who tells it.


def test_one_thread_follows_the_jobs_of_all_calls_of_a_queue(queue, fake_redis):
    with ThreadPoolExecutor(32) as pool:
        for _ in range(64):
            again = Queue("q", connection=fake_redis)
            pool.submit(creator_7.queue_jobs, [ALLOWED], again)
    assert len(queue) == 64
    assert threads() == 1
    creator_7.queue_jobs([ALLOWED], Queue("another", connection=fake_redis))
    assert threads() == 2


def test_a_later_call_tells_no_handler_the_same_twice(queue):
    first, other, again = Heard(), Heard(), Heard()
    job = follow(queue, "copy.copy", 1, handler=first)
    processor_7.JobEvent(job.id, "progress", 10).write(queue.connection, "q")
    wait_until(lambda: first)
    follow(queue, "copy.copy", 2, handler=other)
    creator_7.follow([job], queue, again)
    wait_until(lambda: again)
    work(queue.connection, queue)
    wait_for_followers()
    assert other == [("complete", 2)]
    assert first == again == [("progress", 10), ("complete", 1)]


def test_jobs_that_are_not_queued_are_not_followed(queue):
    queue.connection.set("rq:queue:q", "no list")
    with pytest.raises(Exception, match="WRONGTYPE"):
        creator_7.queue_jobs([ALLOWED], queue)
    assert threads() == 0


def test_a_lost_counter_overwrites_no_job(queue):
    first = creator_7.queue_jobs([ALLOWED] * 11, queue)
    queue.connection.delete("job_ids")
    second = creator_7.queue_jobs([ALLOWED] * 3, queue)
    assert {job.id for job in first}.isdisjoint(job.id for job in second)
    assert len(queue) == 14


# What nobody foresaw is told, ends a script with status 1, and later calls are heard.


def fails(job, event, detail):
    raise ValueError(f"no {event}")


def leaves(job, event, detail):
    raise SystemExit


def logged(caplog):
    """Return what the scripts have logged, without what RQ has."""
    name = creator_7.logger.name
    return [record for record in caplog.records if record.name == name]


def assert_next_call_is_heard(queue):
    heard = Heard()
    follow(queue, "time.time", handler=heard)
    work(queue.connection, queue)
    wait_for_followers()
    assert [event for event, _ in heard] == ["complete"]


def test_an_error_in_a_handler_is_told_and_is_not_the_end(queue, caplog):
    heard = Heard()
    send = processor_7.send_notification
    job = follow(queue, send, *ALLOWED.values(), handler=fails)
    creator_7.follow([job], queue, heard)
    work(queue.connection, queue)
    with pytest.raises(SystemExit, match="^1$"):
        wait_for_followers()
    errors = [str(record.exc_info[1]) for record in logged(caplog)]
    assert errors == ["no progress", "no progress", "no complete"]
    assert heard == [("progress", 0), ("progress", 50), ("complete", None)]
    assert_next_call_is_heard(queue)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_handler_that_ends_the_thread_is_not_the_end_of_later_calls(queue):
    follow(queue, "time.time", handler=leaves)
    work(queue.connection, queue)
    with pytest.raises(SystemExit, match="^1$"):
        wait_for_followers()
    assert_next_call_is_heard(queue)


@pytest.mark.parametrize(
    ("fields", "is_named"),
    [
        ({"a": "b"}, False),
        ({"job": b"\xff"}, False),
        ({"job": "1"}, True),
        ({"job": "1", "event": "complete", "detail": "no JSON"}, True),
    ],
)
def test_an_entry_that_is_no_event_is_passed_over_and_named_if_the_job_is(
    queue, caplog, fields, is_named
):
    heard = Heard()
    queue.connection.xadd("events:q", fields)
    follow(queue, "copy.copy", 1, handler=heard, job_id="1")
    queue.connection.xadd("events:q", fields)
    work(queue.connection, queue)
    wait_for_followers()
    messages = [record.getMessage() for record in logged(caplog)]
    assert all("events:q is no event" in message for message in messages)
    assert bool(messages) == is_named
    assert heard == [("complete", 1)]


def test_an_error_that_nobody_foresaw_while_reading_is_told_and_is_not_the_end(
    queue, caplog, monkeypatch
):
    heard = Heard()
    admit = creator_7.Follower.admit_newcomers

    def admit_and_fail_once(follower):
        monkeypatch.setattr(creator_7.Follower, "admit_newcomers", admit)
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(creator_7.Follower, "admit_newcomers", admit_and_fail_once)
    follow(queue, "copy.copy", 1, handler=heard)
    work(queue.connection, queue)
    with pytest.raises(SystemExit, match="^1$"):
        wait_for_followers()
    [record] = logged(caplog)
    assert isinstance(record.exc_info[1], KeyError)
    assert heard == [("complete", 1)]


def test_a_script_that_could_not_tell_all_ends_with_status_1_once(queue):
    follow(queue, "time.time", handler=fails)
    work(queue.connection, queue)
    with pytest.raises(SystemExit, match="^1$"):
        wait_for_followers()
    creator_7.wait_for_jobs()


def test_the_stream_knows_the_end_of_a_job_that_is_gone(queue):
    heard = Heard()
    job = queue.enqueue("copy.copy", 1, **processor_7.HOOKS)
    work(queue.connection, queue)
    queue.connection.delete(job.key)  # so that only the stream knows its end
    creator_7.follow([job], queue, heard)
    wait_for_followers()
    assert heard == [("complete", 1)]
