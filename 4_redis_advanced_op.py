"""Task 4: hashes. The twin of 4-redis_advanced_op.js."""

import importlib
from pprint import pprint

redis_client = importlib.import_module("0_redis_client")
client = redis_client.create_client(decode_responses=True)


def update_hash(hash_name: str, field_name: str, field_value: int | str) -> None:
    """Set a field of a hash; print 1 if it is new, else 0. Twin of `updateHash`."""
    reply = client.hset(hash_name, field_name, field_value)
    print(f"Reply: {reply}")


def print_hash(hash_name: str) -> None:
    """Print all fields of a hash, in the order of Redis. Twin of `printHash`."""
    pprint(client.hgetall(hash_name), sort_dicts=False)  # one field per line


def main() -> None:
    """Set the fields one by one, then print the whole hash."""
    client.ping()
    print(redis_client.CONNECTED)
    update_hash("HolbertonSchools", "Portland", 50)
    update_hash("HolbertonSchools", "Seattle", 80)
    update_hash("HolbertonSchools", "New York", 20)
    update_hash("HolbertonSchools", "Bogota", 20)
    update_hash("HolbertonSchools", "Cali", 40)
    update_hash("HolbertonSchools", "Paris", 2)
    print_hash("HolbertonSchools")


if __name__ == "__main__":
    redis_client.run(main)
