"""Task 1: connect to Redis. The twin of 0-redis_client.js.

The other scripts take `create_client` and `run` from here: this is the one place that
knows how to reach Redis, and how a script runs and ends.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable

import redis

CONNECTED = "Redis client connected to the server"


def create_client(
    client_class: type = redis.Redis, **options
) -> redis.Redis | redis.asyncio.Redis:
    """Return a client of the Redis at `REDIS_URL`. It connects when it is first used.

    `client_class` is `redis.Redis` or `redis.asyncio.Redis`; `options` are those of
    its constructor. Twin of `redis.createClient()`.
    """
    return client_class.from_url(redis_url(), **DEFAULTS | options)


def print_not_connected(error: Exception) -> None:
    """Print why Redis can't be reached. Twin of the client's `error` event."""
    print(f"Redis client not connected to the server: {error}")


def main() -> None:
    """Connect, and say so. Twin of the client's `connect` event."""
    create_client().ping()
    print(CONNECTED)


# The exercise ends here. What follows is how every script reaches Redis, runs and ends.

DEFAULTS = {"socket_connect_timeout": 0.5}  # seconds; for an answer redis-py waits 5


def redis_url() -> str:
    """Return `REDIS_URL`. A malformed one ends the script, like an unreachable Redis."""
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    try:
        redis.ConnectionPool.from_url(url).make_connection()  # connects to nothing yet
    except (ValueError, TypeError) as error:
        print_not_connected(error)
        sys.exit(1)
    return url


def run(main: Callable, *arguments) -> None:
    """Run `main` as a script. Without Redis that is one line and exit status 1."""
    # Every line leaves at once and in one piece, whatever characters it holds.
    sys.stdout.reconfigure(
        line_buffering=True, write_through=False, errors="backslashreplace"
    )
    logging.basicConfig(format="%(message)s")  # RQ's log goes to standard error,
    logging.disable(logging.INFO)  # from warnings on
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, without a traceback
    try:
        main(*arguments)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        print_not_connected(error)
        sys.exit(1)
    except redis.RedisError as error:  # it is there, but refuses: it is full, say
        sys.exit(f"Redis: {error}")


if __name__ == "__main__":
    run(main)
