"""Task 5: subscribe to messages. The twin of 5-subscriber.js; 5_publisher.py sends them."""

import importlib
import time
from collections.abc import Iterator

import redis

redis_client = importlib.import_module("0_redis_client")
# A message that is not UTF-8 is printed, too: `encoding_errors` replaces the wrong bytes.
client = redis_client.create_client(decode_responses=True, encoding_errors="replace")

CHANNEL = "holberton school channel"
KILL_SERVER = "KILL_SERVER"


def receive_messages() -> None:
    """Print each message until KILL_SERVER. Twin of the `message` event."""
    client.ping()  # raises an error if Redis is away; `subscribe` waits for no answer
    with client.pubsub() as pubsub:
        pubsub.subscribe(CHANNEL)
        print(redis_client.CONNECTED)
        for message in messages_of(pubsub):  # `pubsub.listen()` would nearly do
            print(message)
            if message == KILL_SERVER:
                pubsub.unsubscribe(CHANNEL)
                return


def main() -> None:
    """Receive messages; keep trying while Redis is away. Twin of the `error` event."""
    wait = 1  # seconds; grows to 4, and stays there
    while True:
        try:
            receive_messages()
            return
        except redis_client.REFUSED:
            raise  # a wrong password, for example, which is in AWAY, too: it would not help
        except redis_client.AWAY as error:
            redis_client.print_not_connected(error)
            time.sleep(wait)
            wait = min(wait + 1, 4)


# The exercise ends here. What follows reads the messages, and notices a connection that
# is dead but not closed.


def messages_of(pubsub: redis.client.PubSub) -> Iterator[str]:
    """Yield the messages that arrive.

    `pubsub.listen()` would wait for ever on a dead connection.
    """
    while True:
        message = pubsub.get_message(timeout=4)  # seconds
        if message is None:
            # Ask for a sign of life. The answer is a "pong", but any message will do.
            pubsub.ping()
            message = pubsub.get_message(timeout=4)
        if message is None:
            # It is one of AWAY: `main` tries again.
            raise redis.TimeoutError("Redis does not answer")
        # (Other types are "subscribe", for the answer to that, and "pong".)
        if message["type"] == "message":
            yield message["data"]


if __name__ == "__main__":
    redis_client.run(main)
