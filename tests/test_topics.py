"""Topics: declaring, authorizing and publishing."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import transaction
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from realtime import Topic, apublish, publish
from realtime.exceptions import LayerUnavailable, ThreadsBusy, UnknownTopic
from realtime.topics import all_topics, find_topic, match_topic

from .memory import clean_process, started_hub, subscribed, the_layer, until  # noqa: F401


class Order(BaseModel):
    status: str
    total: int = 0


def sent() -> list[Any]:
    """Return the data of what was published to the layer."""
    return [json.loads(message["payload"]) for message in the_layer().sent if message["kind"] == "publication"]


# Declaring


def test_topic_is_found_by_its_name() -> None:
    news = Topic("news")
    assert find_topic("news") is news
    assert news in all_topics()


def test_topic_that_is_not_declared_is_not_found() -> None:
    assert find_topic("news") is None


def test_topic_heartbeat_is_built_in_and_public() -> None:
    heartbeat = find_topic("heartbeat")
    assert heartbeat is not None
    assert heartbeat.public


def test_topic_shows_its_name() -> None:
    assert repr(Topic("news")) == "<Topic 'news'>"


@pytest.mark.parametrize("name", ["news", "heartbeat"])
def test_topic_declared_twice_is_refused(name: str) -> None:
    if name != "heartbeat":
        Topic(name)
    with pytest.raises(ImproperlyConfigured, match=f"topic '{name}' is declared twice"):
        Topic(name)


@pytest.mark.parametrize("name", ["a", " ", "é🎉", "\0", "a/b?c=d#e", "x" * 255, "🎉" * 255])
def test_topic_name_may_be_any_text(name: str) -> None:
    assert Topic(name).name == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "expected 1 to 255 characters"),
        ("x" * 256, "expected 1 to 255 characters"),
        ("{", "a parameter is a whole segment"),
        ("}", "a parameter is a whole segment"),
        ("orders.x{id}", "a parameter is a whole segment"),
        ("orders.{id:int", "a parameter is a whole segment"),
        ("orders.{Id}", "a parameter is a whole segment"),
        ("orders.{id:float}", "'float' is none of str, slug, int, uuid"),
        ("orders.{id}.{id:int}", "there are two parameters 'id'"),
        ("orders.{on_commit}", "call the parameter 'on_commit' something else"),
        ("orders.{user:int}", "call the parameter 'user' something else"),
    ],
)
def test_topic_name_that_cannot_be_is_refused(name: str, problem: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=problem):
        Topic(name)


def test_topic_name_that_no_client_could_send_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured):
        Topic("\ud800")


def test_topic_that_is_public_and_guarded_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="'news' is public, so its authorize would never be asked"):
        Topic("news", public=True, authorize=lambda user: True)
    assert find_topic("news") is None


# Authorizing

SOMEBODY = User(username="somebody")


@pytest.mark.parametrize(
    ("public", "user", "allowed"),
    [
        (True, None, True),
        (True, AnonymousUser(), True),
        (True, SOMEBODY, True),
        (False, None, False),
        (False, AnonymousUser(), False),
        (False, SOMEBODY, True),
    ],
)
async def test_topic_without_authorize_is_for_the_signed_in(public: bool, user: Any, allowed: bool) -> None:
    assert await Topic("news", public=public).allows(user) is allowed


@pytest.mark.parametrize("answer", [True, False, 1, 0, None, "yes", []])
async def test_topic_asks_authorize(answer: Any) -> None:
    asked = []

    def authorize(user: Any) -> Any:
        asked.append(user)
        return answer

    assert await Topic("news", authorize=authorize).allows(SOMEBODY) is bool(answer)
    assert asked == [SOMEBODY]


@pytest.mark.parametrize("answer", [True, False])
async def test_topic_asks_an_async_authorize(answer: bool) -> None:
    async def authorize(user: Any) -> bool:
        await asyncio.sleep(0)
        return answer

    assert await Topic("news", authorize=authorize).allows(None) is answer


async def refuse(user: Any, *_: Any) -> bool:
    return False


class Refuse:
    async def __call__(self, user: Any) -> bool:
        return False

    async def method(self, user: Any) -> bool:
        return False


@pytest.mark.parametrize(
    "authorize",
    [
        pytest.param(refuse, id="function"),
        pytest.param(partial(refuse), id="partial"),
        pytest.param(Refuse().method, id="method"),
        pytest.param(Refuse(), id="callable object"),
        pytest.param(partial(Refuse()), id="partial of a callable object"),
        pytest.param(lambda user: refuse(user), id="lambda that calls a coroutine function"),
        pytest.param(sync_to_async(lambda user: False), id="sync_to_async"),
    ],
)
async def test_async_authorize_of_any_kind_is_heeded(authorize: Any) -> None:
    assert not await Topic("news", authorize=authorize).allows(SOMEBODY)


async def test_sync_authorize_runs_on_a_thread_of_realtime() -> None:
    threads = []
    topic = Topic("news", authorize=lambda user: threads.append(threading.current_thread().name))
    await topic.allows(SOMEBODY)
    assert threads[0].startswith("realtime")


async def test_authorize_that_raises_is_heard() -> None:
    with pytest.raises(ZeroDivisionError):
        await Topic("news", authorize=lambda user: 1 / 0).allows(SOMEBODY)


async def test_authorize_while_all_threads_are_busy_raises(settings: Any) -> None:
    settings.REALTIME = {"SYNC_THREADS": 1}
    began, release = threading.Event(), threading.Event()

    def authorize(user: Any) -> bool:
        began.set()
        return release.wait()

    topic = Topic("news", authorize=authorize)
    waiting = asyncio.create_task(topic.allows(SOMEBODY))
    await until(began.is_set)
    with pytest.raises(ThreadsBusy):
        await topic.allows(SOMEBODY)
    release.set()
    assert await waiting


@pytest.mark.parametrize("user", [None, AnonymousUser()])
async def test_permission_of_nobody_is_denied(user: Any) -> None:
    assert not await Topic("news", authorize="auth.view_user").allows(user)


@pytest.mark.django_db(transaction=True)
async def test_permission_is_looked_up() -> None:
    user = await User.objects.acreate(username="reader")
    topic = Topic("news", authorize="auth.view_user")
    assert not await topic.allows(user)
    await user.user_permissions.aadd(await Permission.objects.aget(codename="view_user"))
    assert await topic.allows(await User.objects.aget(pk=user.pk))


# Publishing


def test_publish_sends_json() -> None:
    Topic("news").publish({"a": [1, None, "é"]})
    assert sent() == [{"a": [1, None, "é"]}]


def test_publish_by_name() -> None:
    Topic("news")
    publish("news", "hello")
    assert sent() == ["hello"]


async def test_apublish_by_name() -> None:
    Topic("news")
    await apublish("news", "hello")
    assert sent() == ["hello"]


@pytest.mark.parametrize("data", [None, 0, "", [], {}, False])
def test_publish_of_what_is_false_sends_it(data: Any) -> None:
    Topic("news").publish(data)
    assert sent() == [data]


@pytest.mark.parametrize("data", [object(), {"a": object()}, "\ud800", b"\xff"])
def test_publish_of_what_is_not_json_raises(data: Any) -> None:
    with pytest.raises(PydanticSerializationError):
        Topic("news").publish(data)
    assert the_layer().sent == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_publish_of_numbers_that_json_lacks_sends_none_of_them(number: float) -> None:
    try:
        Topic("news").publish({"a": number})
    except ValueError:
        return
    [message] = the_layer().sent
    json.loads(message["payload"], parse_constant=pytest.fail)


@pytest.mark.parametrize("data", [Order(status="paid"), {"status": "paid"}, {"status": "paid", "total": 0}])
def test_publish_validates_with_the_model(data: Any) -> None:
    Topic("orders", Order).publish(data)
    assert sent() == [{"status": "paid", "total": 0}]


@pytest.mark.parametrize(
    ("data", "field"), [({}, "status"), ({"status": 5}, "status"), ({"status": "paid", "total": "many"}, "total")]
)
def test_publish_of_what_does_not_fit_the_model_names_the_field(data: Any, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Topic("orders", Order).publish(data)
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]
    assert the_layer().sent == []


async def test_apublish_of_what_does_not_fit_the_model_raises() -> None:
    with pytest.raises(ValidationError, match="status"):
        await Topic("orders", Order).apublish({})


def test_publish_to_an_unknown_topic_lists_the_known() -> None:
    Topic("news")
    with pytest.raises(UnknownTopic, match="no topic 'nwes' is declared; known are 'heartbeat', .*'news'"):
        publish("nwes", 1)


async def test_apublish_to_an_unknown_topic_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        await apublish("news", 1)


def test_publish_to_heartbeat_is_refused() -> None:
    with pytest.raises(ValueError, match="'heartbeat' is the server's own"):
        publish("heartbeat", {})


async def test_apublish_to_heartbeat_is_refused() -> None:
    with pytest.raises(ValueError, match="'heartbeat' is the server's own"):
        await apublish("heartbeat", {})


@pytest.mark.parametrize("on_commit", [False, True])
async def test_publish_on_a_running_loop_names_its_twin(on_commit: bool) -> None:
    with pytest.raises(SynchronousOnlyOperation, match=r"publish\(\) .* await apublish\(\)"):
        Topic("news").publish(1, on_commit=on_commit)
    assert the_layer().sent == []


# On commit


@pytest.mark.django_db(transaction=True)
def test_publish_on_commit_waits_for_the_commit() -> None:
    topic = Topic("news")
    with transaction.atomic():
        topic.publish(1, on_commit=True)
        publish("news", 2, on_commit=True)
        assert sent() == []
    assert sent() == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_publish_on_commit_is_dropped_on_rollback() -> None:
    with transaction.atomic():
        Topic("news").publish(1, on_commit=True)
        transaction.set_rollback(True)
    assert sent() == []


@pytest.mark.django_db(transaction=True)
def test_publish_on_commit_outside_a_transaction_is_at_once() -> None:
    Topic("news").publish(1, on_commit=True)
    assert sent() == [1]


@pytest.mark.django_db(transaction=True)
def test_publish_on_commit_validates_at_once() -> None:
    topic = Topic("orders", Order)
    with pytest.raises(ValidationError), transaction.atomic():
        topic.publish({}, on_commit=True)


@pytest.mark.django_db(transaction=True)
def test_publish_on_commit_sends_what_the_data_was() -> None:
    topic, data = Topic("news"), ["before"]
    with transaction.atomic():
        topic.publish(data, on_commit=True)
        data[0] = "after"
    assert sent() == [["before"]]


@pytest.mark.django_db(transaction=True)
def test_publish_on_commit_while_the_layer_is_down_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    the_layer().failing = True
    topic = Topic("news")
    with transaction.atomic():
        topic.publish(1, on_commit=True)
    assert "LayerUnavailable" in caplog.text


async def aatomic(work: Any, *, fail: bool = False) -> None:
    """Await ``work`` in a transaction, on the thread that Django's synchronous code runs on."""
    atomic = transaction.atomic()
    await sync_to_async(atomic.__enter__)()
    await work()
    error = ZeroDivisionError() if fail else None
    await sync_to_async(atomic.__exit__)(type(error) if error else None, error, None)


@pytest.mark.django_db(transaction=True)
async def test_apublish_on_commit_waits_for_the_commit() -> None:
    topic = Topic("news")

    async def work() -> None:
        await topic.apublish(1, on_commit=True)
        await apublish("news", 2, on_commit=True)
        assert sent() == []

    await aatomic(work)
    assert sent() == [1, 2]


@pytest.mark.django_db(transaction=True)
async def test_apublish_on_commit_is_dropped_on_rollback() -> None:
    topic = Topic("news")
    await aatomic(lambda: topic.apublish(1, on_commit=True), fail=True)
    assert sent() == []


@pytest.mark.django_db(transaction=True)
async def test_apublish_on_commit_outside_a_transaction_is_at_once() -> None:
    await Topic("news").apublish(1, on_commit=True)
    assert sent() == [1]


@pytest.mark.django_db(transaction=True)
async def test_publish_on_commit_in_a_sync_view_reaches_the_hubs_subscribers() -> None:
    topic = Topic("news")
    connection = await subscribed(await started_hub(), "news")

    def view() -> None:
        with transaction.atomic():
            topic.publish(1, on_commit=True)

    await sync_to_async(view)()
    await until(lambda: connection.wire.data == [1])


def test_publish_while_the_layer_is_down_raises() -> None:
    the_layer().failing = True
    with pytest.raises(LayerUnavailable, match="the layer is down"):
        Topic("news").publish(1)


# Topics with parameters


def test_name_is_found_with_its_parameters() -> None:
    orders = Topic("orders.{order_id:int}")
    assert match_topic("orders.42") == (orders, {"order_id": 42})
    assert find_topic("orders.042") is None
    assert find_topic("orders.{order_id:int}") is None


def test_name_without_parameters_comes_first() -> None:
    Topic("orders.{status}")
    new = Topic("orders.new")
    assert match_topic("orders.new") == (new, {})


def test_pattern_that_begins_with_a_literal_comes_before_one_that_does_not() -> None:
    Topic("{kind}.{number:int}")
    orders = Topic("orders.{text}")
    assert match_topic("orders.1") == (orders, {"text": "1"})


def test_pattern_declared_first_comes_first() -> None:
    numbers = Topic("orders.{number:int}")
    texts = Topic("orders.{text}")
    assert match_topic("orders.1") == (numbers, {"number": 1})
    assert match_topic("orders.one") == (texts, {"text": "one"})


def test_patterns_of_one_shape_are_refused() -> None:
    Topic("orders.{order_id:int}")
    with pytest.raises(ImproperlyConfigured, match="declared twice, the first time as 'orders.{order_id:int}'"):
        Topic("orders.{number:int}")


def test_name_that_is_too_long_is_not_found() -> None:
    Topic("texts.{text}")
    assert find_topic("texts." + "x" * 249) is not None
    assert find_topic("texts." + "x" * 250) is None


def test_all_topics_are_listed() -> None:
    exact, pattern = Topic("news"), Topic("orders.{order_id:int}")
    assert {exact, pattern} <= set(all_topics())


async def test_authorize_gets_the_parameters() -> None:
    topic = Topic("orders.{order_id:int}", authorize=lambda user, order_id: user.is_anonymous and order_id == 42)
    assert await topic.allows(AnonymousUser(), order_id=42)
    assert not await topic.allows(AnonymousUser(), order_id=43)


def test_publish_with_parameters() -> None:
    Topic("orders.{order_id:int}", Order).publish({"status": "paid"}, order_id=42)
    assert (the_layer().sent[-1]["topic"], sent()) == ("orders.42", [{"status": "paid", "total": 0}])


def test_publish_by_a_name_with_parameters() -> None:
    Topic("orders.{order_id:int}", Order)
    publish("orders.7", {"status": "paid"})
    assert the_layer().sent[-1]["topic"] == "orders.7"


async def test_apublish_with_parameters() -> None:
    await Topic("orders.{order_id:int}").apublish(1, order_id=42)
    await apublish("orders.7", 1)
    assert [message["topic"] for message in the_layer().sent if message.get("topic")] == ["orders.42", "orders.7"]


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({}, "takes the parameters order_id, text, not none"),
        ({"order_id": 1, "text": "a", "more": 2}, "takes the parameters order_id, text, not order_id, text, more"),
        ({"order_id": "1", "text": "a"}, "order_id='1': expected a whole number"),
        ({"order_id": True, "text": "a"}, "order_id=True: expected a whole number"),
        ({"order_id": 1, "text": "a.b"}, "text='a.b': expected a text without dots"),
        ({"order_id": 1, "text": ""}, "text='': expected a text without dots"),
        ({"order_id": 1, "text": "x" * 250}, "has 259 characters, at most 255 are allowed"),
    ],
)
def test_publish_with_parameters_that_do_not_fit_is_refused(parameters: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Topic("orders.{order_id:int}.{text}").publish(1, **parameters)


def test_publish_to_an_exact_topic_takes_no_parameters() -> None:
    with pytest.raises(ValueError, match="'news' takes the parameters none, not order_id"):
        Topic("news").publish(1, order_id=1)
