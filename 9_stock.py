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
    items = {str(item["itemId"]): item for item in list_products}  # URLs are text
    return items.get(str(item_id))


def reserve_stock_by_id(item_id: int, stock: int, connection=client) -> None:
    """Set the number of reserved units. Twin of `reserveStockById`."""
    connection.set(f"item.{item_id}", stock)


def get_current_reserved_stock_by_id(item_id: int, connection=client) -> int:
    """Return the number of reserved units. Twin of `getCurrentReservedStockById`."""
    return int(connection.get(f"item.{item_id}") or 0)  # bytes, or None for no key


def show_product(item: dict) -> dict:
    """Return what `/list_products/:itemId` answers."""
    reserved = get_current_reserved_stock_by_id(item["itemId"])
    return item | {"currentQuantity": item["initialAvailableQuantity"] - reserved}


def reserve_product(item: dict) -> dict:
    """Reserve a unit, and return what `/reserve_product/:itemId` answers."""
    # `reserve_one` alone would be right, too. If it is sold out, this saves a transaction.
    reserved = get_current_reserved_stock_by_id(item["itemId"])
    if reserved < item["initialAvailableQuantity"] and reserve_one(item):
        return {"status": "Reservation confirmed", "itemId": item["itemId"]}
    return {"status": "Not enough stock available", "itemId": item["itemId"]}


def reserve_one(item: dict) -> bool:
    """Reserve a unit of `item` that no other client gets. Return False if sold out."""

    # `transaction` WATCHes the key, and returns what this returns. If the key changes, it calls again.
    def book(pipe) -> bool:
        reserved = get_current_reserved_stock_by_id(item["itemId"], pipe)
        if reserved >= item["initialAvailableQuantity"]:
            return False
        pipe.multi()  # until here, commands were sent; now they are collected
        reserve_stock_by_id(item["itemId"], reserved + 1, pipe)
        return True

    return client.transaction(book, f"item.{item['itemId']}", value_from_callable=True)


def respond(path: str) -> tuple[str, dict | list]:
    """Return status and body of the answer to a GET request. Twin of `app.get(…)`."""
    match path.removesuffix("/").split("/"):  # "/a/1" becomes ["", "a", "1"]
        case ["", "list_products"]:
            return "200 OK", list_products
        case ["", "list_products" | "reserve_product" as route, item_id]:  # one of two
            item = get_item_by_id(item_id)
            if item is None:
                return "404 Not Found", {"status": "Product not found"}
            if route == "list_products":
                return "200 OK", show_product(item)
            return "200 OK", reserve_product(item)
    return "404 Not Found", {"status": "Not found"}


def main() -> None:
    """Serve `app`, which calls `respond`, until stopped. Twin of `app.listen`."""
    client.ping()
    with open_server(os.environ.get("PORT", "1245")) as server:
        print(f"API available on localhost port {server.server_port}")
        server.serve_forever()


# The exercise ends here. This would do for it:
#
#     def app(environ, start_response):
#         status, body = respond(environ["PATH_INFO"])
#         start_response(status, [("Content-Type", "application/json; charset=utf-8")])
#         return [json.dumps(body).encode()]
#
#     wsgiref.simple_server.make_server("localhost", 1245, app).serve_forever()
#
# The rest is for a second reading. It does what Node's `http` does for Express, and Python's
# servers don't: it answers after an error, keeps connections open between requests, copes with
# clients that leave, stall or send much, and finishes its answers when it is stopped.

logger = redis_client.logger

JSON = "application/json; charset=utf-8"
JSON_ENCODER = json.JSONEncoder(separators=(",", ":"))
# Seconds that a connection may be silent before it is closed.
IDLE_TIMEOUT = 5
# Seconds that a client may take to receive an answer.
SEND_TIMEOUT = 1
# Seconds for reading what a client still sends, before its connection is closed.
CLOSE_TIMEOUT = 1
# Bytes that the first line of a request may have.
LINE_LIMIT = 65536


def app(environ: dict, start_response: Callable) -> list[bytes]:
    """Answer a request, always in JSON. A WSGI server calls this for each request."""
    status, content = answer(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
    headers = [("Content-Type", JSON), ("Content-Length", str(len(content)))]
    if status.startswith("405"):
        headers.append(("Allow", "GET, HEAD"))
    start_response(status, headers)
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    return [content]


def answer(method: str, path: str) -> tuple[str, bytes]:
    """Return the status and the body of an answer, also after an error."""
    if method not in ("GET", "HEAD"):
        return "405 Method Not Allowed", to_json({"status": "Method not allowed"})
    try:
        status, body = respond(path)
        return status, to_json(body)
    except redis_client.AWAY + redis_client.REFUSED as error:
        logger.warning("Stock is not available: %s", error)
        body = {"status": "Stock is not available right now"}
        return "503 Service Unavailable", to_json(body)
    except Exception:
        logger.exception("Unforeseen error")
        body = {"status": "Internal server error"}
        return "500 Internal Server Error", to_json(body)


def to_json(body: dict | list) -> bytes:
    """Return `body` as JSON without spaces, as Express writes it."""
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
    """The standard library's WSGI server, with a thread for each connection.

    In `socketserver`, on which it is built, the socket of a connection is called `request`.

    A stop:

    1. Ctrl-C or SIGTERM calls `request_stop`, and `shutdown` lets `serve_forever` return.
    2. At the end of the `with` block in `main`, `server_close` ends the reading of all
       connections, and waits for their threads.
    3. Each thread finishes its answer, and calls `shutdown_request`.
    """

    # How many new connections may wait to be accepted. If there are more at once, their
    # clients try again after a second.
    request_queue_size = 1024

    def __init__(self, *args):
        # Several threads change this. `add` and `discard` are single steps, and need no lock.
        self.connections: set[socket.socket] = set()
        self.is_stopping = False
        super().__init__(*args)

    def request_stop(self, signum, frame) -> None:
        """Call `shutdown`. This is the handler for Ctrl-C and SIGTERM.

        `shutdown` waits until `serve_forever` has returned. The main thread is inside of
        `serve_forever`, also while it runs this handler, so another thread must wait.
        """
        Thread(target=self.shutdown).start()

    def process_request(self, request: socket.socket, client_address) -> None:
        """Start a thread for a new connection. `serve_forever` calls this."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        """Close a connection. Its thread calls this at the end.

        A connection that is closed with unread data is reset, and the client may lose the
        answer. So what the client still sends is read first.
        """
        try:
            # Tell the client that no more will be sent.
            request.shutdown(socket.SHUT_WR)
            read_the_rest(request)
        except OSError:
            # The client has left, or has sent nothing more.
            pass
        finally:
            self.connections.discard(request)
            self.close_request(request)

    def server_close(self) -> None:
        """Stop listening, and end all connections."""
        self.is_stopping = True
        # A thread that waits for a request gets the end of the connection at once.
        for connection in self.connections.copy():
            try:
                connection.shutdown(socket.SHUT_RD)
            except OSError:
                # The client has left.
                pass
        # This waits for the threads.
        super().server_close()


def read_the_rest(connection: socket.socket) -> None:
    """Read what a client still sends, for CLOSE_TIMEOUT seconds at most."""
    end = time.monotonic() + CLOSE_TIMEOUT
    time_left = CLOSE_TIMEOUT
    while time_left > 0:
        connection.settimeout(time_left)
        data = connection.recv(65536)
        if not data:
            return
        time_left = end - time.monotonic()


class WholeLines(io.BufferedReader):
    """A reader for which the end of the connection is not the end of a line, but an error.

    If a client leaves in the middle of a line, Python's own reader returns the half line, and
    `http.server` would answer it like a whole request. The normal end of a connection, between
    two requests, is an error here, too.
    """

    def readline(self, size: int = -1) -> bytes:
        """Return a line with its end, or the first `size` bytes of a longer line.

        Raises ConnectionError if the client has left before the end of the line.
        """
        line = super().readline(size)
        is_whole = line.endswith(b"\n")
        is_cut = len(line) == size
        if not is_whole and not is_cut:
            # `handle` catches it.
            raise ConnectionError("The client has left")
        return line


class RequestHandler(WSGIRequestHandler):
    """Answers the requests of a connection, one after the other.

    `Server` starts a thread for each connection, which calls these in order:

        setup
        handle
            handle_one_request              for each request:
                parse_request               reads the head of the request
                AnswerHandler.run           calls `app`
                    start_response          called by `app`
                send                        sends the answer
    """

    # Keep connections open.
    protocol_version = "HTTP/1.1"
    # For a request without a version. HTTP/0.9, the default, has no status line.
    default_request_version = "HTTP/1.0"
    # For the socket, in seconds.
    timeout = IDLE_TIMEOUT
    # No buffer for `rfile`, from which requests are read: `WholeLines` has its own.
    rbufsize = 0
    # The answer to a malformed request, into which `http.server` puts an explanation.
    error_content_type = JSON
    error_message_format = '{"status":"%(explain)s"}'

    def setup(self) -> None:
        """Let `rfile` return whole lines only, so that half a request is an error."""
        super().setup()
        self.rfile = WholeLines(self.rfile)

    def handle(self) -> None:
        """Answer requests until the connection ends. wsgiref would answer only one."""
        self.close_connection = False
        try:
            while not self.close_connection and not self.server.is_stopping:
                self.handle_one_request()
        except OSError:
            # The connection has ended, or was silent for too long.
            pass

    def handle_one_request(self) -> None:
        """Read a request, call `app`, and send the answer."""
        self.raw_requestline = self.rfile.readline(LINE_LIMIT + 1)
        if len(self.raw_requestline) > LINE_LIMIT:
            self.refuse_long_line()
            return
        if not self.parse_request():
            # An error has been sent, or the line was empty.
            return
        # If the client leaves during the answer, wsgiref logs that as an error of `app`. So
        # collect the answer here, and send it below.
        content = io.BytesIO()
        # Its arguments are the input, the output, the log of errors, and the WSGI environment.
        handler = AnswerHandler(
            self.rfile, content, self.get_stderr(), self.get_environ()
        )
        # wsgiref needs this to log requests. `AnswerHandler` needs it, too.
        handler.request_handler = self
        handler.run(self.server.get_app())
        self.send(content.getvalue())

    def send(self, content: bytes) -> None:
        """Send an answer. Raises OSError if the client does not receive all of it in time."""
        self.connection.settimeout(SEND_TIMEOUT)
        self.connection.sendall(content)
        self.connection.settimeout(IDLE_TIMEOUT)

    def handle_expect_100(self) -> bool:
        """Don't ask for the body. With `Expect: 100-continue`, a client waits to be asked."""
        return True

    def refuse_long_line(self) -> None:
        """Answer a request whose first line is too long."""
        # `send_error` reads these, and `parse_request` has not set them.
        self.requestline = ""
        self.request_version = ""
        self.command = ""
        self.send_error(414)
        self.close_connection = True

    def parse_request(self) -> bool:
        """Read the head of a request. Decide whether its answer is the last one.

        `http.server` understands `Connection: close`, but not `Connection: TE, close`.
        """
        if not super().parse_request():
            self.close_connection = True
            return False
        if self.request_version != "HTTP/1.1" or self.wants_close() or self.has_body():
            self.close_connection = True
        return True

    def wants_close(self) -> bool:
        """Return whether `close` is one of the words of the `Connection` headers."""
        words = ",".join(self.headers.get_all("Connection", [])).lower().split(",")
        return "close" in [word.strip() for word in words]

    def has_body(self) -> bool:
        """Return whether a body may follow, which nobody reads here.

        If the connection went on, the body would be taken for the next request. Attackers hide
        requests in that way from a proxy. For example, "Content-Length : 9" has a space before its
        colon: the proxy may take it for a header, and this server does not. So any sign of a body
        counts: in doubt, the client has to connect again.
        """
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            return True
        # Python reads headers as those of a mail. At a line that it can't parse, such as
        # "Content-Length : 9", it takes the rest of them for the text of the mail.
        if self.headers.defects or self.headers.get_payload():
            return True
        # In an old form, a header may go on in the next line, after a space. Python keeps the
        # line break in its value. A proxy may take the line for a header of its own.
        return "\n" in "".join(self.headers.values())

    def log_message(self, *args) -> None:
        """Don't log requests."""


class AnswerHandler(ServerHandler):
    """Calls `app` for one request. Adds `Connection: close` to the last answer."""

    # The version in the answer.
    http_version = "1.1"
    # Send no `Server` header.
    server_software = None

    def start_response(self, *args) -> Callable:
        """Begin an answer. `app` calls this. It need not use the function that is returned."""
        write = super().start_response(*args)
        if self.request_handler.close_connection:
            self.headers["Connection"] = "close"
        return write


if __name__ == "__main__":
    redis_client.run(main)
