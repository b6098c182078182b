"""Task 3: basic operations with async and await. The twin of 2-redis_op_async.js."""

import asyncio
import importlib

import redis.asyncio

redis_client = importlib.import_module("0_redis_client")
client = redis_client.create_client(redis.asyncio.Redis, decode_responses=True)


async def set_new_school(school_name: str, value: str) -> None:
    """Set the key `school_name` to `value`. Twin of `setNewSchool`."""
    await client.set(school_name, value)  # raises an error unless Redis answers OK
    print("Reply: OK")


async def display_school_value(school_name: str) -> None:
    """Print the value of the key `school_name`. Twin of `displaySchoolValue`."""
    print(await client.get(school_name))


async def main() -> None:
    """Display a school, set another one, and display that."""
    async with client:  # closes the connection at its end
        await client.ping()
        print(redis_client.CONNECTED)
        await display_school_value("Holberton")
        await set_new_school("HolbertonSanFrancisco", "100")
        await display_school_value("HolbertonSanFrancisco")


if __name__ == "__main__":
    # `main()` only makes a coroutine. `run` calls `asyncio.run`, which starts it.
    redis_client.run(asyncio.run, main())
