"""Task 12: is it in stock? The twin of 9-stock.js, as a WSGI application, `app`."""

import importlib
import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from socketserver import ThreadingMixIn
from threading import Thread
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

redis_client = importlib.import_module("0_redis_client")
client = redis_client.create_client(**redis_client.ANSWER_AT_ONCE)

list_products = [
    {"itemId": 1, "itemName": "Suitcase 250", "price": 50, "initialAvailableQuantity": 4},
    {"itemId": 2, "itemName": "Suitcase 450", "price": 100, "initialAvailableQuantity": 10},
    {"itemId": 3, "itemName": "Suitcase 650", "price": 350, "initialAvailableQuantity": 2},
    {"itemId": 4, "itemName": "Suitcase 1050", "price": 550, "initialAvailableQuantity": 5},
]  # fmt: skip


def get_item_by_id(item_id: int | str) -> dict | None:
    """Return the product with this id, None if there is none. Twin of `getItemById`."""
    items = {str(item["itemId"]): item for item in list_products}
    return items.get(str(item_id))


def reserve_stock_by_id(item_id: int, stock: int, connection=client) -> None:
    """Set the number of reserved units. Twin of `reserveStockById`."""
    connection.set(f"item.{item_id}", stock)


def get_current_reserved_stock_by_id(item_id: int, connection=client) -> int:
    """Return the number of reserved units. Twin of `getCurrentReservedStockById`."""
    return int(connection.get(f"item.{item_id}") or 0)


def show_product(item: dict) -> dict:
    """Return what `/list_products/:itemId` answers."""
    reserved = get_current_reserved_stock_by_id(item["itemId"])
    return item | {"currentQuantity": item["initialAvailableQuantity"] - reserved}


def reserve_product(item: dict) -> dict:
    """Reserve a unit, and return what `/reserve_product/:itemId` answers."""
    # When it is sold out, this look spares a transaction.
    reserved = get_current_reserved_stock_by_id(item["itemId"])
    if reserved < item["initialAvailableQuantity"] and reserve_one(item):
        return {"status": "Reservation confirmed", "itemId": item["itemId"]}
    return {"status": "Not enough stock available", "itemId": item["itemId"]}


def reserve_one(item: dict) -> bool:
    """Reserve a unit of `item`, for one client alone; return False when sold out."""

    def book(pipe) -> bool:
        reserved = get_current_reserved_stock_by_id(item["itemId"], pipe)
        if reserved >= item["initialAvailableQuantity"]:
            return False
        pipe.multi()  # until here, commands are answered; from here on, they wait
        reserve_stock_by_id(item["itemId"], reserved + 1, pipe)
        return True

    # Calls `book` again if another client has changed the key since it was read.
    return client.transaction(book, f"item.{item['itemId']}", value_from_callable=True)


def respond(path: str) -> tuple[str, dict | list]:
    """Return status and body of the answer to a GET request. Twin of `app.get(…)`."""
    match path.removesuffix("/").split("/"):
        case ["", "list_products"]:
            return "200 OK", list_products
        case ["", ("list_products" | "reserve_product") as route, item_id]:
            item = get_item_by_id(item_id)
            if item is None:
                return "404 Not Found", {"status": "Product not found"}
            if route == "list_products":
                return "200 OK", show_product(item)
            return "200 OK", reserve_product(item)
    return "404 Not Found", {"status": "Not found"}


def main() -> None:
    """Serve `app` until stopped. Twin of `app.listen`."""
    client.ping()
    with open_server(os.environ.get("PORT", "1245")) as server:
        print(f"API available on localhost port {server.server_port}")
        server.serve_forever()


# The exercise ends here. `make_server` of wsgiref would do for it, with an `app` of five
# lines. What follows also makes an answer of every error, keeps connections open between
# requests, bears with clients that leave, stall or send much, and finishes what it answers.

logger = redis_client.logger

JSON = "application/json; charset=utf-8"
JSON_ENCODER = json.JSONEncoder(separators=(",", ":"))
IDLE_TIMEOUT = 5  # seconds until a connection without a request is dropped
SEND_TIMEOUT = 1  # second in which a client must take an answer
LINE_LIMIT = 65536  # bytes of the first line of a request
CLOSE_TIMEOUT = 1  # second in which the rest of a request is read before the end


def app(environ: dict, start_response: Callable) -> list[bytes]:
    """Answer a request, in JSON whatever happens. Any WSGI server can call this."""
    status, content = answer(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
    headers = [("Content-Type", JSON), ("Content-Length", str(len(content)))]
    if status.startswith("405"):
        headers.append(("Allow", "GET, HEAD"))
    start_response(status, headers)
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    return [content]


def answer(method: str, path: str) -> tuple[str, bytes]:
    """Return status and body of the answer to any request, and to any error."""
    if method not in ("GET", "HEAD"):
        return "405 Method Not Allowed", to_json({"status": "Method not allowed"})
    try:
        status, body = respond(path)
        return status, to_json(body)
    except (*redis_client.AWAY, redis_client.REFUSED) as error:
        logger.warning("Stock is not available: %s", error)
        body = {"status": "Stock is not available right now"}
        return "503 Service Unavailable", to_json(body)
    except Exception:
        logger.exception("Unforeseen error")
        body = {"status": "Internal server error"}
        return "500 Internal Server Error", to_json(body)


def to_json(body: dict | list) -> bytes:
    """Return a body as Express writes it, without spaces."""
    return JSON_ENCODER.encode(body).encode()


def open_server(port: str) -> "Server":
    """Return a server of `app` that listens on a port of the loopback address."""
    try:
        server = Server(("127.0.0.1", int(port)), RequestHandler)
    except (OSError, ValueError, OverflowError) as error:
        raise SystemExit(f"Can't listen on port {port}: {error}") from None
    server.set_app(app)
    signal.signal(signal.SIGINT, server.request_stop)
    signal.signal(signal.SIGTERM, server.request_stop)
    return server


class Server(ThreadingMixIn, WSGIServer):
    """The standard library's WSGI server, with a thread for each connection."""

    # Room for clients that come at once: with less, some would wait for a second.
    request_queue_size = 1024

    def __init__(self, *args):
        self.connections: set[socket.socket] = set()
        self.is_stopping = False
        super().__init__(*args)

    def request_stop(self, signum, frame) -> None:
        """Stop serving. `shutdown` waits for that, so it needs a thread of its own."""
        Thread(target=self.shutdown).start()

    def process_request(self, request: socket.socket, client_address) -> None:
        """Answer a connection in a thread of its own."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        """Close a connection, once the client has had the time to read the answer."""
        try:
            request.shutdown(socket.SHUT_WR)
            read_the_rest(request)
        except OSError:
            # The client has left.
            pass
        self.connections.discard(request)
        self.close_request(request)

    def server_close(self) -> None:
        """Stop listening, and reading. `ThreadingMixIn` waits for the answers in hand."""
        self.is_stopping = True
        # This ends the reading of the threads that wait for a request.
        for connection in self.connections.copy():
            try:
                connection.shutdown(socket.SHUT_RD)
            except OSError:
                # The client has left.
                pass
        super().server_close()


def read_the_rest(connection: socket.socket) -> None:
    """Read what a client still sends, for a while.

    A close before that would reset the connection, and the answer could get lost.
    """
    connection.settimeout(CLOSE_TIMEOUT)
    end = time.monotonic() + CLOSE_TIMEOUT
    while time.monotonic() < end:
        data = connection.recv(65536)
        if not data:
            return


class RequestHandler(WSGIRequestHandler):
    """Answers the requests of a connection, one after the other."""

    protocol_version = "HTTP/1.1"
    # A request line without a version, too, gets an answer with a status line.
    default_request_version = "HTTP/1.0"
    timeout = IDLE_TIMEOUT
    # No buffer for `rfile`, what the client sends: the reader below has its own.
    rbufsize = 0
    error_content_type = JSON
    error_message_format = '{"status":"%(explain)s"}'

    def setup(self) -> None:
        """Read whole lines only. Where a client has left in the middle is an error."""
        super().setup()
        self.rfile = WholeLines(self.rfile)

    def handle(self) -> None:
        """Answer until the connection ends; wsgiref's own ends it after one answer."""
        self.close_connection = False
        try:
            while not self.close_connection and not self.server.is_stopping:
                self.handle_one_request()
        except OSError:
            # The client has left, or was silent for too long.
            pass

    def handle_one_request(self) -> None:
        """Read a request, and send the answer of `app` to it."""
        self.raw_requestline = self.rfile.readline(LINE_LIMIT + 1)
        if len(self.raw_requestline) > LINE_LIMIT:
            self.refuse_long_line()
            return
        if not self.parse_request():
            # An error has been sent, or the line was empty.
            return
        # If sending failed, wsgiref would report it as an error of `app`. So the answer is
        # collected here, and then sent.
        content = io.BytesIO()
        handler = AnswerHandler(
            self.rfile, content, self.get_stderr(), self.get_environ()
        )
        handler.request_handler = self
        handler.run(self.server.get_app())
        self.send(content.getvalue())

    def send(self, content: bytes) -> None:
        """Send an answer in one piece. Raises OSError when the client does not take it."""
        self.connection.settimeout(SEND_TIMEOUT)
        self.connection.sendall(content)
        self.connection.settimeout(IDLE_TIMEOUT)

    def handle_expect_100(self) -> bool:
        """Leave `Expect: 100-continue` unanswered: no body is needed."""
        return True

    def refuse_long_line(self) -> None:
        """Answer a request whose first line has no end."""
        # `send_error` reads these.
        self.requestline = ""
        self.request_version = ""
        self.command = ""
        self.send_error(414)
        self.close_connection = True

    def parse_request(self) -> bool:
        """Read the head of a request; decide whether another may follow the answer."""
        if not super().parse_request():
            self.close_connection = True
            return False
        if self.request_version != "HTTP/1.1" or self.wants_close() or self.has_body():
            self.close_connection = True
        return True

    def wants_close(self) -> bool:
        """Tell whether the client asks for the end of the connection, among other words."""
        words = ",".join(self.headers.get_all("Connection", [])).lower().split(",")
        return "close" in [word.strip() for word in words]

    def has_body(self) -> bool:
        """Tell whether a body may follow. A request hidden in it must not be answered."""
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            return True
        # Python's parser could not read a line, which may have been one of these two.
        if self.headers.defects or self.headers.get_payload():
            return True
        # A header goes on in a second line, which may be one of them.
        return "\n" in "".join(self.headers.values())

    def log_message(self, *args) -> None:
        """Log no requests."""


class AnswerHandler(ServerHandler):
    """Calls the application for one request; adds `Connection: close` to the last answer."""

    http_version = "1.1"
    # It need not say which server it is.
    server_software = None

    def start_response(self, *args) -> Callable:
        """Begin the answer; say that the connection ends, if it does."""
        write = super().start_response(*args)
        if self.request_handler.close_connection:
            self.headers["Connection"] = "close"
        return write


class WholeLines(io.BufferedReader):
    """A reader for which the end of the connection is not the end of a line.

    Or half a request of a client that has left would be taken for a whole one.
    """

    def readline(self, size: int = -1) -> bytes:
        """Return a line, with its end, or the first `size` bytes of a longer one."""
        line = super().readline(size)
        if not line.endswith(b"\n") and len(line) != size:
            raise ConnectionError("The client has left in the middle of a request")
        return line


if __name__ == "__main__":
    redis_client.run(main)
