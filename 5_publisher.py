"""Task 5: publish messages. The twin of 5-publisher.js; start 5_subscriber.py first."""

import importlib
from threading import Timer

import redis

redis_client = importlib.import_module("0_redis_client")
client = redis_client.create_client()

CHANNEL = "holberton school channel"


def publish_message(message: str, time: int) -> Timer:
    """Publish in `time` milliseconds. Twin of `publishMessage`.

    Returns a timer, as `setTimeout` does.
    """
    # When the time is over, the timer calls `publish(message)`, in a thread of its own.
    timer = Timer(time / 1000, publish, [message])
    timer.start()
    return timer


def publish(message: str) -> None:
    """Publish `message` at once."""
    print(f"About to send {message}")
    try:
        client.publish(CHANNEL, message)
    except redis.RedisError as error:
        redis_client.report(error)  # `redis_client.run` hears of no error in a thread


def main() -> None:
    """Schedule all four messages. Python then waits for the threads of the timers."""
    client.ping()
    print(redis_client.CONNECTED)
    publish_message("Holberton Student #1 starts course", 100)
    publish_message("Holberton Student #2 starts course", 200)
    publish_message("KILL_SERVER", 300)
    publish_message("Holberton Student #3 starts course", 400)


if __name__ == "__main__":
    redis_client.run(main)
