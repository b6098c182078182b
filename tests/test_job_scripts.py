"""Tasks 6 to 10, line for line: each script a process, on a real Redis."""

import importlib
import subprocess
import sys

import pytest
from conftest import ROOT, wait_until
from jobs import work

creator_6 = importlib.import_module("6_job_creator")
creator_7 = importlib.import_module("7_job_creator")

SENT = "Sending notification to {phoneNumber}, with message: {message}"


def assert_lines_of_eleven_jobs(lines, first_id):
    """Compare with the contract; the two workers decide only how jobs interleave."""
    ids = range(first_id, first_id + 11)
    assert lines[:11] == [f"Notification job created: {job_id}" for job_id in ids]
    assert len(lines) == 11 + 2 * 2 + 9 * 3
    for job_id, job in zip(ids, creator_7.JOBS):
        number = job["phoneNumber"]
        if number in ("4153518780", "4153518781"):
            rest = ["0% complete", f"failed: Phone number {number} is blacklisted"]
        else:
            rest = ["0% complete", "50% complete", "completed"]
        prefix = f"Notification job {job_id} "
        own = [line for line in lines[11:] if line.startswith(prefix)]
        assert own == [prefix + text for text in rest]


def test_task_6_creator_tells_that_its_job_completed(start, redis_server, capsys):
    for job_id in "12":
        script = start("6_job_creator.py", redis_server.url)
        script.wait_for(f"Notification job created: {job_id}")
        work(redis_server.rq_connection, "push_notification_code")
        assert script.end() == 0
        assert script.lines == [
            f"Notification job created: {job_id}",
            "Notification job completed",
        ]
    assert capsys.readouterr().out == 2 * (
        "Sending notification to 4153518780, "
        "with message: This is the code to verify your account\n"
    )


def test_task_6_creator_tells_that_its_job_failed(start, redis_server):
    script = start("6_job_creator.py", redis_server.url)
    script.wait_for("created")
    redis_server.client.hset("rq:job:1", "data", "no pickle")
    work(redis_server.rq_connection, "push_notification_code")
    assert script.end() == 0
    assert script.lines == ["Notification job created: 1", "Notification job failed"]


def test_task_8_creator_tells_all_that_happens(start, redis_server, capsys):
    for first_id in 1, 12:
        script = start("7_job_creator.py", redis_server.url)
        script.wait_for("created", 11)
        work(redis_server.rq_connection, "push_notification_code_2")
        assert script.end() == 0
        assert_lines_of_eleven_jobs(script.lines, first_id)
    assert capsys.readouterr().out.splitlines() == 2 * [
        SENT.format_map(job) for job in creator_7.JOBS[2:]
    ]


def test_task_10_script_stays_until_its_job_has_ended(start, redis_server):
    script = start("8_job.py", redis_server.url)
    script.wait_for("created")
    work(redis_server.rq_connection, "push_notification_code_3")
    assert script.end() == 0
    assert script.lines == [
        "Notification job created: 1",
        "Notification job 1 0% complete",
        "Notification job 1 failed: Phone number 4153518780 is blacklisted",
    ]


def test_following_does_not_keep_a_process_alive(redis_server):
    code = """
import importlib
from rq import Queue
connection = importlib.import_module("0_redis_client").create_client()
job_script = importlib.import_module("8_job")
jobs = [{"phoneNumber": "1", "message": "hello"}]
job_script.create_push_notifications_jobs(jobs, Queue("q", connection=connection))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"REDIS_URL": redis_server.url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "Notification job created: 1\n",
        "",
    )


def test_all_job_scripts_count_in_one_sequence(start, redis_server):
    names = ["6_job_creator.py", "7_job_creator.py", "8_job.py", "6_job_creator.py"]
    lines = []
    for name in names:
        script = start(name, redis_server.url)
        script.wait_for("created", 11 if name == "7_job_creator.py" else 1)
        lines += script.lines
    assert lines == [f"Notification job created: {number}" for number in range(1, 15)]


@pytest.mark.parametrize("processor_first", [True, False])
def test_task_6_and_7_start_in_any_order(
    start, redis_server, tmp_path, processor_first
):
    url = redis_server.url
    if processor_first:
        processor = start("6_job_processor.py", url, cwd=tmp_path)
        wait_until(lambda: redis_server.client.exists("rq:workers"))
        script = start("6_job_creator.py", url, cwd=tmp_path)
    else:
        script = start("6_job_creator.py", url, cwd=tmp_path)
        script.wait_for("created")
        processor = start("6_job_processor.py", url, cwd=tmp_path)
    assert script.end() == 0
    assert script.lines == ["Notification job created: 1", "Notification job completed"]
    assert processor.lines == [SENT.format_map(creator_6.JOB_DATA)]
    assert processor.errors == []


@pytest.mark.parametrize("processor_first", [True, False])
def test_task_8_and_9_start_in_any_order(
    start, redis_server, tmp_path, processor_first
):
    url = redis_server.url
    if processor_first:
        processor = start("7_job_processor.py", url, cwd=tmp_path)
        wait_until(lambda: redis_server.client.scard("rq:workers") == 2)
    else:  # and unbuffered: then print() would write a line's end by itself
        start("7_job_creator.py", url, cwd=tmp_path).wait_for("created", 11)
        unbuffered = {"PYTHONUNBUFFERED": "1"}
        processor = start("7_job_processor.py", url, cwd=tmp_path, **unbuffered)
        processor.wait_for("Sending", 9)
    script = start("7_job_creator.py", url, cwd=tmp_path)
    assert script.end() == 0
    assert_lines_of_eleven_jobs(script.lines, 1 if processor_first else 12)
    sent = [SENT.format_map(job) for job in creator_7.JOBS[2:]]
    assert sorted(processor.lines[-9:]) == sorted(sent)
    assert len(processor.lines) in (9, 18)
    assert processor.errors == []
