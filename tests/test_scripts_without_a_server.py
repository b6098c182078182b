"""Every script on fakeredis, in this process: no server, in seconds."""

import importlib
import threading
from datetime import datetime, timedelta

import pytest
from conftest import CONNECTED, wait_until
from jobs import work
from rq import Queue


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
    main = importlib.import_module(name).main
    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread


def wait_for(thread):
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_publisher_and_subscriber(run, fake_redis, capsys, monkeypatch):
    threads = threading.active_count()
    subscriber = importlib.import_module("5_subscriber")
    client = subscriber.redis_client.create_client(decode_responses=True)
    monkeypatch.setattr(subscriber, "client", client)
    subscriber = in_background("5_subscriber")
    wait_until(lambda: fake_redis.pubsub_numsub("holberton school channel")[0][1])
    lines = run("5_publisher.py")
    wait_for(subscriber)
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


def test_publishing_does_not_block_the_caller(fake_redis, capsys, monkeypatch):
    publisher = importlib.import_module("5_publisher")
    monkeypatch.setattr(publisher, "client", fake_redis)
    timer = publisher.publish_message("hello", 50)
    assert capsys.readouterr().out == ""
    timer.join()
    assert capsys.readouterr().out == "About to send hello\n"


def test_task_6_and_7(fake_redis, capsys):
    creator = in_background("6_job_creator")
    wait_until(lambda: fake_redis.llen("rq:queue:push_notification_code"))
    work(fake_redis, "push_notification_code")
    wait_for(creator)
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
    wait_for(creator)
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
    wait_for(script)
    assert capsys.readouterr().out.splitlines() == [
        "Notification job created: 1",
        "Notification job 1 0% complete",
        "Notification job 1 failed: Phone number 4153518780 is blacklisted",
    ]


def test_job_functions_can_be_called_without_a_worker(capsys):
    processor = importlib.import_module("7_job_processor")
    processor.send_notification("1", "hello")
    assert capsys.readouterr().out == "Sending notification to 1, with message: hello\n"
    error = processor.processor_6.NotificationError
    with pytest.raises(error, match="^Phone number 4153518781 is blacklisted$"):
        processor.send_notification("4153518781", "hello")


def test_a_clock_that_is_set_back_keeps_no_worker_from_its_tasks(fake_redis):
    processor_6 = importlib.import_module("6_job_processor")
    worker = processor_6.PatientSimpleWorker(["q"], connection=fake_redis)
    worker.last_cleaned_at = datetime.now().astimezone() + timedelta(hours=1)
    assert worker.should_run_maintenance_tasks


def test_hash_functions_take_any_hash(fake_redis, capsys, monkeypatch):
    script = importlib.import_module("4_redis_advanced_op")
    client = script.redis_client.create_client(decode_responses=True)
    monkeypatch.setattr(script, "client", client)
    script.update_hash("Cities", "Lille", "9")
    script.update_hash("Cities", "Lille", "8")
    script.print_hash("Cities")
    assert capsys.readouterr().out == "Reply: 1\nReply: 0\n{'Lille': '8'}\n"


@pytest.mark.parametrize(
    ("steps", "percent"),
    [((1, 3), 33), ((50, 100), 50), ((3, 2), 100), ((0, 0), 0), ((5, 0), 0)],
)
def test_progress_is_counted_as_kue_does(fake_redis, steps, percent):
    processor = importlib.import_module("7_job_processor")
    queue = Queue("q", connection=fake_redis)
    queue.enqueue(processor.report_progress, *steps)
    work(fake_redis, queue)
    [(_, fields)] = fake_redis.xrange("events:q")
    assert processor.JobEvent.read(fields).detail == percent
