"""Task 5: subscribe to messages. The twin of 5-subscriber.js; 5_publisher.py sends them."""

import importlib
from collections.abc import Iterator

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

redis_client = importlib.import_module("0_redis_client")
client = redis_client.create_client(decode_responses=True, encoding_errors="replace")

CHANNEL = "holberton school channel"
KILL_SERVER = "KILL_SERVER"


def main() -> None:
    """Print each message, up to and including KILL_SERVER. Twin of `message` event."""
    with client.pubsub() as pubsub:  # closes the connection at its end
        pubsub.subscribe(CHANNEL)
        print(redis_client.CONNECTED)
        for message in listen(pubsub):
            print(message["data"])
            if message["data"] == KILL_SERVER:
                pubsub.unsubscribe(CHANNEL)
                break


# The exercise ends here. What follows keeps it listening, whatever becomes of Redis.


def listen(pubsub: redis.client.PubSub) -> Iterator[dict]:
    """Yield messages, as `pubsub.listen()` does; but that waits for ever on a dead line."""
    while True:
        message = pubsub.get_message(timeout=4)  # seconds
        if not message:
            pubsub.ping()
            if not (message := pubsub.get_message(timeout=4)):
                raise redis.TimeoutError("Redis does not answer")
        if message["type"] == "message":
            yield message


def keep_trying() -> None:
    """Run `main`, again and again while Redis is away. Twin of the `error` event."""
    retry = Retry(ExponentialBackoff(base=1, cap=4), retries=-1)  # after 2 s, then 4
    may_pass = lambda error: not isinstance(error, redis.AuthenticationError)
    retry.call_with_retry(main, redis_client.print_not_connected, may_pass)


if __name__ == "__main__":
    redis_client.run(keep_trying)
