"""Task 12: is it in stock? The twin of 9-stock.js: a WSGI application named `app`.

`python 9_stock.py` serves it on this machine; any WSGI server can serve it to a network.
"""

import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from socketserver import ThreadingMixIn
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback, during imports too

import redis

redis_client = importlib.import_module("0_redis_client")
logger = logging.getLogger(__name__)

JSON = "application/json; charset=utf-8"
FIELDS = "itemId", "itemName", "price", "initialAvailableQuantity"
list_products = [
    dict(zip(FIELDS, (1, "Suitcase 250", 50, 4))),
    dict(zip(FIELDS, (2, "Suitcase 450", 100, 10))),
    dict(zip(FIELDS, (3, "Suitcase 650", 350, 2))),
    dict(zip(FIELDS, (4, "Suitcase 1050", 550, 5))),
]


@cache
def client() -> redis.Redis:
    """The one client of all threads. It answers or raises an error within a second."""
    # One connection for each thread; beyond 100, redis-py by itself raises an error.
    return redis_client.create_client(socket_timeout=1, max_connections=10_000)


def get_item_by_id(item_id: int | str) -> dict | None:
    """Return the product with this id, None if there is none. Twin of `getItemById`."""
    matches = (item for item in list_products if str(item["itemId"]) == str(item_id))
    return next(matches, None)


def reserve_stock_by_id(item_id: int, stock: int, connection=None) -> None:
    """Set the number of reserved units. Twin of `reserveStockById`."""
    (connection or client()).set(f"item.{item_id}", stock)


def get_current_reserved_stock_by_id(item_id: int, connection=None) -> int:
    """Return the number of reserved units. Twin of `getCurrentReservedStockById`."""
    return int((connection or client()).get(f"item.{item_id}") or 0)


def reserve_one(item: dict) -> bool:
    """Reserve a unit of `item`, once and for one client; return False when sold out."""
    item_id, quantity = item["itemId"], item["initialAvailableQuantity"]
    if get_current_reserved_stock_by_id(item_id) >= quantity:
        return False  # saves the transaction, which asks Redis three times

    def reserve(pipe: redis.client.Pipeline) -> bool:
        reserved = get_current_reserved_stock_by_id(item_id, pipe)
        if reserved >= quantity:
            return False
        pipe.multi()  # from here on commands are collected
        reserve_stock_by_id(item_id, reserved + 1, pipe)
        try:
            pipe.execute()  # refused if another client has written since the reading
        except redis.WatchError as error:
            # redis-py turns a broken connection into a WatchError too. Redis may have
            # executed then, so this is no case for another try.
            if isinstance(error.__context__, redis.RedisError):
                raise error.__context__ from None
            raise
        return True

    # transaction() watches the key, and begins again after a WatchError.
    key = f"item.{item_id}"
    return client().transaction(reserve, key, value_from_callable=True)


def respond(path: str) -> tuple[HTTPStatus, dict | list]:
    """Return status and body of the answer to a GET request. Twin of the routes."""
    match path.split("/"):
        case ["", "list_products"]:
            return HTTPStatus.OK, list_products
        case ["", "list_products" | "reserve_product" as route, item_id]:
            item = get_item_by_id(item_id)
            if not item:
                return HTTPStatus.NOT_FOUND, {"status": "Product not found"}
            if route == "list_products":
                reserved = get_current_reserved_stock_by_id(item["itemId"])
                left = item["initialAvailableQuantity"] - reserved
                return HTTPStatus.OK, item | {"currentQuantity": left}
            status = "Not enough stock available"
            if reserve_one(item):
                status = "Reservation confirmed"
            return HTTPStatus.OK, {"status": status, "itemId": item["itemId"]}
        case _:
            return HTTPStatus.NOT_FOUND, {"status": "Not found"}


def app(environ: dict, start_response: Callable) -> list[bytes]:
    """Answer a request, in JSON whatever happens. WSGI servers call this."""
    method, headers = environ["REQUEST_METHOD"], [("Content-Type", JSON)]
    try:
        if method in ("GET", "HEAD"):
            status, body = respond(environ["PATH_INFO"])
        else:
            status = HTTPStatus.METHOD_NOT_ALLOWED
            body = {"status": "Method not allowed"}
            headers.append(("Allow", "GET, HEAD"))
    except redis.RedisError as error:
        logger.warning("Stock is not available: %s", error)
        status = HTTPStatus.SERVICE_UNAVAILABLE
        body = {"status": "Stock is not available right now"}
    except Exception:
        logger.exception("Unforeseen error")
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        body = {"status": "Internal server error"}
    content = json.dumps(body, separators=(",", ":")).encode()
    headers.append(("Content-Length", str(len(content))))
    start_response(f"{status.value} {status.phrase}", headers)
    return [] if method == "HEAD" else [content]


# The exercise ends here. What follows serves `app` without a WSGI server's package.


class RequestHandler(WSGIRequestHandler):
    """Answers malformed requests in JSON as well, and logs no others."""

    timeout = 1  # second until an idle connection is dropped; a stop waits as long
    default_request_version = "HTTP/1.0"  # HTTP/0.9 has no status line
    error_content_type = JSON
    error_message_format = '{"status":"%(explain)s"}'

    def log_request(self, *args) -> None:
        pass


class Server(ThreadingMixIn, WSGIServer):
    """The standard library's WSGI server, with a thread for each connection."""

    request_queue_size = 128  # connections that may wait to be accepted

    def handle_error(self, request, client_address) -> None:
        # Of a client that is idle or gone there is nothing to tell.
        if not isinstance(sys.exc_info()[1], (TimeoutError, ConnectionError)):
            super().handle_error(request, client_address)


def main() -> None:
    """Serve on the loopback address until stopped, then finish the answers in hand."""
    redis_client.connect()
    port = os.environ.get("PORT", "1245")
    try:
        server = Server(("127.0.0.1", int(port)), RequestHandler)
    except (OSError, ValueError, OverflowError) as error:
        sys.exit(f"Can't listen on port {port}: {error}")
    server.set_app(app)
    stop_signals = signal.SIGINT, signal.SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # in all threads
    with server:
        print(f"API available on localhost port {server.server_port}", flush=True)
        Thread(target=server.serve_forever).start()
        signal.sigwait(stop_signals)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals)  # the next one kills
        server.shutdown()


if __name__ == "__main__":
    main()
