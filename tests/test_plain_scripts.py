"""Tasks 1 to 5, line for line: each script a process, on a real Redis."""

import pytest
from conftest import CONNECTED

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


def test_client(start, redis_server):
    script = start("0_redis_client.py", redis_server.url)
    assert script.end() == 0
    assert script.lines == [CONNECTED]


@pytest.mark.parametrize("name", ["1_redis_op.py", "2_redis_op_async.py"])
def test_basic_operations_twice_in_a_row(start, redis_server, name):
    redis_server.client.set("Holberton", "School")
    for _ in range(2):
        script = start(name, redis_server.url)
        assert script.end() == 0
        assert script.lines == [CONNECTED, "School", "Reply: OK", "100"]
    assert redis_server.client.get("HolbertonSanFrancisco") == "100"


@pytest.mark.parametrize("name", ["1_redis_op.py", "2_redis_op_async.py"])
def test_a_missing_key_is_none(start, redis_server, name):
    script = start(name, redis_server.url)
    script.end()
    assert script.lines == [CONNECTED, "None", "Reply: OK", "100"]


def test_hash_replies_1_for_a_new_field_and_0_for_one_that_was_there(
    start, redis_server
):
    for reply in "10":
        script = start("4_redis_advanced_op.py", redis_server.url)
        assert script.end() == 0
        expected = [CONNECTED] + [f"Reply: {reply}"] * 6 + SCHOOLS.splitlines()
        assert script.lines == expected


def test_hash_is_printed_as_redis_holds_it(start, redis_server):
    redis_server.client.hset(
        "HolbertonSchools", mapping={"Paris": 1, "Lille": 9, "Cali": 3}
    )
    script = start("4_redis_advanced_op.py", redis_server.url)
    assert script.end() == 0
    schools = [line.strip("{ ").split(":")[0] for line in script.lines[7:]]
    assert schools == [
        "'Paris'",
        "'Lille'",
        "'Cali'",
        "'Portland'",
        "'Seattle'",
        "'New York'",
        "'Bogota'",
    ]


def test_publisher_and_subscriber(start, redis_server):
    subscriber = start("5_subscriber.py", redis_server.url)
    subscriber.wait_for(CONNECTED)
    publisher = start("5_publisher.py", redis_server.url)
    assert publisher.end() == 0
    assert publisher.lines == [CONNECTED] + [f"About to send {text}" for text in SENT]
    assert subscriber.end() == 0
    assert subscriber.lines == [CONNECTED] + SENT[:3]


def test_publisher_sends_without_a_subscriber(start, redis_server):
    publisher = start("5_publisher.py", redis_server.url)
    assert publisher.end() == 0
    assert len(publisher.lines) == 5


@pytest.mark.parametrize(
    ("sent", "printed"),
    [
        (b"one\ntwo", ["one", "two"]),
        (b"", [""]),
        (b"caf\xe9 \xff\x00", ["caf\ufffd \ufffd\x00"]),
        ("\u00fcber \u2603 \U0001f600".encode(), ["\u00fcber \u2603 \U0001f600"]),
        (b"x" * 1_000_000, ["x" * 1_000_000]),
    ],
    ids=["newline", "empty", "not UTF-8", "Unicode", "1 MB"],
)
def test_subscriber_prints_any_message(start, redis_server, sent, printed):
    subscriber = start("5_subscriber.py", redis_server.url)
    subscriber.wait_for(CONNECTED)
    redis_server.client.publish("holberton school channel", sent)
    redis_server.client.publish("holberton school channel", "KILL_SERVER")
    assert subscriber.end() == 0
    assert subscriber.lines == [CONNECTED, *printed, "KILL_SERVER"]


def test_subscriber_prints_what_an_ascii_terminal_does_not_know(start, redis_server):
    subscriber = start("5_subscriber.py", redis_server.url, PYTHONIOENCODING="ascii")
    subscriber.wait_for(CONNECTED)
    redis_server.client.publish("holberton school channel", "\u2603")
    redis_server.client.publish("holberton school channel", "KILL_SERVER")
    assert subscriber.end() == 0
    assert subscriber.lines[1] == r"\u2603"
