"""Task 12: is it in stock? The twin of 9-stock.js, as a WSGI application, `app`."""

import importlib
import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from threading import Semaphore, Thread
from urllib.parse import unquote

import redis

redis_client = importlib.import_module("0_redis_client")

FIELDS = "itemId", "itemName", "price", "initialAvailableQuantity"
list_products = [
    dict(zip(FIELDS, (1, "Suitcase 250", 50, 4))),
    dict(zip(FIELDS, (2, "Suitcase 450", 100, 10))),
    dict(zip(FIELDS, (3, "Suitcase 650", 350, 2))),
    dict(zip(FIELDS, (4, "Suitcase 1050", 550, 5))),
]


def get_item_by_id(item_id: int | str) -> dict | None:
    """Return the product with this id, None if there is none. Twin of `getItemById`."""
    return {str(item["itemId"]): item for item in list_products}.get(str(item_id))


def reserve_stock_by_id(item_id: int, stock: int, connection=None) -> None:
    """Set the number of reserved units. Twin of `reserveStockById`."""
    (connection or client).set(f"item.{item_id}", stock)


def get_current_reserved_stock_by_id(item_id: int, connection=None) -> int:
    """Return the number of reserved units. Twin of `getCurrentReservedStockById`."""
    return int((connection or client).get(f"item.{item_id}") or 0)


def reserve_one(item: dict) -> bool:
    """Reserve a unit of `item`, for one client alone; return False when sold out."""
    item_id, quantity = item["itemId"], item["initialAvailableQuantity"]
    if get_current_reserved_stock_by_id(item_id) >= quantity:
        return False  # the quick way; the check that counts is below
    with client.pipeline() as pipe:
        pipe.watch(f"item.{item_id}")  # until multi(), commands are answered at once
        reserved = get_current_reserved_stock_by_id(item_id, pipe)
        if reserved >= quantity:
            return False
        pipe.multi()  # from here on, commands wait for execute()
        reserve_stock_by_id(item_id, reserved + 1, pipe)
        try:
            pipe.execute()
            return True
        except redis.WatchError:  # another client has written since watch()
            return reserve_one(item)


def respond(path: str) -> tuple[str, dict | list]:
    """Return status and body of the answer to a GET request. Twin of the routes."""
    match path.split("/"):
        case ["", "list_products"]:
            return "200 OK", list_products
        case ["", "list_products" | "reserve_product" as route, item_id]:
            if not (item := get_item_by_id(item_id)):
                return "404 Not Found", {"status": "Product not found"}
            if route == "list_products":
                reserved = get_current_reserved_stock_by_id(item["itemId"])
                left = item["initialAvailableQuantity"] - reserved
                return "200 OK", item | {"currentQuantity": left}
            status = "Not enough stock available"
            if reserve_one(item):
                status = "Reservation confirmed"
            return "200 OK", {"status": status, "itemId": item["itemId"]}
    return "404 Not Found", {"status": "Not found"}


def main() -> None:
    """Serve `app` until stopped. Twin of `app.listen`."""
    client.ping()
    with Server(os.environ.get("PORT", "1245")) as server:
        print(f"API available on localhost port {server.server_address[1]}")
        server.serve_forever()


# The exercise ends here. What follows makes an answer of every error, and serves `app`.

JSON = "application/json; charset=utf-8"
logger = logging.getLogger(__name__)
# redis-py's own retry would tell a broken connection as a WatchError.
once = redis.retry.Retry(redis.backoff.NoBackoff(), 0, supported_errors=())
MAX = 10_000  # answers in hand at once; by itself redis-py refuses the 101st
# In seconds. A reservation can wait for it four times, as redis-py sends UNWATCH too.
client = redis_client.create_client(max_connections=MAX, socket_timeout=0.5, retry=once)


def app(environ: dict, start_response: Callable) -> list[bytes]:
    """Answer a request, in JSON whatever happens. Any WSGI server can call this."""
    try:
        status, body = "405 Method Not Allowed", {"status": "Method not allowed"}
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            status, body = respond(environ.get("PATH_INFO", ""))
    except redis.RedisError as error:
        logger.warning("Stock is not available: %s", error)
        body = {"status": "Stock is not available right now"}
        status = "503 Service Unavailable"
    except Exception:
        logger.exception("Unforeseen error")
        status, body = "500 Internal Server Error", {"status": "Internal server error"}
    content = json.dumps(body, separators=(",", ":")).encode()
    headers = [("Content-Type", JSON), ("Content-Length", str(len(content)))]
    start_response(status, [*headers, ("Allow", "GET, HEAD")])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]


class RequestHandler(BaseHTTPRequestHandler):  # for as long as a connection is open
    protocol_version, default_request_version = "HTTP/1.1", "HTTP/1.0"
    timeout = 5  # seconds until an idle connection is dropped
    wbufsize = -1  # an answer leaves in one piece
    error_content_type, error_message_format = JSON, '{"status":"%(explain)s"}'

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("do_"):  # do_POST, do_BREW: `app` answers every method
            return self.do_GET
        raise AttributeError(name)

    def do_GET(self) -> None:
        if not self.close_connection:  # a body would be taken for the next request
            head = self.headers
            body = "Content-Length" in head or "Transfer-Encoding" in head
            odd = head.defects or head.get_payload() or "\n" in "".join(head.values())
            self.close_connection = bool(body or odd)
        path = unquote(self.path.partition("?")[0], "latin-1")
        environ = {"REQUEST_METHOD": self.command, "PATH_INFO": path}
        with self.server.in_hand:
            self.wfile.writelines(app(environ, self.start_response))
            self.wfile.flush()

    def start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.send_response_only(int(status[:3]), status[4:])
        self.send_header("Date", self.date_time_string())
        for header in headers + [("Connection", "close")] * self.close_connection:
            self.send_header(*header)
        self.end_headers()

    def log_message(self, *args) -> None: ...


class Server(ThreadingTCPServer):  # with a thread for each connection
    allow_reuse_address, daemon_threads, request_queue_size = True, True, 1024

    def __init__(self, port: str):
        self.in_hand = Semaphore(MAX)
        try:
            super().__init__(("127.0.0.1", int(port)), RequestHandler)
        except (OSError, ValueError, OverflowError) as error:
            raise SystemExit(f"Can't listen on port {port}: {error}")
        for signum in signal.SIGINT, signal.SIGTERM:
            signal.signal(signum, lambda *_: Thread(target=self.shutdown).start())

    def finish_request(self, *args) -> None:
        with suppress(OSError):  # the client has left
            super().finish_request(*args)

    def server_close(self) -> None:
        super().server_close()
        for _ in range(MAX):  # until no answer is in hand; none begins any more
            self.in_hand.acquire()


if __name__ == "__main__":
    redis_client.run(main)
