"""Task 2: basic operations. The twin of 1-redis_op.js."""

import importlib

# A name that begins with a digit can't stand in an `import` statement.
redis_client = importlib.import_module("0_redis_client")
client = redis_client.create_client(decode_responses=True)  # else values are bytes


def set_new_school(school_name: str, value: str) -> None:
    """Set the key `school_name` to `value`. Twin of `setNewSchool`."""
    client.set(school_name, value)  # raises an error unless Redis answers OK
    print("Reply: OK")


def display_school_value(school_name: str) -> None:
    """Print the value of the key `school_name`. Twin of `displaySchoolValue`."""
    print(client.get(school_name))


def main() -> None:
    """Display a school, set another one, and display that."""
    client.ping()
    print(redis_client.CONNECTED)
    display_school_value("Holberton")
    set_new_school("HolbertonSanFrancisco", "100")
    display_school_value("HolbertonSanFrancisco")


if __name__ == "__main__":
    redis_client.run(main)
