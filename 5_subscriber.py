"""Task 5: subscribe to messages. The twin of 5-subscriber.js."""

import importlib
import signal
import sys
import time

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis

redis_client = importlib.import_module("0_redis_client")

CHANNEL = "holberton school channel"
KILL_SERVER = "KILL_SERVER"
SHORTEST_WAIT, LONGEST_WAIT = 0.1, 3  # seconds between two attempts to connect


def main() -> None:
    """Print each message on the channel, up to and including KILL_SERVER.

    Keeps trying while Redis is away. Twin of the client's `connect`, `error` and
    `message` events.
    """
    # Anyone may publish any bytes, and the terminal's encoding may lack characters.
    sys.stdout.reconfigure(errors="backslashreplace")
    client = redis_client.create_client(
        decode_responses=True, encoding_errors="replace"
    )
    wait = SHORTEST_WAIT
    while True:
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(CHANNEL)
                for message in pubsub.listen():
                    if message["type"] == "subscribe":
                        print(redis_client.CONNECTED, flush=True)
                        wait = SHORTEST_WAIT
                    elif message["type"] == "message":
                        print(message["data"], flush=True)
                        if message["data"] == KILL_SERVER:
                            pubsub.unsubscribe(CHANNEL)
                            return
        except redis.AuthenticationError:
            raise  # waiting does not help; exit_if_unreachable ends the script
        except (redis.ConnectionError, redis.TimeoutError) as error:
            redis_client.print_not_connected(error)
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)


if __name__ == "__main__":
    with redis_client.exit_if_unreachable():
        main()
