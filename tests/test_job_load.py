"""The job scripts under load and with any text, on a real Redis."""

import collections
import importlib

import pytest
from conftest import run_code, wait_until
from jobs import (
    start_processor,
    start_processors,
    told_of_each_job,
    wait_for_followers,
)
from rq import Queue

creator_7 = importlib.import_module("7_job_creator")
job_script = importlib.import_module("8_job")

QUEUE = "push_notification_code_2"
ALLOWED = {"phoneNumber": "4153518743", "message": "hello"}


def test_a_list_of_20_000_is_queued_whole(redis_server, capsys, monkeypatch):
    queue = Queue(QUEUE, connection=redis_server.rq_connection)
    jobs = job_script.create_push_notifications_jobs([ALLOWED] * 20_000, queue)
    assert queue.job_ids == [job.id for job in jobs]
    assert [job.id for job in jobs] == [str(number) for number in range(1, 20_001)]
    assert capsys.readouterr().out.count("created") == 20_000
    monkeypatch.setattr(creator_7, "CHECK_INTERVAL", 0.1)
    redis_server.client.flushall()
    wait_for_followers()


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
    wait_for_followers()
    assert capsys.readouterr().out.splitlines()[-1] == "Notification job 1 completed"
    sent = f"Sending notification to {text}, with message: {text}".split("\n")
    wait_until(lambda: len(processor.lines) == len(sent))
    assert processor.lines == sent


CREATOR_OF_250 = """
import importlib, sys
from rq import Queue
connection = importlib.import_module("0_redis_client").create_client()
job_script = importlib.import_module("8_job")
jobs = [{"phoneNumber": "4153518743", "message": f"{sys.argv[1]} {n}"} for n in range(250)]
queue = Queue("push_notification_code_2", connection=connection)
for n in range(0, 250, 50):
    job_script.create_push_notifications_jobs(jobs[n:n + 50], queue)
job_script.creator_7.wait_for_jobs()
"""


def test_four_creators_and_two_processors_at_once(start, redis_server):
    processors = start_processors(start, redis_server, *["7_job_processor.py"] * 2)
    creators = [
        run_code(CREATOR_OF_250, redis_server.url, str(number)) for number in range(4)
    ]
    ids = set()
    for creator in creators:
        assert creator.end(timeout=60) == 0
        assert creator.errors == []
        told = told_of_each_job(creator.lines)
        assert len(told) == 250
        for job_id, texts in told.items():
            assert texts == ["0% complete", "50% complete", "completed"]
            created = creator.lines.index(f"Notification job created: {job_id}")
            progress = creator.lines.index(f"Notification job {job_id} 0% complete")
            assert created < progress
        ids.update(told)
    assert len(ids) == 1000
    sent = collections.Counter(line for script in processors for line in script.lines)
    assert len(sent) == 1000
    assert set(sent.values()) == {1}
