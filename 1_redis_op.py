"""Task 2: basic operations. The twin of 1-redis_op.js."""

import importlib
import signal
from functools import cache

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis

redis_client = importlib.import_module("0_redis_client")


@cache
def client() -> redis.Redis:
    """The script's client: made by the first call, and the same one ever after."""
    return redis_client.connect(decode_responses=True)


def set_new_school(school_name: str, value: str) -> None:
    """Set the key `school_name` to `value`. Twin of `setNewSchool`."""
    client().set(school_name, value)  # raises an error unless Redis answers OK
    print("Reply: OK", flush=True)


def display_school_value(school_name: str) -> None:
    """Print the value of the key `school_name`. Twin of `displaySchoolValue`."""
    print(client().get(school_name), flush=True)


if __name__ == "__main__":
    client()
    print(redis_client.CONNECTED, flush=True)
    display_school_value("Holberton")
    set_new_school("HolbertonSanFrancisco", "100")
    display_school_value("HolbertonSanFrancisco")
