"""Task 3: basic operations with async and await. The twin of 2-redis_op_async.js."""

import asyncio
import importlib
import signal
from functools import cache

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis.asyncio

redis_client = importlib.import_module("0_redis_client")


@cache
def client() -> redis.asyncio.Redis:
    """The script's client: made by the first call, and the same one ever after."""
    return redis_client.create_client(redis.asyncio.Redis, decode_responses=True)


async def set_new_school(school_name: str, value: str) -> None:
    """Set the key `school_name` to `value`. Twin of `setNewSchool`."""
    await client().set(school_name, value)  # raises an error unless Redis answers OK
    print("Reply: OK", flush=True)


async def display_school_value(school_name: str) -> None:
    """Print the value of the key `school_name`. Twin of `displaySchoolValue`."""
    print(await client().get(school_name), flush=True)


async def main() -> None:
    with redis_client.exit_if_unreachable():
        async with redis_client.create_client(
            redis.asyncio.Redis, socket_timeout=redis_client.CHECK_TIMEOUT
        ) as probe:
            await probe.ping()
    print(redis_client.CONNECTED, flush=True)
    async with client():  # closes the connection before the event loop ends
        await display_school_value("Holberton")
        await set_new_school("HolbertonSanFrancisco", "100")
        await display_school_value("HolbertonSanFrancisco")


if __name__ == "__main__":
    asyncio.run(main())
