"""The AsyncAPI document: valid by the published schema, and true of what goes over the wire."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client as Browser
from django.test.utils import override_script_prefix
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema
from referencing import Registry
from typing_extensions import TypedDict

from realtime import Caller, RequestRefused, Topic, apublish, request_handler
from realtime.asyncapi import SEGMENTS, document
from realtime.consumers import RealtimeConsumer
from realtime.events import PublicationEvent, group_name
from realtime.exceptions import RequestError
from realtime.handlers import handlers
from realtime.patterns import CONVERTERS
from realtime.protocol import CLOSE_CODES, ErrorCode, MessageType, client_reconnect, parse, remove_request

from .memory import clean_process, connected, near_requests  # noqa: F401

SPECS = "@asyncapi/specs@6.11.1"
ONE = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


# A site with much in it


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    """Be where ``somebody`` lives."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"street": "Main St"}]})

    street: str
    number: int | None = None


class Point(NamedTuple):
    x: float
    y: float


class Options(TypedDict, total=False):
    fast: bool


@dataclass
class Line:
    item: int
    note: str = ""


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Odd:
    """What no JSON schema can be made of."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        to_text = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.is_instance_schema(cls, serialization=to_text)


class Everything(BaseModel):
    colour: Colour = Colour.RED
    at: datetime
    day: date
    price: Decimal
    id: UUID
    nothing: int | None = None
    address: Address | None = None
    pair: tuple[int, str]
    more: tuple[int, ...] = ()
    point: Point
    options: Options = Field(default_factory=lambda: Options())
    lines: list[Line]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    tags: set[str] = set()
    ratio: dict[str, float] = {}


EVERYTHING = {
    "at": datetime(2026, 1, 1, tzinfo=UTC),
    "day": date(2026, 1, 1),
    "price": Decimal("9.90"),
    "id": ONE,
    "pair": (1, "one"),
    "point": Point(1, 2),
    "lines": [Line(1), Line(2, "two")],
    "pet": Cat(),
    "tags": {"a"},
    "ratio": {"a": 0.5},
}


class PriceRequest(BaseModel):
    """Ask what an item costs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item": 42, "voucher": ONE}]})

    item: int
    in_currency: str = Field(alias="inCurrency", default="EUR")
    voucher: UUID | None = None


class Price(BaseModel):
    amount: Decimal
    per_item: str = Field(alias="perItem", default="piece")


def price(request: PriceRequest, caller: Caller) -> Price | None:
    if request.item < 0:
        raise RequestRefused("NO_SUCH_ITEM")
    return Price(amount=Decimal(request.item)) if request.item else None


def fail(request: Address, caller: Caller) -> list[Address]:
    raise RuntimeError


def is_ada(user: Any, **parameters: Any) -> bool:
    return bool(user is not None and user.username == "ada")


@pytest.fixture(autouse=True)
def site(clean_process: None) -> Any:  # noqa: F811
    """Declare topics and requests of many kinds."""
    before = set(handlers)
    Topic("everything", Everything, public=True)
    Topic("orders.{order_id:int}", Address, authorize=is_ada, on_subscribe=lambda user, order_id: None)
    Topic("chat.{room}.{user_id:uuid}.{thread:slug}", Annotated[Cat | Dog, Field(discriminator="kind")], public=True)
    Topic("anything", public=True, on_subscribe=lambda user: {"hello": None})
    Topic("numbers", list[int] | None, public=True, report_gaps=True)
    Topic("ödd ☂ (1+1)/2", public=True)
    Topic("ödd ☂ (1+1)#2", public=True)
    Topic("members")
    Topic("staff", authorize="shop.view_order")
    request_handler("price_request", public=True)(price)
    request_handler("fail_request", authorize="shop.fail")(fail)
    yield
    for kind in set(handlers) - before:
        del handlers[kind]
        remove_request(kind)


def follow(made: Any, reference: str) -> Any:
    for key in reference.removeprefix("#/").split("/"):
        made = made[key]
    return made


def references(part: Any) -> set[str]:
    if isinstance(part, dict):
        inner = set().union(*map(references, part.values()))
        return inner | ({part["$ref"]} if isinstance(part.get("$ref"), str) else set())
    return set().union(*map(references, part)) if isinstance(part, list) else set()


class Payloads:
    """Tell which messages of a document a frame may be."""

    def __init__(self, made: Any) -> None:
        self.validators = {
            name: Draft7Validator(
                {"allOf": [message["payload"]], "components": made["components"]}, registry=Registry()
            )
            for name, message in made["components"]["messages"].items()
        }

    def of(self, frame: Any) -> list[str]:
        return [name for name, validator in self.validators.items() if validator.is_valid(frame)]


# The published schema


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Draft7Validator:
    """AsyncAPI's own JSON Schema. It holds all that it refers to; without a way to retrieve more, all else fails."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm, with which {SPECS} is fetched, is not installed")
    folder = tmp_path_factory.mktemp("asyncapi")
    command = [npm, "pack", "--silent", SPECS]
    packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if packed.returncode != 0:
        pytest.skip(f"npm cannot fetch {SPECS}: {packed.stderr}")
    [archive] = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        member = files.extractfile("package/schemas/3.0.0.json")
        assert member is not None
        return Draft7Validator(json.load(member), registry=Registry())


@pytest.mark.parametrize("url", [None, "ws://localhost:8080/", "wss://example.org/ws/"])
def test_document_is_valid(published: Draft7Validator, url: str | None) -> None:
    error = best_match(published.iter_errors(document(url=url)))
    assert error is None, f"{error.json_path}: {error.message[:1000]}"


def test_document_with_all_security_schemes_is_valid(published: Draft7Validator, settings: Any) -> None:
    settings.REALTIME = {"AUTHENTICATE": "tests.site.tokens.authenticate"}
    made = document()
    assert list(made["components"]["securitySchemes"]) == ["session", "bearer", "subprotocol", "query"]
    assert published.is_valid(made)


def test_document_of_tuples_and_tagged_unions_says_so_in_draft_7() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["Everything"]["properties"]["pair"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert schemas["Everything"]["properties"]["pet"].keys() == {"oneOf"}


def test_document_says_nothing_of_defaults_in_what_is_always_sent() -> None:
    assert "default" not in document()["components"]["schemas"]["Everything"]["properties"]["nothing"]


SCHEMA = ("components", "schemas", "EchoRequest", "properties", "echo", "type")
BREAKS: dict[str, tuple[tuple[str, ...], Any]] = {
    "version of AsyncAPI": (("asyncapi",), "3.0"),
    "no version": (("info", "version"), None),
    "action": (("operations", "topic.anything", "action"), "publish"),
    "key of an operation": (("operations", "error", "payload"), {}),
    "key of a channel": (("channels", "websocket", "topics"), []),
    "address": (("channels", "websocket", "address"), 1),
    "key of a message": (("components", "messages", "error", "schema"), {}),
    "example without payload": (("components", "messages", "error", "examples"), [{"name": "no payload"}]),
    "correlation id": (("components", "correlationIds", "reqId", "location"), "reqId"),
    "type in a schema": (SCHEMA, "text"),
    "OpenAPI's discriminator": ((*SCHEMA[:-1], "discriminator"), {"propertyName": "kind"}),
    "security": (("operations", "topic.members", "security"), ["session"]),
    "security scheme": (("components", "securitySchemes", "session", "in"), "body"),
    "binding": (("channels", "websocket", "bindings", "ws", "method"), "PUT"),
    "no host": (("servers", "site", "host"), None),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_published_schema_refuses_a_broken_document(published: Draft7Validator, broken: str) -> None:
    made = document(url="ws://localhost/ws/")
    (*path, last), value = BREAKS[broken]
    part = follow(made, "/".join(path)) if path else made
    if value is None:
        del part[last]
    else:
        part[last] = value
    assert not published.is_valid(made)


# What the published schema does not say


def test_keys_are_of_the_characters_that_asyncapi_allows() -> None:
    made = document()
    for part in (made["operations"], *made["components"].values()):
        assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", key) for key in part)


def test_references_lead_somewhere() -> None:
    made = document()
    for reference in references(made):
        assert follow(made, reference)


def test_operations_are_of_messages_of_the_channel() -> None:
    made = document()
    prefix = "#/channels/websocket/messages/"
    named = {reference for reference in references(made["operations"]) if reference.startswith(prefix)}
    assert {name.removeprefix(prefix) for name in named} == set(made["components"]["messages"])
    assert made["channels"]["websocket"]["messages"].keys() == made["components"]["messages"].keys()


def test_request_is_replied_to_with_its_response_or_an_error() -> None:
    reply = document()["operations"]["price_request"]["reply"]
    assert [message["$ref"] for message in reply["messages"]] == [
        "#/channels/websocket/messages/price_response",
        "#/channels/websocket/messages/error",
    ]


def test_schemas_are_schemas_and_all_are_used() -> None:
    made = document()
    schemas = made["components"]["schemas"]
    for schema in schemas.values():
        Draft7Validator.check_schema(schema)
    assert {f"#/components/schemas/{name}" for name in schemas} <= references(made)


def test_document_is_plain_json() -> None:
    made = document(url="wss://example.org/ws/")
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_names_that_look_alike_have_keys_of_their_own() -> None:
    operations = document()["operations"]
    titles = {key: operation["title"] for key, operation in operations.items() if key.startswith("topic._dd")}
    assert titles == {"topic._dd____1_1__2": "ödd ☂ (1+1)/2", "topic._dd____1_1__2-2": "ödd ☂ (1+1)#2"}


def test_models_that_are_called_alike_have_schemas_of_their_own() -> None:
    other: Any = type("Address", (BaseModel,), {"__annotations__": {"ip": str}, "__module__": "elsewhere"})
    Topic("other", other, public=True)
    messages = document()["components"]["messages"]
    data = [messages[f"publication.{name}"]["payload"]["properties"]["data"] for name in ("other", "orders.order_id")]
    assert data[0] != data[1]


def test_model_without_a_schema_is_anything() -> None:
    Topic("odd", Odd, public=True)
    payload = document()["components"]["messages"]["publication.odd"]["payload"]
    assert payload["properties"]["data"] == {}


def test_documentation_of_models_is_commonmark() -> None:
    assert document()["components"]["schemas"]["Address"]["description"] == "Be where `somebody` lives."


# True of the wire


def test_every_type_of_message_is_described() -> None:
    made = document()
    types = [schema.get("properties", {}).get("type", {}) for schema in made["components"]["schemas"].values()]
    assert {kind["const"] for kind in types if kind.get("const") in set(MessageType)} == set(MessageType)


def test_examples_are_valid() -> None:
    made = document()
    payloads = Payloads(made)
    shown = {
        name: [example["payload"] for example in message.get("examples", ())]
        for name, message in made["components"]["messages"].items()
    }
    for name, frames in shown.items():
        for frame in frames:
            assert payloads.of(frame) == [name]
            if name.endswith("_request"):
                parse(json.dumps(frame))
    assert {name for name, frames in shown.items() if frames} >= set(MessageType) - {MessageType.PUBLICATION}


def test_examples_of_a_request_are_requests() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["PriceRequest_price_request"]["examples"] == [
        {"type": "price_request", "item": 42, "voucher": str(ONE)}
    ]
    assert schemas["Address"]["examples"] == [{"street": "Main St"}]


class Ada:
    """Be a user who may do some things."""

    pk, username, is_authenticated = 1, "ada", True

    def has_perm(self, name: str) -> bool:
        return name == "shop.fail"


async def application(scope: Any, receive: Any, send: Any) -> None:
    await RealtimeConsumer.as_asgi()({**scope, "user": Ada()}, receive, send)


TOPICS: dict[str, list[Any]] = {
    "everything": [Everything(**EVERYTHING), {**EVERYTHING, "address": Address(street="A"), "nothing": 1}],
    "orders.42": [Address(street="A"), {"street": "B", "number": 7}],
    f"chat.room 7.{ONE}.a-b_c": [Dog(), {"kind": "cat"}],
    "anything": [None, [1, {"a": "b"}]],
    "numbers": [None, [1, 2]],
    "ödd ☂ (1+1)/2": ["x"],
}


async def record() -> list[dict[str, Any]]:
    """Return what a server really sends, of every kind."""
    frames: list[dict[str, Any]] = []
    async with connected(application) as client:

        async def ask(kind: str, answers: int = 1, **fields: Any) -> None:
            await client.tell(type=kind, **fields)
            frames.extend([await client.next() for _ in range(answers)])

        await ask("echo_request", reqId="1", echo="Hello")
        await ask("echo_request", echo="Hello", err=True)
        await ask("nonsense", reqId="2")
        await ask("echo_request", reqId="3", echo=1)
        for topic, published in TOPICS.items():
            await ask("subscribe_request", 2 if topic == "anything" else 1, reqId="4", topic=topic)
            await ask("subscribe_request", topic=topic)
            for data in published:
                await apublish(topic, data)
                frames.append(await client.next())
            await ask("unsubscribe_request", reqId="5", topic=topic)
            await ask("unsubscribe_request", topic=topic)
        await ask("subscribe_request", topic="numbers")
        for sequence in (1, 3):
            event = PublicationEvent(
                topic="numbers", payload=f"[{sequence}]", sent_at=1.0, publisher="a", sequence=sequence
            )
            await get_channel_layer().group_send(group_name("numbers"), event.to_message())
        frames.extend([await client.next() for _ in range(3)])
        await ask("subscribe_request", 2, topic="heartbeat")
        for topic in ("staff", "nowhere"):
            await ask("subscribe_request", topic=topic)
        for item in (-1, 0, 1):
            await ask("price_request", reqId="6", item=item)
        await ask("price_request", item=1, inCurrency="CHF", voucher=str(ONE))
        await ask("fail_request", street="A")
    return frames


async def test_frames_are_what_the_document_says() -> None:
    payloads = Payloads(document())
    frames = await record()
    requests = {kind for kind in MessageType if kind.endswith("_request")}
    assert {frame["type"] for frame in frames} == set(MessageType) - requests | {"price_response", "fail_response"}
    for frame in frames:
        matching = payloads.of(frame)
        assert len(matching) == 1, frame
        if frame["type"] != "publication":
            assert matching == [frame["type"]]
    assert {name for frame in frames for name in payloads.of(frame) if name.startswith("publication.")} == {
        "publication.everything",
        "publication.orders.order_id",
        "publication.chat.room.user_id.thread",
        "publication.anything",
        "publication.numbers",
        "publication._dd____1_1__2",
    }


async def test_frames_with_null_for_what_is_absent_are_not_what_the_document_says() -> None:
    payloads = Payloads(document())
    for frame in await record():
        if frame["type"] not in ("publication", "heartbeat", "gap"):
            assert payloads.of({**frame, "reqId": None}) == []
            assert payloads.of({**frame, "code" if frame["type"] == "error" else "error": None}) == []


async def test_frames_that_lack_a_field_are_not_what_the_document_says() -> None:
    payloads = Payloads(document())
    for frame in await record():
        for field in frame.keys() - {"reqId", "code"}:
            less = {key: value for key, value in frame.items() if key != field}
            assert payloads.of(less) == [], less
        if frame.get("topic") == "everything":
            for field in frame["data"]:
                data = {key: value for key, value in frame["data"].items() if key != field}
                assert payloads.of({**frame, "data": data}) == [], field


@pytest.mark.parametrize(
    "change",
    [
        {"type": "publications"},
        {"topic": "orders.042"},
        {"topic": "orders.x"},
        {"topic": "my-orders.1"},
        {"topic": 42},
        {"data": None},
        {"data": {"street": 1, "number": None}},
        {"data": {"street": "A", "number": "7"}},
        {"timestamp": 1.5},
    ],
)
def test_publication_that_does_not_fit_is_none(change: Any) -> None:
    frame = {"type": "publication", "topic": "orders.42", "data": {"street": "A", "number": None}, "timestamp": "now"}
    payloads = Payloads(document())
    assert payloads.of(frame) == ["publication.orders.order_id"]
    assert payloads.of({**frame, **change}) == []


async def test_fields_with_aliases_are_published_by_them() -> None:
    Topic("prices", Price, public=True)
    async with connected() as client:
        await client.subscribe("prices")
        await apublish("prices", Price(amount=Decimal(1)))
        assert Payloads(document()).of(await client.next()) == ["publication.prices"]


near_prices = st.fixed_dictionaries(
    {"type": st.just("price_request")},
    optional={
        "item": st.integers() | st.text(max_size=3),
        "inCurrency": st.text(max_size=3) | st.none(),
        "in_currency": st.none(),
        "voucher": st.uuids().map(str) | st.none() | st.booleans(),
        "reqId": st.text(max_size=300) | st.none(),
    },
)


@functools.cache
def request_payloads() -> Payloads:
    made = document()
    messages = made["components"]["messages"]
    for name in [name for name in messages if not name.endswith("_request")]:
        del messages[name]
    return Payloads(made)


@given(near_requests | near_prices)
def test_requests_are_those_that_the_server_takes(frame: Any) -> None:
    text = json.dumps(frame)
    assume("NaN" not in text and "Infinity" not in text)  # which Python writes, and which are no JSON
    try:
        taken = bool(parse(text))
    except RequestError:
        taken = False
    assert request_payloads().of(json.loads(text)) == ([frame["type"]] if taken else [])


# Topics


@pytest.mark.parametrize("kind", CONVERTERS)
@given(data=st.data())
def test_parameters_match_what_the_server_takes(kind: str, data: Any) -> None:
    texts = st.text(max_size=40) | st.from_regex(SEGMENTS[kind], fullmatch=True)
    text = data.draw(texts | st.integers().map(str) | st.uuids().map(str))
    try:
        taken = CONVERTERS[kind].format(CONVERTERS[kind].parse(text)) == text
    except ValueError:
        taken = False
    assert (re.fullmatch(SEGMENTS[kind], text) is not None) is taken


def test_segments_are_known_for_every_kind_of_parameter() -> None:
    assert SEGMENTS.keys() == CONVERTERS.keys()


def test_topic_says_what_it_is_called() -> None:
    operation = document()["operations"]["topic.chat.room.user_id.thread"]
    assert operation["action"] == "send"
    assert operation["x-topic"] == {
        "name": "chat.{room}.{user_id:uuid}.{thread:slug}",
        "parameters": {
            "room": {"type": "str", "description": "a text without dots"},
            "user_id": {"type": "uuid", "description": "a UUID"},
            "thread": {"type": "slug", "description": "letters, digits, hyphens and underscores"},
        },
    }


def test_characters_of_regular_expressions_mean_themselves() -> None:
    odd = r"a^$*+?()|/[]\w-&"
    Topic(odd + ".{number:int}", public=True)
    payloads = Payloads(document())
    frame = {"type": "publication", "topic": odd + ".1", "data": 1, "timestamp": "now"}
    assert len(payloads.of(frame)) == 1
    assert payloads.of({**frame, "topic": "aaa.1"}) == []


@pytest.mark.parametrize(
    ("operation", "access", "description"),
    [
        ("topic.anything", {"kind": "public"}, "For everybody."),
        ("topic.members", {"kind": "signed-in"}, "For whoever is signed in."),
        (
            "topic.staff",
            {"kind": "permission", "permission": "shop.view_order"},
            "For whoever has the permission `shop.view_order`.",
        ),
        ("topic.orders.order_id", {"kind": "authorize"}, "For whom the site's own rule lets in."),
        ("price_request", {"kind": "public"}, "Answered for everybody."),
        (
            "fail_request",
            {"kind": "permission", "permission": "shop.fail"},
            "Answered for whoever has the permission `shop.fail`.",
        ),
    ],
)
def test_operation_says_who_may(operation: str, access: Any, description: str) -> None:
    found = document()["operations"][operation]
    assert (found["x-access"], found["description"]) == (access, description)
    assert ("security" in found) is (access["kind"] != "public")


# The connection


def test_close_codes_are_those_of_the_protocol() -> None:
    codes = document()["channels"]["websocket"]["x-close-codes"]
    assert set(map(str, CLOSE_CODES)) <= codes.keys()
    for code, close in codes.items():
        for each in code.split("-"):
            assert close["client"] == client_reconnect(int(each))
    assert [code for code in codes if "-" in code] == ["3000-3499", "3500-3999", "4000-4499", "4500-4999"]


def test_error_codes_are_those_of_the_protocol() -> None:
    assert document()["channels"]["websocket"]["x-error-codes"].keys() == set(ErrorCode)


@pytest.mark.parametrize(
    ("url", "server", "address"),
    [
        (None, None, "/ws/"),
        ("ws://localhost:8080", {"host": "localhost:8080", "protocol": "ws"}, "/"),
        ("wss://me:secret@[::1]:1/live/?token=x", {"host": "[::1]:1", "protocol": "wss"}, "/live/"),
    ],
)
def test_url_is_the_server_and_the_address(url: str | None, server: Any, address: str) -> None:
    made = document(url=url)
    assert made.get("servers", {}).get("site") == server
    assert made["channels"]["websocket"]["address"] == address


@pytest.mark.parametrize("url", ["", "/ws/", "http://localhost/ws/", "wss://", "wss:example.org", "ws://[::1"])
def test_url_that_is_none_of_a_websocket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"WebSocket, such as wss://example.org/ws/|Invalid IPv6 URL"):
        document(url=url)


def test_title_and_version_are_those_of_the_site() -> None:
    assert document(title="Shop", version="7")["info"].items() >= {"title": "Shop", "version": "7"}.items()


def test_security_schemes_are_those_that_the_site_has(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django.contrib.sessions"]
    settings.SESSION_COOKIE_NAME = "shop"
    made = document()
    assert made["components"]["securitySchemes"] == {}
    assert "security" not in made["operations"]["topic.members"]


# manage.py asyncapi


def output_of(*arguments: str) -> str:
    out = StringIO()
    call_command("asyncapi", *arguments, stdout=out)
    return out.getvalue()


def test_command_prints_the_document() -> None:
    text = output_of("--url", "wss://example.org/ws/")
    assert json.loads(text) == document(url="wss://example.org/ws/")
    assert text.startswith('{\n  "asyncapi"')


def test_command_prints_one_line_with_an_indent_of_0() -> None:
    assert output_of("--indent=0").count("\n") == 1


def test_command_writes_a_file(tmp_path: Path) -> None:
    assert output_of("--output", str(tmp_path / "asyncapi.json")) == ""
    assert json.loads((tmp_path / "asyncapi.json").read_text()) == document()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--indent=-1"], "--indent takes a whole number from 0 on, not -1"),
        (["--url=http://localhost"], "'http://localhost' is not the URL of a WebSocket"),
        (["--output=/nowhere/asyncapi.json"], "cannot write the document: .*/nowhere"),
    ],
)
def test_command_says_what_is_wrong(arguments: list[str], problem: str) -> None:
    with pytest.raises(CommandError, match=problem):
        output_of(*arguments)


# /asyncapi.json


def sign_in(browser: Browser, **fields: Any) -> None:
    browser.force_login(User.objects.create_user("ada", **fields))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (None, 404),
        ({}, 404),
        ({"is_superuser": True}, 404),
        ({"is_staff": True}, 200),
        ({"is_staff": True, "is_active": False}, 404),
    ],
)
def test_page_is_there_for_staff_alone(settings: Any, fields: Any, status: int) -> None:
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.AllowAllUsersModelBackend"]
    browser = Browser()
    if fields is not None:
        sign_in(browser, **fields)
    assert browser.get("/asyncapi.json").status_code == status


def test_page_is_there_for_everybody_with_debug(settings: Any) -> None:
    settings.DEBUG = True
    response = Browser().get("/asyncapi.json", headers={"host": "localhost:8080"})
    assert response.json() == document(url="ws://localhost:8080/ws/")
    assert response["Cache-Control"] == "no-store"


def test_page_names_the_address_that_it_was_asked_at(settings: Any) -> None:
    settings.DEBUG = True
    with override_script_prefix("/site/"):
        made = Browser().get("/asyncapi.json", secure=True).json()
    assert made["servers"]["site"] == {"host": "testserver", "protocol": "wss"}
    assert made["channels"]["websocket"]["address"] == "/site/ws/"


@pytest.mark.parametrize(("method", "status"), [("head", 200), ("post", 405), ("delete", 405)])
def test_page_is_for_reading(settings: Any, method: str, status: int) -> None:
    settings.DEBUG = True
    assert getattr(Browser(), method)("/asyncapi.json").status_code == status


def test_page_on_a_site_without_users_is_not_there(settings: Any) -> None:
    settings.MIDDLEWARE = []
    assert Browser().get("/asyncapi.json").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_page_asks_nobody_to_sign_in(settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    assert Browser().get("/asyncapi.json").status_code == 404
