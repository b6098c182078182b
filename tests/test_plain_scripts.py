"""Tasks 1 to 5, line for line: each script in a process of its own."""

import pytest
from conftest import ROOT

CONNECTED = "Redis client connected to the server"
NOT_CONNECTED = "Redis client not connected to the server: "
SCHOOLS = """\
{'Portland': '50',
 'Seattle': '80',
 'New York': '20',
 'Bogota': '20',
 'Cali': '40',
 'Paris': '2'}"""
SENT = [
    "Holberton Student #1 starts course",
    "Holberton Student #2 starts course",
    "KILL_SERVER",
    "Holberton Student #3 starts course",
]
SCRIPTS = sorted(path.name for path in ROOT.glob("[0-9]_*.py"))


def test_client(start, server):
    script = start("0_redis_client.py", server.url)
    assert script.end() == 0
    assert script.lines == [CONNECTED]


@pytest.mark.parametrize("name", ["1_redis_op.py", "2_redis_op_async.py"])
def test_basic_operations_twice_in_a_row(start, server, name):
    server.client.set("Holberton", "School")
    for _ in range(2):
        script = start(name, server.url)
        assert script.end() == 0
        assert script.lines == [CONNECTED, "School", "Reply: OK", "100"]
    assert server.client.get("HolbertonSanFrancisco") == "100"


@pytest.mark.parametrize("name", ["1_redis_op.py", "2_redis_op_async.py"])
def test_a_missing_key_is_none(start, server, name):
    script = start(name, server.url)
    script.end()
    assert script.lines == [CONNECTED, "None", "Reply: OK", "100"]


def test_hash_replies_1_for_a_new_field_and_0_for_one_that_was_there(start, server):
    for reply in "10":
        script = start("4_redis_advanced_op.py", server.url)
        assert script.end() == 0
        expected = [CONNECTED] + [f"Reply: {reply}"] * 6 + SCHOOLS.splitlines()
        assert script.lines == expected


def test_hash_is_printed_in_the_order_of_the_task(start, server):
    server.client.hset("HolbertonSchools", mapping={"Paris": 1, "Lille": 9, "Cali": 3})
    script = start("4_redis_advanced_op.py", server.url)
    assert script.end() == 0
    assert [line.split(":")[0] for line in script.lines[7:]] == [
        "{'Portland'",
        " 'Seattle'",
        " 'New York'",
        " 'Bogota'",
        " 'Cali'",
        " 'Paris'",
        " 'Lille'",
    ]


def test_publisher_and_subscriber(start, server):
    subscriber = start("5_subscriber.py", server.url)
    subscriber.wait_for(CONNECTED)
    publisher = start("5_publisher.py", server.url)
    assert publisher.end() == 0
    assert publisher.lines == [CONNECTED] + [f"About to send {text}" for text in SENT]
    assert subscriber.end() == 0
    assert subscriber.lines == [CONNECTED] + SENT[:3]


def test_publisher_sends_without_a_subscriber(start, server):
    publisher = start("5_publisher.py", server.url)
    assert publisher.end() == 0
    assert len(publisher.lines) == 5
