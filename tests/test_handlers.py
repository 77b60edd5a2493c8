"""Requests of a site's own."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from pydantic import BaseModel, ConfigDict, Field

from realtime import Caller, RequestRefused, Topic, request_handler
from realtime.consumers import RealtimeConsumer
from realtime.handlers import handlers
from realtime.hub import get_hub
from realtime.protocol import parse, remove_request

from .memory import clean_process, connected  # noqa: F401

ONE = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


class PriceRequest(BaseModel):
    item: int
    currency: str = "EUR"
    voucher: UUID | None = None


class Price(BaseModel):
    amount: Decimal
    per_item: str = Field(alias="perItem", default="piece")


@pytest.fixture(autouse=True)
def no_handlers_left() -> Any:
    before = set(handlers)
    yield
    for kind in set(handlers) - before:
        del handlers[kind]
        remove_request(kind)


def declare(function: Any = None, **options: Any) -> None:
    def price(request: PriceRequest, caller: Caller) -> Price:
        return Price(amount=Decimal(request.item))

    request_handler("price_request", **{"public": True, **options})(function or price)


def application_for(user: Any) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await RealtimeConsumer.as_asgi()({**scope, "user": user}, receive, send)

    return application


async def test_request_is_answered_in_the_same_envelope() -> None:
    declare()
    async with connected() as client:
        assert await client.ask(type="price_request", reqId="1", item=42) == {
            "type": "price_response",
            "reqId": "1",
            "status": "OK",
            "data": {"amount": "42", "perItem": "piece"},
        }
        assert "reqId" not in await client.ask(type="price_request", item=42)
        await client.assert_nothing_waits()


async def test_handler_may_be_asynchronous_and_answer_anything() -> None:
    async def total(request: PriceRequest, caller: Caller) -> list[int] | None:
        return [request.item] if request.item else None

    declare(total)
    async with connected() as client:
        assert (await client.ask(type="price_request", item=1))["data"] == [1]
        assert (await client.ask(type="price_request", item=0))["data"] is None


async def test_handler_runs_on_a_thread_of_realtime() -> None:
    def name(request: PriceRequest, caller: Caller) -> str:
        return threading.current_thread().name

    declare(name)
    async with connected() as client:
        assert (await client.ask(type="price_request", item=1))["data"].startswith("realtime-")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "field 'item': field required"),
        ({"item": "42"}, "field 'item': input should be a valid integer"),
        ({"item": 1, "currency": None}, "field 'currency': input should be a valid string"),
        ({"item": 1, "voucher": "x"}, "field 'voucher': input should be a valid uuid"),
    ],
)
async def test_request_that_does_not_fit_the_model_is_a_bad_request(fields: Any, problem: str) -> None:
    declare()
    async with connected() as client:
        answer = await client.ask(type="price_request", reqId="1", **fields)
        assert (answer["type"], answer["code"], answer["reqId"]) == ("error", "BAD_REQUEST", "1")
        assert answer["message"].startswith(problem)


async def test_request_carries_the_fields_of_the_model_and_no_others() -> None:
    seen: list[Any] = []

    def look(request: PriceRequest, caller: Caller) -> None:
        seen.append(request)

    declare(look)
    async with connected() as client:
        await client.ask(type="price_request", item=1, voucher=ONE, more="ignored")
    [request] = seen
    assert isinstance(request, PriceRequest)
    assert (request.item, request.voucher, hasattr(request, "more")) == (1, UUID(ONE), False)


def test_model_may_be_lenient_if_it_says_so() -> None:
    class Lenient(PriceRequest):
        model_config = ConfigDict(strict=False, extra="forbid")

    def handler(request: Lenient, caller: Caller) -> None: ...

    handler.__annotations__ = {"request": Lenient, "return": None}
    declare(handler)
    assert parse('{"type":"price_request","reqId":"1","item":"42"}').item == 42  # type: ignore[union-attr]


@pytest.mark.django_db(transaction=True)
async def test_handler_knows_who_asks() -> None:
    user = await User.objects.acreate(username="ada")

    def who(request: PriceRequest, caller: Caller) -> list[str]:
        return [caller.user.username, caller.connection.id, caller.scope["path"]]

    declare(who)
    async with connected(application_for(user)) as client:
        answer = await client.ask(type="price_request", item=1)
        assert answer["data"] == ["ada", *get_hub().connections, "/ws/"]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"public": False}, False),
        ({"public": False, "authorize": lambda user: user.is_anonymous}, True),
        ({"public": False, "authorize": "shop.view_price"}, False),
        ({"public": True}, True),
    ],
)
async def test_handler_is_guarded_like_a_topic(options: Any, allowed: bool) -> None:
    declare(**options)
    async with connected(application_for(AnonymousUser())) as client:
        answer = await client.ask(type="price_request", reqId="1", item=1)
        assert answer["type"] == "price_response"
        assert answer["reqId"] == "1"
        assert (answer["status"] == "OK") is allowed
        assert allowed or answer["error"]["code"] == "FORBIDDEN"


async def test_handler_refuses_with_a_code_of_its_own() -> None:
    def refuse(request: PriceRequest, caller: Caller) -> Price:
        raise RequestRefused("SOLD_OUT")

    declare(refuse)
    async with connected() as client:
        assert await client.ask(type="price_request", reqId="1", item=1) == {
            "type": "price_response",
            "reqId": "1",
            "status": "ERROR",
            "error": {"message": "sold out", "code": "SOLD_OUT"},
        }


async def fail(request: PriceRequest, caller: Caller) -> Price:
    raise RuntimeError("no database")


async def hang(request: PriceRequest, caller: Caller) -> Price:
    await asyncio.Event().wait()
    raise AssertionError


async def answer_nonsense(request: PriceRequest, caller: Caller) -> Price:
    return "nonsense"  # type: ignore[return-value]


async def cancel(request: PriceRequest, caller: Caller) -> Price:
    raise asyncio.CancelledError


@pytest.mark.parametrize("handler", [fail, hang, answer_nonsense, cancel])
async def test_handler_that_fails_is_an_internal_error(settings: Any, handler: Any) -> None:
    settings.REALTIME = {"HANDLER_TIMEOUT": 0.05, "CONNECTION_REGISTRY": False}
    declare(handler)
    async with connected() as client:
        answer = await client.ask(type="price_request", reqId="1", item=1)
        assert (answer["type"], answer["error"]["code"]) == ("price_response", "INTERNAL_ERROR")
        await client.assert_nothing_waits()


async def test_requests_are_answered_in_order() -> None:
    async def slow(request: PriceRequest, caller: Caller) -> int:
        for _ in range(10 - request.item):
            await asyncio.sleep(0)
        return request.item

    declare(slow)
    async with connected() as client:
        for number in range(10):
            await client.tell(type="price_request", reqId=str(number), item=number)
        assert [(await client.next())["data"] for _ in range(10)] == list(range(10))


async def test_topics_go_on_beside_it() -> None:
    declare()
    Topic("news", public=True)
    async with connected() as client:
        assert (await client.subscribe("news"))["status"] == "OK"
        assert (await client.ask(type="price_requests", item=1))["code"] == "UNKNOWN_MESSAGE_TYPE"


def unannotated(request, caller): ...  # type: ignore[no-untyped-def]


def no_answer(request: PriceRequest, caller: Caller): ...  # type: ignore[no-untyped-def]


def no_model(request: int, caller: Caller) -> None: ...


def no_parameter() -> None: ...


class WithType(BaseModel):
    type: str


def takes_type(request: WithType, caller: Caller) -> None: ...


def good(request: PriceRequest, caller: Caller) -> None: ...


@pytest.mark.parametrize(
    ("kind", "function", "problem"),
    [
        ("price_request", unannotated, "annotate its handler as in 'def unannotated"),
        ("price_request", no_answer, "annotate its handler"),
        ("price_request", no_model, "annotate its handler"),
        ("price_request", no_parameter, "annotate its handler"),
        ("price_request", takes_type, "every request has the field 'type' already"),
        ("price", good, "must end in '_request'"),
        ("echo_request", good, "not be taken"),
    ],
)
def test_handler_that_cannot_be_is_refused(kind: str, function: Any, problem: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=problem):
        request_handler(kind)(function)


def test_handler_declared_twice_is_refused() -> None:
    declare()
    with pytest.raises(ImproperlyConfigured, match="not be taken"):
        declare()


def test_handler_that_is_public_and_guarded_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="is public"):
        declare(authorize="shop.view_price")
