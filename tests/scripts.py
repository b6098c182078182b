"""What the tests of all the scripts share: their names, and when one is at work."""

from collections.abc import Callable, Collection
from functools import partial

import redis
from conftest import ROOT, Script, wait_until

SCRIPTS = sorted(path.name for path in ROOT.glob("[0-9]_*.py"))
# The subscriber waits for a Redis that is away, the others end.
ENDING = [name for name in SCRIPTS if name != "5_subscriber.py"]
# Those that reach Redis in two ways; the others do it as the first.
SYNC_AND_ASYNC = ["0_redis_client.py", "2_redis_op_async.py"]

# What runs until it is stopped, and what tells that it is at work.
AT_WORK = {
    "5_subscriber.py": "connected",
    "6_job_creator.py": "created: ",
    "6_job_processor.py": None,
    "7_job_creator.py": "created: 11",
    "7_job_processor.py": None,
    "8_job.py": "created: ",
    "9_stock.py": "available",
}


def is_at_work(script: Script, client: redis.Redis) -> bool:
    """Tell whether a script has got so far that it works or waits."""
    if text := AT_WORK[script.name]:
        return any(text in line for line in script.lines)
    states = [client.hget(key, "state") for key in client.smembers("rq:workers")]
    return states == ["idle"] * (2 if script.name == "7_job_processor.py" else 1)


def start_until_at_work(
    start: Callable[..., Script], server: str, names: Collection[str]
) -> list[Script]:
    """Start scripts on the Redis at the URL `server`, and wait until all are at work.

    Each has a database of its own, 0, 1…, so that no processor takes a creator's jobs.
    """
    urls = [f"{server}/{number}" for number in range(len(names))]
    scripts = [start(name, url, PORT="0") for name, url in zip(names, urls)]
    for script, url in zip(scripts, urls):
        with redis.Redis.from_url(url, protocol=2, decode_responses=True) as client:
            wait_until(partial(is_at_work, script, client), state=script)
    return scripts
