"""What the tests of the stock service share: its answers, and how to ask for them."""

import http.client
import importlib
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.message import Message
from threading import Barrier
from typing import NamedTuple

from conftest import RedisServer, Script

stock = importlib.import_module("9_stock")

QUANTITIES = {1: 4, 2: 10, 3: 2, 4: 5}
SUITCASES = {
    1: '{"itemId":1,"itemName":"Suitcase 250","price":50,"initialAvailableQuantity":4',
    2: '{"itemId":2,"itemName":"Suitcase 450","price":100,"initialAvailableQuantity":10',
    3: '{"itemId":3,"itemName":"Suitcase 650","price":350,"initialAvailableQuantity":2',
    4: '{"itemId":4,"itemName":"Suitcase 1050","price":550,"initialAvailableQuantity":5',
}
ALL = "[" + ",".join(start + "}" for start in SUITCASES.values()) + "]"
NO_PRODUCT = '{"status":"Product not found"}'
NOT_FOUND = '{"status":"Not found"}'
NOT_ALLOWED = '{"status":"Method not allowed"}'
AWAY = '{"status":"Stock is not available right now"}'
FAILED = '{"status":"Internal server error"}'


def left(item_id: int, units: int) -> str:
    return SUITCASES[item_id] + f',"currentQuantity":{units}}}'


def confirmed(item_id: int) -> str:
    return f'{{"status":"Reservation confirmed","itemId":{item_id}}}'


def sold_out(item_id: int) -> str:
    return f'{{"status":"Not enough stock available","itemId":{item_id}}}'


# The contract's table, in an order that begins with an empty Redis.
TABLE = [
    ("GET", "/list_products", 200, ALL),
    ("GET", "/list_products/1", 200, left(1, 4)),
    ("GET", "/list_products/2", 200, left(2, 10)),
    ("GET", "/list_products/3", 200, left(3, 2)),
    ("GET", "/list_products/4", 200, left(4, 5)),
    ("GET", "/list_products/12", 404, NO_PRODUCT),
    ("GET", "/reserve_product/3", 200, confirmed(3)),
    ("GET", "/list_products/3", 200, left(3, 1)),
    ("GET", "/reserve_product/3", 200, confirmed(3)),
    ("GET", "/reserve_product/3", 200, sold_out(3)),
    ("GET", "/list_products/3", 200, left(3, 0)),
    ("GET", "/reserve_product/1", 200, confirmed(1)),
    ("GET", "/reserve_product/12", 404, NO_PRODUCT),
    ("GET", "/reserve_product/abc", 404, NO_PRODUCT),
    ("GET", "/", 404, NOT_FOUND),
    ("POST", "/reserve_product/1", 405, NOT_ALLOWED),
]


class Answer(NamedTuple):
    status: int
    headers: Message
    body: str


def check(answer: Answer) -> Answer:
    """Make sure that an answer is JSON and says so, and return it."""
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert json.loads(answer.body)
    return answer


def port_of(script: Script) -> int:
    """Wait until the service listens, and return its port."""
    script.wait_for("API available on localhost port ")
    return int(script.lines[0].split()[-1])


def serve(
    start: Callable[..., Script], url: str, port: int = 0, **options
) -> tuple[Script, int]:
    """Start the service, on a free port unless one is given; return script and port."""
    script = start("9_stock.py", url, PORT=str(port), **options)
    return script, port_of(script)


def connect(port: int) -> closing[http.client.HTTPConnection]:
    """Return a connection to the service, to ask on with `ask`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.auto_open = 0  # so that it is seen when the service has ended it
    connection.connect()
    return closing(connection)


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    **headers: str,
) -> Answer:
    """Ask on an open connection."""
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read().decode())
    return answer if method == "HEAD" else check(answer)


def get(port: int, path: str, method: str = "GET") -> Answer:
    """Ask on a connection of its own."""
    with connect(port) as connection:
        return ask(connection, path, method)


def get_at_once(port: int, paths: list[str]) -> list[Answer]:
    """Ask for all the paths at once."""
    count = len(paths)
    with ThreadPoolExecutor(count, initializer=Barrier(count).wait) as pool:
        return list(pool.map(get, [port] * count, paths))


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def waiting(redis: RedisServer) -> int:
    """Return how many clients a paused Redis lets wait."""
    return sum("b" in client["flags"] for client in redis.client.client_list())
