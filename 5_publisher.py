"""Task 5: publish messages. The twin of 5-publisher.js; start 5_subscriber.py first."""

import importlib
import signal
import sys
from functools import cache
from threading import Timer

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis

redis_client = importlib.import_module("0_redis_client")
subscriber = importlib.import_module("5_subscriber")


@cache
def client() -> redis.Redis:
    """The script's client: made by the first call, and the same one ever after."""
    return redis_client.connect()


def publish_message(message: str, time: int) -> Timer:
    """Publish `message` in `time` milliseconds, without blocking the caller.

    Returns the timer, whose `join()` waits for it. Twin of `publishMessage`.
    """

    def publish() -> None:
        print(f"About to send {message}", flush=True)
        try:
            client().publish(subscriber.CHANNEL, message)
        except redis.ConnectionError as error:
            print(f"Not sent: {error}", file=sys.stderr)

    timer = Timer(time / 1000, publish)
    timer.start()
    return timer


if __name__ == "__main__":
    client()
    print(redis_client.CONNECTED, flush=True)
    # All four are scheduled at once; Python ends when their timers have.
    publish_message("Holberton Student #1 starts course", 100)
    publish_message("Holberton Student #2 starts course", 200)
    publish_message(subscriber.KILL_SERVER, 300)
    publish_message("Holberton Student #3 starts course", 400)
