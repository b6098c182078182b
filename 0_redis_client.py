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


def create_client(client_class: type = redis.Redis, **options) -> redis.Redis:
    """Return a client of the Redis at `REDIS_URL`. Twin of `redis.createClient()`.

    It connects when it is first used. Task 3 asks for another class, `redis.asyncio.Redis`.
    """
    settings = {**DEFAULTS, **options}  # DEFAULTS and `redis_url` are defined below
    return client_class.from_url(redis_url(), **settings)


def print_not_connected(error: object) -> None:
    """Print why Redis can't be reached. Twin of the client's `error` event.

    `run`, below, calls this if Redis is away.
    """
    print(f"Redis client not connected to the server: {error}")


def main() -> None:
    """Connect, and say so. Twin of the client's `connect` event."""
    create_client().ping()
    print(CONNECTED)


# The exercise ends here. The rest is for a second reading: how every script reaches Redis,
# runs and ends.

# How the clients of the scripts differ from redis-py's.
DEFAULTS = {
    # How many seconds connecting may take. An answer of Redis may take 5, redis-py's default.
    "socket_connect_timeout": 0.5,
    # redis-py's default is 3. It begins with the command HELLO, which Redis 5 does not know.
    "protocol": 2,
    # Don't tell Redis which library this is: that saves two commands for each connection.
    "driver_info": None,
}

# With this, a client sends each command once. (`supported_errors` is about clients that watch keys,
# as that of 9_stock.py. If such a client loses its connection, redis-py would otherwise raise
# `WatchError`, as if a key had changed, in place of the true error.)
SEND_ONCE = Retry(NoBackoff(), retries=0, supported_errors=())

# The options for 9_stock.py. It must answer its own clients soon, with an error if need be.
ANSWER_AT_ONCE = {
    # The limit for each answer of Redis, in seconds.
    "socket_timeout": 0.5,
    "retry": SEND_ONCE,
    # Each request that is being answered needs a connection. The default is 100.
    "max_connections": 10_000,
}

# redis-py raises one of these while Redis is away or does not answer.
AWAY = (redis.ConnectionError, redis.TimeoutError)
# It raises one of these if Redis answers with an error. The second one is for a wrong password.
# It is a subclass of `ConnectionError`, so `except AWAY` would catch it, too. Code that waits
# after AWAY must catch REFUSED first, as waiting does not help then.
REFUSED = (redis.ResponseError, redis.AuthenticationError)

# The log of all scripts. Like that of RQ, it goes to standard error.
logger = logging.getLogger(__name__)


class Output(io.FileIO):
    """The file behind standard output. Its reader may leave, as in `… | head -1`.

    What is printed goes through three objects: a `TextIOWrapper` makes bytes of the text, a
    `BufferedWriter` collects them, and this one writes them.
    """

    def write(self, data: bytes) -> int:
        """Write `data`. If the reader has left, drop it: a worker must not end for that."""
        try:
            return super().write(data)
        except BrokenPipeError:
            # The number of bytes that are done with. The others would be written again.
            return len(data)


def prepare_process() -> None:
    """Set up the output and the signals of a process that runs a script."""
    # `sys.stdout` is None if a shell has closed it, by `>&-`.
    if sys.stdout is not None:
        # Without `closefd=False`, the file would be closed when this object is deleted.
        output = Output(sys.stdout.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=sys.stdout.encoding,
            # A character that the encoding lacks is printed as an escape, and is no error.
            errors="backslashreplace",
            # Each line is written at once. Into a pipe, Python would keep lines back.
            line_buffering=True,
        )
    # Ctrl-C ends the process at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_prepared() -> bool:
    """Return whether somebody has set up the output and Ctrl-C already.

    We take another standard output than at the start of Python as the sign of that. It may be by
    `prepare_process` (a worker of 7_job_processor.py is a copy of a process that has called it),
    by IDLE, or by Jupyter.
    """
    return sys.stdout is not sys.__stdout__


def run(main: Callable, *arguments) -> None:
    """Call `main` as a script. Without Redis, print one line, and end with status 1."""
    if not is_prepared():
        prepare_process()
    # Log warnings and errors only. `disable` is also for loggers that have set a level
    # themselves, as RQ's do.
    logging.basicConfig(format="%(message)s")
    logging.disable(logging.INFO)
    try:
        main(*arguments)
    except redis.RedisError as error:
        report(error)
        sys.exit(1)


def report(error: redis.RedisError) -> None:
    """Print one line for an error of Redis."""
    # A wrong password is in AWAY, too.
    if isinstance(error, AWAY):
        print_not_connected(error)
        return
    # Redis is there but answers with an error; it may be full, for example.
    logger.error("Redis: %s", error)


# The rest finds out whether `REDIS_URL` is well formed. It is long and plain; you may skip it.

MALFORMED = (
    "REDIS_URL is malformed: it must be like redis://USER:PASSWORD@HOST:PORT/DATABASE, "
    "with %-escapes for special characters (%40 for @, %2F for /, %23 for #, %3F for ?)"
)

# The options that a URL may contain. redis-py has more, but some can't be written in a URL,
# such as `retry`, and others would break the scripts, such as `decode_responses`.
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
        # Raises an error for text that is not UTF-8, so that it can't be sent to Redis.
        url.encode()
        options = redis.connection.parse_url(url)
        # Raises one for a value that a connection does not accept. (It does not connect.)
        redis.ConnectionPool.from_url(url, **DEFAULTS).make_connection()
        # Raises one for a host that can't be looked up, such as "a..b". (IDNA is how names of
        # hosts are sent.)
        options.get("host", "").encode("idna")
        return has_clear_address(url) and has_allowed_options(options)
    except (ValueError, TypeError, redis.RedisError):
        return False


def has_clear_address(url: str) -> bool:
    """Return whether redis-py reads the address as it was meant."""
    parts = urlsplit(url)
    # An unescaped "#" or "?" in a password, as in "redis://:pa#ss@host": what follows it is not
    # a part of the address.
    if parts.fragment or "@" in parts.query:
        return False
    if parts.scheme == "unix":
        # A Unix socket has a path and no host.
        if parts.hostname:
            return False
        # An unescaped "/" in a password, as in "unix://:pa/ss@/redis.sock".
        return "@" not in parts.path
    # For port 0, redis-py would use 6379.
    if parts.port == 0:
        return False
    # For a path that is no number, it would use database 0. An unescaped "/" in a password makes
    # such a path, too. LARGEST_NUMBER has seven digits.
    return re.fullmatch("(/[0-9]{0,7})?", parts.path) is not None


def has_allowed_options(options: dict) -> bool:
    """Return whether the scripts support all options of a URL."""
    # An option in the URL overrides DEFAULTS, and RQ does not support protocol 3.
    if options.get("protocol", 2) != 2:
        return False
    for name, value in options.items():
        if name not in ALLOWED_OPTIONS:
            return False
        is_number = isinstance(value, (int, float))
        if is_number and not 0 <= value <= LARGEST_NUMBER:
            return False
    return True


if __name__ == "__main__":
    run(main)
