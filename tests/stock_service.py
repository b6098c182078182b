"""What the tests of the stock service share: its answers, and how to ask for them."""

import http.client
import importlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.message import Message
from email.parser import Parser
from threading import Barrier
from typing import NamedTuple

from conftest import RedisServer

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
LINE = b" HTTP/1.1\r\nHost: localhost\r\n"  # what follows a path


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


def get(port: int, path: str, method: str = "GET", body: bytes | None = None) -> Answer:
    """Ask the service on `port`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read().decode())
    return answer if method == "HEAD" else check(answer)


def get_at_once(port: int, paths: list[str]) -> list[Answer]:
    """Ask for all the paths at once."""
    count = len(paths)
    with ThreadPoolExecutor(count, initializer=Barrier(count).wait) as pool:
        return list(pool.map(get, [port] * count, paths))


def waiting(redis: RedisServer) -> int:
    """Return how many clients a paused Redis lets wait."""
    return sum("b" in client["flags"] for client in redis.client.client_list())


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def send(port: int, data: bytes, *, and_end: bool = False) -> bytes:
    """Send bytes as they are; return what comes until the service ends the connection.

    It must do so before the connection counts as idle, and it must not reset it. With
    `and_end`, the client ends its side after the bytes.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        connection.sendall(data)
        if and_end:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            received += part
    return received


def exchange(port: int, request: bytes) -> Answer | None:
    """Send bytes as they are; return the answer, None if the connection is closed."""
    received = send(port, request, and_end=True)
    if not received:
        return None
    head, _, body = received.decode("latin-1").partition("\r\n\r\n")
    status_line, _, headers = head.partition("\r\n")
    version, status, _ = status_line.split(" ", 2)
    assert version == "HTTP/1.1"
    return check(Answer(int(status), Parser().parsestr(headers), body))
