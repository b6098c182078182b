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

    It connects when it is first used. Task 3 asks for another class, `redis.asyncio.Redis`.
    """
    settings = {**DEFAULTS, **options}
    return client_class.from_url(redis_url(), **settings)


def print_not_connected(error: object) -> None:
    """Print why Redis can't be reached. Twin of the client's `error` event.

    `run` below calls it when `main` of a script ends with such an error.
    """
    print(f"Redis client not connected to the server: {error}")


def main() -> None:
    """Connect, and say so. Twin of the client's `connect` event."""
    create_client().ping()
    print(CONNECTED)


# The exercise ends here. What follows is how every script reaches Redis, runs and ends.

DEFAULTS = {
    # Seconds for connecting. For each answer, redis-py waits for 5.
    "socket_connect_timeout": 0.5,
    # With protocol 3, redis-py's default, it begins with HELLO, which Redis 5 does not know.
    "protocol": 2,
    # Don't tell Redis which library this is: that saves two commands for each connection.
    "driver_info": None,
}

# For a client that answers HTTP requests: it must fail soon, not wait. 9_stock.py has one.
ANSWER_AT_ONCE = {
    # Seconds for each answer of Redis.
    "socket_timeout": 0.5,
    # Try each command once, and raise what happens. With `supported_errors`, redis-py would
    # turn a lost connection in a transaction into a `WatchError`, which means that the key
    # has changed, and the transaction would be tried again.
    "retry": Retry(NoBackoff(), retries=0, supported_errors=()),
    # The default of 100 would be too few for 101 requests at once.
    "max_connections": 10_000,
}

# redis-py raises these while Redis is away or does not answer.
AWAY = (redis.ConnectionError, redis.TimeoutError)
# And these when Redis answers with an error. `AuthenticationError` is a `ConnectionError`,
# too. So catch REFUSED first where AWAY is a reason to wait: here waiting would not help.
REFUSED = (redis.ResponseError, redis.AuthenticationError)

# All scripts log here. It goes to standard error, as RQ's log does.
logger = logging.getLogger(__name__)

MALFORMED = (
    "REDIS_URL is malformed: it must be like redis://USER:PASSWORD@HOST:PORT/DATABASE, "
    "with %-escapes for special characters (%40 for @, %2F for /, %23 for #, %3F for ?)"
)

# What a URL may contain. redis-py has more options, but their values are objects of Python,
# such as a `Retry`, or would change what the scripts rely on.
ALLOWED_OPTIONS = {
    # redis-py derives this one from the scheme of the URL.
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

# The limit for any option. A larger number, such as `inf`, would fail later, when it is used.
LARGEST_NUMBER = 1_000_000


def redis_url() -> str:
    """Return `REDIS_URL`. If it is malformed, the script ends as if Redis were away."""
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    if not is_well_formed(url):
        # Don't print the error itself: it may contain a part of the password.
        print_not_connected(MALFORMED)
        sys.exit(1)
    return url


def is_well_formed(url: str) -> bool:
    """Return whether a client can be made from `url`."""
    try:
        options = redis.connection.parse_url(url)
        # Makes the object only; nothing connects yet.
        redis.ConnectionPool.from_url(url, **DEFAULTS).make_connection()
        # Bytes that are not UTF-8 would fail later.
        url.encode()
        # So would a name of a host with an empty or too long part, "a..b" for example.
        options.get("host", "").encode("idna")
    except (ValueError, TypeError, redis.RedisError):
        return False
    return has_clear_address(url) and has_allowed_options(options)


def has_clear_address(url: str) -> bool:
    """Return whether redis-py reads the address as it was meant."""
    parts = urlsplit(url)
    # After an unescaped "?" or "#" in a password, the rest of it is no part of the address.
    if parts.fragment or "@" in parts.query:
        return False
    # The address of a Unix socket is its path. After an unescaped "/" in a password, the
    # rest of the password would be in the path.
    if parts.scheme == "unix":
        return not parts.hostname and "@" not in parts.path
    # redis-py would use port 6379 instead of 0, and database 0 for a path that is no number.
    if parts.port == 0:
        return False
    return re.fullmatch("(/[0-9]*)?", parts.path) is not None


def has_allowed_options(options: dict) -> bool:
    """Return whether the scripts support all options of a URL."""
    # An option in the URL overrides DEFAULTS, and RQ does not support protocol 3.
    if options.get("protocol", 2) != 2:
        return False
    for name, value in options.items():
        if name not in ALLOWED_OPTIONS:
            return False
        if isinstance(value, (int, float)) and not 0 <= value <= LARGEST_NUMBER:
            return False
    return True


class Output(io.FileIO):
    """Standard output. Its reader may leave, as in `python 7_job_creator.py | head -1`."""

    def write(self, data: bytes) -> int:
        """Write `data`, or drop it if the reader has left.

        A worker must not end in the middle of a job because of that.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def prepare_process() -> None:
    """Set up the output and the signals of a process that runs a script."""
    # It is None if it is closed, as by `>&-` in a shell.
    if sys.stdout is not None:
        # `print` writes text to a TextIOWrapper, which writes bytes to a BufferedWriter,
        # which writes to the file. Python's own standard output is made in the same way.
        output = Output(sys.stdout.fileno(), "w", closefd=False)
        # Each line is written at once and whole, whatever characters it contains.
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
    # Ctrl-C ends the process at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(main: Callable, *arguments) -> None:
    """Call `main` as a script. Without Redis, print one line, and end with status 1."""
    # IDLE and Jupyter replace the output, and handle Ctrl-C themselves. In a process that a
    # script has forked, this is done already.
    if sys.stdout is sys.__stdout__:
        prepare_process()
    # The log goes to standard error, without what is below a warning. A level would not do,
    # as RQ sets the level of its loggers itself.
    logging.basicConfig(format="%(message)s")
    logging.disable(logging.INFO)
    try:
        main(*arguments)
    except AWAY as error:
        print_not_connected(error)
        sys.exit(1)
    except redis.RedisError as error:
        # Redis is there but answers with an error; it may be full, for example. Python
        # prints the text on standard error, and ends with status 1.
        sys.exit(f"Redis: {error}")


if __name__ == "__main__":
    run(main)
