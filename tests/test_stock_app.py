"""The WSGI application of 9_stock.py alone: no server, no sockets."""

import json
from contextlib import closing
from email.message import Message
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import fakeredis
import pytest
import redis
from conftest import free_port
from stock_service import (
    ALL,
    AWAY,
    NO_PRODUCT,
    NOT_ALLOWED,
    NOT_FOUND,
    QUANTITIES,
    TABLE,
    Answer,
    check,
    confirmed,
    left,
    sold_out,
    stock,
)


@pytest.fixture
def fake(monkeypatch) -> fakeredis.FakeRedis:
    """An empty fakeredis that the application uses."""
    client = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    monkeypatch.setattr(stock.client, "connection_pool", client.connection_pool)
    return client


def call(method: str, path: str) -> Answer:
    """Call the application as a strict WSGI server does."""
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SCRIPT_NAME": "",
    }
    setup_testing_defaults(environ)
    head = {}

    def start_response(status, headers, exc_info=None):
        head.update(status=status, headers=headers)
        return lambda data: None

    with closing(validator(stock.app)(environ, start_response)) as parts:
        body = b"".join(parts).decode()
    headers = Message()
    for name, value in head["headers"]:
        headers[name] = value
    return Answer(int(head["status"].split()[0]), headers, body)


def test_every_answer_of_the_table_to_the_byte(fake):
    for method, path, status, body in TABLE:
        answer = check(call(method, path))
        assert (path, answer.status, answer.body) == (path, status, body)


def test_a_trailing_slash_makes_no_difference(fake):
    for method, path, status, body in TABLE:
        answer = check(call(method, path + "/"))
        assert (path, answer.status, answer.body) == (path, status, body)


@pytest.mark.parametrize(("item_id", "quantity"), QUANTITIES.items())
def test_a_product_gives_as_many_confirmations_as_it_has_units(fake, item_id, quantity):
    bodies = [call("GET", f"/reserve_product/{item_id}").body for _ in range(12)]
    assert bodies[:quantity] == [confirmed(item_id)] * quantity
    assert bodies[quantity:] == [sold_out(item_id)] * (12 - quantity)
    assert fake.get(f"item.{item_id}") == str(quantity).encode()
    assert fake.keys() == [f"item.{item_id}".encode()]


def test_a_lost_race_is_tried_again(fake, monkeypatch):
    read = stock.get_current_reserved_stock_by_id

    def read_and_lose_once(item_id, *connection):
        reserved = read(item_id, *connection)
        if connection and not reserved:
            fake.set("item.1", 1)
        return reserved

    monkeypatch.setattr(stock, "get_current_reserved_stock_by_id", read_and_lose_once)
    assert stock.reserve_one(stock.get_item_by_id(1))
    assert fake.get("item.1") == b"2"


@pytest.mark.parametrize("when", ["first look", "read in the transaction"])
def test_sold_out_just_after_a_read_is_noticed(fake, monkeypatch, when):
    read = stock.get_current_reserved_stock_by_id

    def read_and_sell_out(item_id, *connection):
        reserved = read(item_id, *connection)
        now = "read in the transaction" if connection else "first look"
        if now == when and not reserved:
            fake.set("item.1", 4)
        return reserved

    monkeypatch.setattr(stock, "get_current_reserved_stock_by_id", read_and_sell_out)
    assert call("GET", "/reserve_product/1").body == sold_out(1)
    assert fake.get("item.1") == b"4"


def test_reservations_of_another_service_on_the_same_redis_count(fake):
    fake.set("item.1", "3")  # as the JavaScript twin writes it
    assert call("GET", "/list_products/1").body == left(1, 1)
    assert call("GET", "/reserve_product/1").body == confirmed(1)
    assert call("GET", "/reserve_product/1").body == sold_out(1)


def test_more_reservations_than_units_are_no_error(fake):
    fake.set("item.1", "5")  # the JavaScript twin oversells
    assert call("GET", "/list_products/1").body == left(1, -1)
    assert call("GET", "/reserve_product/1").body == sold_out(1)


def test_head_is_get_without_the_body(fake):
    fake.mset({"item.1": 4, "item.3": 1})  # so that no request changes the next one
    for path in dict.fromkeys(path for _, path, _, _ in TABLE if "serve" not in path):
        get, head = call("GET", path), call("HEAD", path)
        assert (head.status, head.body) == (get.status, "")
        assert head.headers.items() == get.headers.items()


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get"]
)
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")  # of the validator
def test_another_method_is_405_and_names_those_allowed(fake, method):
    for path in "/list_products", "/reserve_product/1", "/nowhere":
        answer = check(call(method, path))
        assert (answer.status, answer.body) == (405, NOT_ALLOWED)
        assert answer.headers["Allow"] == "GET, HEAD"
    assert not fake.exists("item.1")


@pytest.mark.parametrize("route", ["list_products", "reserve_product"])
@pytest.mark.parametrize(
    "item_id",
    ["0", "5", "-1", "+1", "1.0", "01", "1e0", "1 ", " 1", "1_0", "True", "9" * 5000]
    # Other digits than ASCII's, as WSGI spells them: each byte of UTF-8 a character.
    + [digit.encode().decode("latin-1") for digit in "١１¹①"],
)
def test_only_an_id_as_the_list_spells_it_is_a_product(fake, route, item_id):
    answer = check(call("GET", f"/{route}/{item_id}"))
    assert (answer.status, answer.body) == (404, NO_PRODUCT)
    assert not fake.keys()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/list_product",
        "/List_Products",
        "/reserve_product",
        "/reserve_product/",
        "/list_products/1/2",
        "/list_products/1//",
        "/../list_products",
        "/\xff",
        "/\0",
        "/api/list_products/1",
    ],
)
def test_another_path_is_404(fake, path):
    answer = check(call("GET", path))
    assert (answer.status, answer.body) == (404, NOT_FOUND)


def test_a_server_may_leave_out_an_empty_path(fake):
    assert stock.app({"REQUEST_METHOD": "GET"}, print) == [NOT_FOUND.encode()]


def test_an_unforeseen_error_is_500_and_logged_with_its_traceback(fake, caplog):
    fake.set("item.1", "three")
    for path in "/list_products/1", "/reserve_product/1":
        answer = check(call("GET", path))
        assert (answer.status, answer.body) == (
            500,
            '{"status":"Internal server error"}',
        )
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, ValueError]


def test_a_body_that_json_does_not_know_is_500(fake, monkeypatch, caplog):
    monkeypatch.setattr(stock, "show_product", lambda item: {"currentQuantity": b"1"})
    answer = check(call("GET", "/list_products/1"))
    assert (answer.status, answer.body) == (500, '{"status":"Internal server error"}')
    assert [record.exc_info[0] for record in caplog.records] == [TypeError]


def test_without_redis_stock_is_503_and_the_list_is_not(monkeypatch, caplog):
    client = redis.Redis(port=free_port(), retry=None)
    monkeypatch.setattr(stock.client, "connection_pool", client.connection_pool)
    for path in "/list_products/1", "/reserve_product/1":
        answer = check(call("GET", path))
        assert (answer.status, answer.body) == (503, AWAY)
    for path, status in ("/list_products", 200), ("/reserve_product/12", 404):
        assert check(call("GET", path)).status == status
    assert [record.exc_info for record in caplog.records] == [None, None]


def test_list_products_holds_the_products():
    assert json.dumps(stock.list_products, separators=(",", ":")) == ALL


def test_get_item_by_id_finds_a_product_or_none():
    for product in stock.list_products:
        assert stock.get_item_by_id(product["itemId"]) is product
        assert stock.get_item_by_id(str(product["itemId"])) is product
    assert stock.get_item_by_id(12) is None


def test_reserve_stock_by_id_sets_the_number_of_reserved_units(fake):
    stock.reserve_stock_by_id(1, 3)
    assert fake.get("item.1") == b"3"
    stock.reserve_stock_by_id(1, 2)
    assert fake.get("item.1") == b"2"


def test_get_current_reserved_stock_by_id_is_0_when_there_is_none(fake):
    assert stock.get_current_reserved_stock_by_id(1) == 0
    fake.set("item.1", 3)
    assert stock.get_current_reserved_stock_by_id(1) == 3
    assert stock.get_current_reserved_stock_by_id(2) == 0
