"""Task 4: hashes. The twin of 4-redis_advanced_op.js."""

import importlib
import signal
from pprint import pformat

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

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
    client = redis_client.connect(decode_responses=True)
    print(redis_client.CONNECTED, flush=True)
    for school, value in SCHOOLS.items():
        print(f"Reply: {client.hset(KEY, school, value)}", flush=True)
    # Redis promises no order of a hash's fields; merging into SCHOOLS gives it.
    print(pformat(SCHOOLS | client.hgetall(KEY), sort_dicts=False), flush=True)


if __name__ == "__main__":
    main()
