"""Task 4: hashes. The twin of 4-redis_advanced_op.js."""

import importlib
from pprint import pprint

redis_client = importlib.import_module("0_redis_client")

KEY = "HolbertonSchools"
SCHOOLS = {
    "Portland": 50,
    "Seattle": 80,
    "New York": 20,
    "Bogota": 20,
    "Cali": 40,
    "Paris": 2,
}


def main() -> None:
    """Set the fields one by one, then print the whole hash."""
    client = redis_client.create_client(decode_responses=True)
    client.ping()
    print(redis_client.CONNECTED)
    for school, value in SCHOOLS.items():
        print(f"Reply: {client.hset(KEY, school, value)}")
    # Redis promises no order of a hash's fields; merging into SCHOOLS gives it.
    pprint(SCHOOLS | client.hgetall(KEY), sort_dicts=False)


if __name__ == "__main__":
    redis_client.run(main)
