"""Task 1: connect to Redis. The twin of 0-redis_client.js.

The one place in this collection that knows where Redis is and what to say when it
can't be reached. The other scripts import it.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

if __name__ == "__main__":
    # Ctrl-C ends the script at once, without a traceback, also during the imports below.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis

CONNECTED = "Redis client connected to the server"
# Seconds to connect, and for the first check; later commands get redis-py's own 5.
CHECK_TIMEOUT = 0.5


def create_client(
    client_class: type = redis.Redis, **options
) -> redis.Redis | redis.asyncio.Redis:
    """Return a client for the Redis at `REDIS_URL`. It connects when it is first used.

    `client_class` is `redis.Redis` or `redis.asyncio.Redis`; `options` are those of
    its constructor. The client does not retry by itself, as that of `Redis()` would.

    Raises ValueError when `REDIS_URL` is malformed. Twin of `redis.createClient()`.
    """
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    options = {"socket_connect_timeout": CHECK_TIMEOUT} | options
    return client_class.from_url(url, **options)


def connect(**options) -> redis.Redis:
    """Return a client of `create_client`, after making sure that Redis answers.

    Ends the script with one line and status 1 when it does not.
    """
    with exit_if_unreachable():
        with create_client(**options | {"socket_timeout": CHECK_TIMEOUT}) as probe:
            probe.ping()
        return create_client(**options)


@contextmanager
def exit_if_unreachable() -> Iterator[None]:
    """End the script with one line and status 1 when the block can't reach Redis."""
    try:
        yield
    # ValueError and TypeError: a malformed URL, an unknown option in it.
    except (redis.RedisError, ValueError, TypeError) as error:
        print_not_connected(error)
        sys.exit(1)


def print_not_connected(error: Exception) -> None:
    """Print why Redis can't be reached. Twin of the client's `error` event."""
    print(f"Redis client not connected to the server: {error}", flush=True)


if __name__ == "__main__":
    connect()
    print(CONNECTED, flush=True)
