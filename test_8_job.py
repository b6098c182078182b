"""Task 11: test the job creation function. The twin of 8-job.test.js.

Kue has a test mode. RQ needs none: on fakeredis, a queue and its jobs live in this
process, and no job runs before a test starts a worker.
"""

import importlib
import signal
from collections.abc import Iterator

import fakeredis
import pytest
from rq import Queue, SimpleWorker

creator_7 = importlib.import_module("7_job_creator")
job_script = importlib.import_module("8_job")
create_push_notifications_jobs = job_script.create_push_notifications_jobs

ALLOWED = {"phoneNumber": "4153518743", "message": "This is the code 4321"}
BLACKLISTED = {"phoneNumber": "4153518780", "message": "This is the code 1234"}


@pytest.fixture
def queue(monkeypatch) -> Iterator[Queue]:
    """An empty queue on a Redis of its own.

    Twin of `beforeEach` and `afterEach`: what stands before the `yield`, and what follows it.
    """
    # Twin of `queue.testMode.enter()`.
    connection = fakeredis.FakeRedis()
    queue = Queue("push_notification_code_3", connection=connection)
    # `queue_jobs` starts a follower, a thread that prints what happens to the jobs. Let it ask RQ
    # more often, in seconds, so that the clean-up below is quick.
    monkeypatch.setattr(creator_7, "CHECK_INTERVAL", 0.01)
    # Whatever has failed in one test does not fail the next one.
    monkeypatch.setattr(creator_7.Follower, "has_failed", False)
    yield queue
    # Twin of `queue.testMode.clear()`. A job that is gone counts as ended.
    connection.flushall()
    wait_for_followers()
    # Twin of `queue.testMode.exit()`: nothing is left behind, and no follower had an error.
    assert not creator_7.followers
    assert not creator_7.Follower.has_failed


def wait_for_followers() -> None:
    """Wait until all that happens to the jobs is printed, for 10 s at most."""
    for follower in creator_7.followers.copy():
        follower.join(timeout=10)
        assert not follower.is_alive()


def process(queue: Queue) -> None:
    """Run the queued jobs, and wait until all that happens to them is printed.

    `SimpleWorker` runs them in this process. `Worker` would run them in a fork, on a copy
    of fakeredis.
    """
    SimpleWorker([queue], connection=queue.connection).work(burst=True)
    wait_for_followers()


@pytest.mark.parametrize("jobs", ["abc", {}, None, 1, {"phoneNumber": "1"}])
def test_jobs_that_are_no_array_are_a_type_error(queue, jobs):
    with pytest.raises(TypeError, match="^Jobs is not an array$"):
        create_push_notifications_jobs(jobs, queue)
    assert queue.connection.keys() == []


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("abc", "is not a dict"),
        ({"message": "hello"}, "has no phoneNumber"),
        ({"phoneNumber": "4153518743"}, "has no message"),
        (
            {"phoneNumber": 4153518743, "message": "hello"},
            "has a phoneNumber that is not a string",
        ),
        (
            {"phoneNumber": "4153518743", "message": None},
            "has a message that is not a string",
        ),
    ],
)
def test_a_wrong_entry_is_named_and_nothing_at_all_is_queued(queue, entry, fault):
    with pytest.raises(ValueError, match=rf"^jobs\[1\] {fault}$"):
        create_push_notifications_jobs([ALLOWED, entry], queue)
    assert queue.connection.keys() == []


def test_each_entry_becomes_a_job_of_the_queue(queue):
    jobs = create_push_notifications_jobs([BLACKLISTED, ALLOWED], queue)

    # Twin of `queue.testMode.jobs`.
    assert queue.jobs == jobs
    assert [job.origin for job in queue.jobs] == ["push_notification_code_3"] * 2
    function = "7_job_processor.send_notification"
    assert [job.func_name for job in queue.jobs] == [function] * 2
    assert queue.jobs[0].args == ("4153518780", "This is the code 1234")
    assert queue.jobs[1].args == ("4153518743", "This is the code 4321")


def test_a_tuple_is_an_array_and_may_be_empty(queue):
    assert create_push_notifications_jobs((), queue) == []
    assert len(create_push_notifications_jobs((ALLOWED,), queue)) == 1


def test_job_ids_count_on_from_call_to_call(queue, capsys):
    create_push_notifications_jobs([ALLOWED, ALLOWED], queue)
    create_push_notifications_jobs([ALLOWED], queue)

    assert queue.job_ids == ["1", "2", "3"]
    assert capsys.readouterr().out == (
        "Notification job created: 1\n"
        "Notification job created: 2\n"
        "Notification job created: 3\n"
    )


def test_no_job_runs_before_a_worker_does(queue, capsys):
    [job] = create_push_notifications_jobs([ALLOWED], queue)

    assert job.get_status() == "queued"
    assert capsys.readouterr().out == "Notification job created: 1\n"


def test_progress_and_completion_are_printed(queue, capsys):
    [job] = create_push_notifications_jobs([ALLOWED], queue)
    process(queue)

    assert job.get_status() == "finished"
    lines = capsys.readouterr().out.splitlines()
    # The worker and the follower print at the same time: this line may come anywhere.
    sent = "Sending notification to 4153518743, with message: This is the code 4321"
    assert sent in lines
    lines.remove(sent)
    assert lines == [
        "Notification job created: 1",
        "Notification job 1 0% complete",
        "Notification job 1 50% complete",
        "Notification job 1 completed",
    ]


def test_a_failure_is_printed_with_its_error(queue, capsys):
    [job] = create_push_notifications_jobs([BLACKLISTED], queue)
    process(queue)

    assert job.get_status() == "failed"
    assert capsys.readouterr().out.splitlines() == [
        "Notification job created: 1",
        "Notification job 1 0% complete",
        "Notification job 1 failed: Phone number 4153518780 is blacklisted",
    ]


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """After each test, give pytest its signal handlers back. A worker sets its own."""
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGINT, on_ctrl_c)
    signal.signal(signal.SIGTERM, on_sigterm)
