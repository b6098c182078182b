"""Task 1: connect to Redis. The twin of 0-redis_client.js.

The other scripts take `create_client` and `run` from here: this is the one place that
knows how to reach Redis, and how a script runs and ends.
"""

import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECTED = "Redis client connected to the server"


def create_client(
    client_class: type = redis.Redis, **options
) -> redis.Redis | redis.asyncio.Redis:
    """Return a client of the Redis at `REDIS_URL`. Twin of `redis.createClient()`.

    It connects when it is first used. `options` are those of `client_class`.
    """
    settings = DEFAULTS | options
    return client_class.from_url(redis_url(), **settings)


def print_not_connected(error: object) -> None:
    """Print why Redis can't be reached. Twin of the client's `error` event."""
    print(f"Redis client not connected to the server: {error}")


def main() -> None:
    """Connect, and say so. Twin of the client's `connect` event."""
    create_client().ping()
    print(CONNECTED)


# The exercise ends here. What follows is how every script reaches Redis, runs and ends.

DEFAULTS = {
    # In seconds. For an answer, redis-py waits for 5.
    "socket_connect_timeout": 0.5,
    # By itself redis-py greets with HELLO, which Redis 5 does not know.
    "protocol": 2,
    # Two commands less for each connection: it need not say which library made it.
    "driver_info": None,
}

# For 9_stock.py, whose own clients wait.
ANSWER_AT_ONCE = {
    "socket_timeout": 0.5,
    # One attempt. At a supported error, redis-py would close the connection and, if a key is
    # watched, as there, raise a `WatchError`, at which the transaction begins again. With no
    # error supported, the connection's own comes through.
    "retry": Retry(NoBackoff(), retries=0, supported_errors=()),
    # By itself redis-py has 100 connections, and refuses the 101st client.
    "max_connections": 10_000,
}

# What redis-py raises while Redis is away or silent, and when it is there but refuses.
AWAY = (redis.ConnectionError, redis.TimeoutError)
REFUSED = redis.ResponseError

# What all scripts tell on standard error, beside what RQ does.
logger = logging.getLogger(__name__)

MALFORMED = (
    "REDIS_URL is malformed: it must be like redis://USER:PASSWORD@HOST:PORT/DATABASE, "
    "with %-escapes for special characters (%40 for @, %2F for /, %23 for #, %3F for ?)"
)

# What a URL may say. redis-py knows more, but that needs an object of Python, such as a
# `Retry`, or the scripts can't do with it.
ALLOWED_OPTIONS = {
    # redis-py makes this of the scheme.
    "connection_class",
    "host",
    "port",
    "db",
    "path",
    "username",
    "password",
    "client_name",
    "protocol",
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "health_check_interval",
    "max_connections",
    "retry_on_timeout",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_ca_data",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
}

# For any option. Larger ones, `inf` say, fail only when they are used.
LARGEST_NUMBER = 1_000_000


def redis_url() -> str:
    """Return `REDIS_URL`. A malformed one ends the script, like an unreachable Redis."""
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    if not is_well_formed(url):
        # The error itself is not printed, as it may hold a part of the password.
        print_not_connected(MALFORMED)
        sys.exit(1)
    return url


def is_well_formed(url: str) -> bool:
    """Tell whether clients can be made of `url`. It connects to nothing yet."""
    try:
        options = redis.connection.parse_url(url)
        redis.ConnectionPool.from_url(url, **DEFAULTS).make_connection()
        # What would fail only when it is used: other bytes than UTF-8, and a part of the
        # host's name that is empty or too long.
        url.encode()
        options.get("host", "").encode("idna")
    except (ValueError, TypeError, redis.RedisError):
        return False
    return has_clear_address(url) and has_allowed_options(options)


def has_clear_address(url: str) -> bool:
    """Tell whether the address is meant as redis-py, which is generous, would read it."""
    parts = urlsplit(url)
    # An unescaped "?" or "#" in a password ends the address before its "@".
    if parts.fragment or "@" in parts.query:
        return False
    # Here the path is that of a file.
    if parts.scheme == "unix":
        return True
    # redis-py takes port 0 for 6379, and any path without a number for database 0.
    if parts.port == 0:
        return False
    return re.fullmatch("(/[0-9]*)?", parts.path) is not None


def has_allowed_options(options: dict) -> bool:
    """Tell whether all options in a URL are such as the scripts can do with."""
    # An option in the URL wins over DEFAULTS, and RQ does not support protocol 3.
    if options.get("protocol", 2) != 2:
        return False
    for name, value in options.items():
        if name not in ALLOWED_OPTIONS:
            return False
        if isinstance(value, (int, float)) and not 0 <= value <= LARGEST_NUMBER:
            return False
    return True


class Output(io.FileIO):
    """Standard output, which may lose its reader, as with `| head -1`."""

    def write(self, data: bytes) -> int:
        """Write `data`, to nowhere when nobody reads it any more.

        A worker or a creator must not end in the middle of its jobs for that.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def prepare_process() -> None:
    """Set up output and signals of a process that runs a script."""
    # It is None when it is closed, as with `>&-`.
    if sys.stdout is not None:
        # The same layers as Python's own output; only the lowest is another.
        output = Output(sys.stdout.fileno(), "w", closefd=False)
        # Every line leaves at once and in one piece, whatever characters it holds.
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
    # Ctrl-C ends it at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(main: Callable, *arguments) -> None:
    """Run `main` as a script. Without Redis that is one line and exit status 1."""
    # IDLE and Jupyter have an output and signals of their own.
    if sys.stdout is sys.__stdout__:
        prepare_process()
    # RQ's log goes to standard error, from warnings on.
    logging.basicConfig(format="%(message)s")
    logging.disable(logging.INFO)
    try:
        main(*arguments)
    except AWAY as error:
        print_not_connected(error)
        sys.exit(1)
    except redis.RedisError as error:
        # Redis is there, but refuses: it is full, say.
        sys.exit(f"Redis: {error}")


if __name__ == "__main__":
    run(main)
