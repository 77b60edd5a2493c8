"""Health: what the probes are answered, whatever state the process and what it needs are in."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections
from django.test import AsyncClient, AsyncRequestFactory, Client

from realtime import views
from realtime.events import BeatEvent
from realtime.hub import Hub, _hubs, find_hub, get_hub
from realtime.limits import Count
from realtime.link import Link, Shard

from .memory import RemoteLayer, clean_process, local_connection, started_hub, subscribed, the_layer, until, use_layer  # noqa: F401

Answer = tuple[int, dict[str, Any]]
QUICK = 0.1
"""Seconds that a check may take where a test waits for that."""


class Database:
    """Be asked instead of the database: fail or hang while told so, and count."""

    def __init__(self) -> None:
        self.asked = 0
        self.busy = 0
        self.fail = False
        self.answers = threading.Event()
        self.answers.set()

    def select_1(self, alias: str) -> None:
        self.asked += 1
        self.busy += 1
        self.answers.wait(20)
        self.busy -= 1
        if self.fail:
            raise ConnectionRefusedError("postgres://user:password@host")


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The database that is asked."""
    database = Database()
    monkeypatch.setattr(views, "select_1", database.select_1)
    yield database
    database.answers.set()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything looked at anew for each request."""
    monkeypatch.setattr(views, "CHECK_INTERVAL", 0.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have little patience."""
    monkeypatch.setattr(views, "LONGEST_CHECK", QUICK)


async def ready(query: str = "") -> Answer:
    """Return the status and the content of the answer to a probe."""
    response = await views.readyz(AsyncRequestFactory().get(f"/readyz{query}"))
    return response.status_code, json.loads(response.content)


async def part(name: str) -> dict[str, Any]:
    return (await ready())[1]["parts"][name]


async def silent_hub() -> Hub:
    """Return this loop's hub, once it has reached the layer and counts for nothing any more in ``pings``."""
    hub = await started_hub()
    the_layer().calls.clear()
    return hub


def pings() -> int:
    """Return how many messages were sent to the hub's own channel."""
    return the_layer().calls.count("send")


# What is asked


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize(("method", "code"), [("GET", 200), ("HEAD", 200), ("POST", 405), ("PUT", 405)])
async def test_methods_are_get_and_head(path: str, method: str, code: int) -> None:
    response = await AsyncClient(enforce_csrf_checks=True).generic(method, path)
    assert response.status_code == code
    assert response["Cache-Control"] == "no-store"
    assert bool(response.content) == (method == "GET")


async def test_readyz_shows_what_was_counted_once_there_is_something() -> None:
    hub = await started_hub()
    assert "counts" not in await part("hub")
    hub.counts[Count.SLOW_CONSUMERS] += 2
    hub.counts[Count.RATE_LIMITED] += 1
    assert (await part("hub"))["counts"] == {"slow_consumers": 2, "rate_limited": 1}


async def test_healthz_touches_nothing(database: Database) -> None:
    the_layer().failing = True
    response = await AsyncClient().get("/healthz")
    assert response.json() == {"status": "ok"}
    assert find_hub() is None
    assert database.asked == len(the_layer().calls) == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probe_needs_no_login(path: str, settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    assert (await AsyncClient().get("/admin/")).status_code == 302
    assert (await AsyncClient().get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probe_is_answered_where_requests_are_atomic(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    assert (await AsyncClient().get(path)).status_code == 200


# A process that is well


async def test_ready_process_says_how_its_parts_are() -> None:
    code, answer = await ready()
    assert (code, answer["status"]) == (200, "ok")
    parts = answer["parts"]
    assert parts["hub"] == {"status": "ok", "connections": 0}
    assert parts["heartbeat"] == {"status": "ok", "subscribers": 0, "reason": "nobody subscribes"}
    for name in ("layer", "database"):
        assert parts[name].keys() == {"status", "round_trip_ms"}
        assert parts[name]["status"] == "ok"
        assert 0 < parts[name]["round_trip_ms"] < 1000


async def test_ready_process_is_ready_for_the_strict_too() -> None:
    assert (await ready("?strict=1"))[0] == 200


async def test_readyz_starts_the_hub() -> None:
    await ready()
    hub = find_hub()
    assert hub is not None
    assert hub is get_hub()


async def test_connections_are_counted() -> None:
    hub = await started_hub()
    local_connection(hub)
    assert (await part("hub"))["connections"] == 1


async def test_ping_goes_to_the_hubs_own_channel() -> None:
    hub = await silent_hub()
    await ready()
    assert pings() == 1
    assert "group_send" not in the_layer().calls
    assert not hub.link._pings


async def test_database_is_no_part_where_there_is_none(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    monkeypatch.setitem(connections.settings["default"], "ENGINE", "django.db.backends.dummy")
    code, answer = await ready("?strict=1")
    assert code == 200
    assert answer["parts"].keys() == {"hub", "heartbeat", "layer"}
    assert not database.asked


# Under WSGI


@pytest.mark.parametrize("query", ["", "?strict=1"])
def test_readyz_under_wsgi_says_that_there_is_no_hub(query: str, database: Database) -> None:
    response = Client().get(f"/readyz{query}")
    assert response.status_code == 200
    hub = {"status": "ok", "reason": "none in this process"}
    assert response.json() == {"status": "ok", "parts": {"hub": hub}}
    assert find_hub() is None
    assert not database.asked


def test_healthz_under_wsgi_is_ok() -> None:
    assert Client().get("/healthz").json() == {"status": "ok"}


# A process that should get no connections


async def test_draining_process_is_unavailable() -> None:
    hub = await started_hub()
    connection = local_connection(hub)
    stopping = asyncio.create_task(hub.stop())
    await until(lambda: hub.draining)
    code, answer = await ready()
    assert code == 503
    part = {"status": "unavailable", "connections": 1, "reason": "draining"}
    assert answer == {"status": "unavailable", "parts": {"hub": part}}
    hub.disconnected(connection)
    await stopping


async def test_stopped_process_is_unavailable_and_gets_no_other_hub() -> None:
    hub = await started_hub()
    await ready()
    await hub.stop()
    for _ in range(2):
        code, answer = await ready()
        assert code == 503
        assert answer["parts"] == {"hub": {"status": "unavailable", "connections": 0, "reason": "stopped"}}
    assert get_hub() is hub
    assert not hub.link._tasks


async def test_hub_that_has_come_to_an_end_by_itself_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end(self: Link, shard: Shard) -> None:
        pass

    monkeypatch.setattr(Link, "_maintain_for_ever", end)
    hub = get_hub()
    await until(lambda: not hub.link.running)
    assert (await ready())[0] == 503


async def test_process_that_can_have_no_hub_is_unavailable(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.CHANNEL_LAYERS = {}
    code, answer = await ready()
    assert code == 503
    assert answer["parts"] == {"hub": {"status": "unavailable", "reason": "ImproperlyConfigured"}}
    assert "event=hub_not_started" in caplog.text


async def test_unavailable_is_not_reported_as_an_error_of_the_site(caplog: pytest.LogCaptureFixture) -> None:
    """Django mails the admins about each 503 otherwise, which here is one a probe."""
    await (await started_hub()).stop()
    assert (await AsyncClient().get("/readyz")).status_code == 503
    assert "django.request" not in [record.name for record in caplog.records]


async def test_request_that_waits_while_the_hub_stops_is_answered(database: Database) -> None:
    hub = await started_hub()
    database.answers.clear()
    request = asyncio.create_task(ready())
    await until(lambda: database.busy)
    await hub.stop()
    assert (await request)[1]["parts"]["database"]["status"] == "degraded"


# The layer


@pytest.mark.usefixtures("fresh")
async def test_layer_that_fails_degrades(caplog: pytest.LogCaptureFixture) -> None:
    await started_hub()
    the_layer().only = "send "
    the_layer().failing = True
    for _ in range(2):
        code, answer = await ready()
        assert (code, answer["status"]) == (200, "degraded")
        assert answer["parts"]["layer"] == {"status": "degraded", "reason": "ConnectionError"}
    assert (await ready("?strict=1"))[0] == 503
    logged = [message for message in caplog.messages if "event=check_failed" in message]
    assert logged == ["event=check_failed part=layer error=ConnectionError: the layer is down"]
    the_layer().failing = False
    assert (await ready("?strict=1"))[0] == 200
    assert "event=check_ok part=layer" in caplog.messages


@pytest.mark.usefixtures("fresh")
async def test_layer_that_is_known_to_be_down_is_not_asked() -> None:
    hub = await silent_hub()
    the_layer().failing = True
    hub.link.failed("test", ConnectionError(), hub.link._all.shard)
    assert (await part("layer")) == {"status": "degraded", "reason": "LayerUnavailable"}
    assert not pings()


async def test_layer_that_is_down_from_the_start_degrades() -> None:
    the_layer().failing = True
    code, answer = await ready()
    assert code == 200
    assert answer["parts"]["layer"] == {"status": "degraded", "reason": "LayerUnavailable"}


@pytest.mark.usefixtures("fresh", "quick")
async def test_layer_that_hangs_degrades_in_time() -> None:
    hub = await silent_hub()
    the_layer().hanging = True
    for number in range(1, 3):
        began = time.monotonic()
        assert (await part("layer"))["status"] == "degraded"
        assert QUICK / 2 < time.monotonic() - began < 1
        assert pings() == number
        await until(lambda: not hub.link._pings)  # that check is over
    the_layer().hanging = False
    assert (await part("layer"))["status"] == "ok"


@pytest.mark.usefixtures("quick")
async def test_layer_that_hangs_is_asked_again_after_a_second_only() -> None:
    await silent_hub()
    the_layer().hanging = True
    await ready()
    began = time.monotonic()
    for _ in range(20):
        assert (await part("layer"))["status"] == "degraded"
    assert time.monotonic() - began < 1.5  # not 20 times the longest check
    assert pings() == 1


@pytest.mark.usefixtures("quick")
async def test_ping_that_is_lost_degrades() -> None:
    hub = await started_hub()
    hub.link.handle = lambda message: None  # type: ignore[method-assign]
    assert (await part("layer"))["status"] == "degraded"
    await until(lambda: not hub.link._pings)


@pytest.mark.usefixtures("quick")
async def test_ping_of_a_layer_that_swallows_cancellations_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await started_hub()
    monkeypatch.setattr("realtime.link.PROBE_TIMEOUT", 0.2)
    swallowed = asyncio.Event()

    async def send(channel: str, message: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()

    the_layer().send = send  # type: ignore[method-assign]
    assert (await part("layer"))["status"] == "degraded"
    await swallowed.wait()
    assert hub.link._pings
    await until(lambda: not hub.link._pings)


# The database


@pytest.mark.usefixtures("fresh")
async def test_database_that_fails_degrades_and_keeps_its_secrets(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.fail = True
    code, answer = await ready()
    assert (code, answer["status"]) == (200, "degraded")
    assert answer["parts"]["database"] == {"status": "degraded", "reason": "ConnectionRefusedError"}
    assert answer["parts"]["layer"]["status"] == "ok"
    assert (await ready("?strict=1"))[0] == 503
    assert "event=check_failed part=database error=ConnectionRefusedError" in caplog.text
    database.fail = False
    assert (await ready("?strict=1"))[0] == 200


@pytest.mark.usefixtures("fresh", "quick")
async def test_database_that_hangs_degrades_and_holds_one_thread(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await started_hub()
    database.answers.clear()
    assert (await part("database"))["reason"] == "no answer for 0 s"
    began = time.monotonic()
    for _ in range(20):
        assert (await part("database"))["status"] == "degraded"
    assert time.monotonic() - began < 1.5  # not 20 times the longest check
    assert database.asked == database.busy == 1
    assert caplog.text.count("event=check_failed part=database") == 1
    database.answers.set()
    await until(lambda: not database.busy)
    assert (await part("database"))["status"] == "ok"


@pytest.mark.usefixtures("fresh", "quick")
async def test_database_that_hangs_and_fails_in_the_end_is_logged_with_its_error(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.answers.clear()
    await ready()
    database.fail = True
    database.answers.set()
    await until(lambda: "part=database error=ConnectionRefusedError" in caplog.text)


@pytest.mark.usefixtures("fresh", "quick")
async def test_database_is_in_doubt_while_all_threads_are_busy(
    database: Database, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.REALTIME = {"SYNC_THREADS": 1, "CONNECTION_REGISTRY": False}
    await started_hub()
    release = threading.Event()
    hung = asyncio.create_task(views.get_threads().run(release.wait))
    for _ in range(3):
        assert (await part("database"))["status"] == "degraded"
    release.set()
    await hung
    await until(lambda: database.asked)
    assert database.asked == 1


# Beats


@pytest.fixture
async def hub() -> Any:
    """A hub on a layer that looks as if it reached other processes, so that nobody beats."""
    use_layer(RemoteLayer())
    hub = await started_hub()
    hub.settings = hub.settings.model_copy(update={"HEARTBEAT_INTERVAL": 10.0})
    return hub


def ago(seconds: float) -> float:
    return time.monotonic() - seconds


async def test_beats_may_be_missing_soon_after_the_first_subscription(hub: Any) -> None:
    await subscribed(hub, "heartbeat")
    await subscribed(hub, "heartbeat")
    assert await part("heartbeat") == {"status": "ok", "subscribers": 2}


async def test_beats_that_never_came_degrade(hub: Any) -> None:
    await subscribed(hub, "heartbeat")
    hub.link.groups["heartbeat"].since = ago(31)
    await subscribed(hub, "heartbeat")  # one more changes nothing
    expected = {"status": "degraded", "subscribers": 2, "reason": "no beats arrive"}
    assert await part("heartbeat") == expected
    assert (await ready("?strict=1"))[0] == 503


async def test_beats_that_come_are_well(hub: Any) -> None:
    await subscribed(hub, "heartbeat")
    hub.link.groups["heartbeat"].since = ago(31)
    hub.act(BeatEvent(slot=1e9, sent_at=1e9))  # by another's clock, which may be wrong
    answer = await part("heartbeat")
    assert 0 <= answer.pop("last_beat_age") < 5
    assert answer == {"status": "ok", "subscribers": 1}


async def test_beats_that_have_ceased_degrade(hub: Any) -> None:
    await subscribed(hub, "heartbeat")
    hub.link.groups["heartbeat"].since = ago(100)
    hub.last_beat = ago(31)
    answer = await part("heartbeat")
    assert 31 <= answer.pop("last_beat_age") < 40
    assert answer == {"status": "degraded", "subscribers": 1, "reason": "no beats arrive"}


async def test_beats_of_earlier_subscribers_tell_nothing(hub: Any) -> None:
    first = await subscribed(hub, "heartbeat")
    hub.act(BeatEvent(slot=1e9, sent_at=1e9))
    hub.remove(first, "heartbeat")
    hub.last_beat = ago(100)
    assert (await part("heartbeat"))["status"] == "ok"
    await subscribed(hub, "heartbeat")
    assert await part("heartbeat") == {"status": "ok", "subscribers": 1}


# Many who ask


async def ask_many(count: int) -> list[Answer]:
    return await asyncio.gather(*(ready() for _ in range(count)))


async def test_many_requests_cost_one_check(database: Database) -> None:
    await silent_hub()
    answers = await ask_many(200)
    answers += [await ready() for _ in range(20)]
    assert {code for code, _ in answers} == {200}
    assert pings() == database.asked == 1


async def test_request_that_is_given_up_spoils_no_other(database: Database) -> None:
    await started_hub()
    database.answers.clear()
    given_up = asyncio.create_task(ready())
    await until(lambda: database.busy)
    other = asyncio.create_task(ready())
    given_up.cancel()
    await asyncio.wait([given_up])
    database.answers.set()
    assert (await other)[1]["status"] == "ok"
    assert database.asked == 1


@pytest.mark.usefixtures("fresh")
async def test_next_request_is_answered_anew(database: Database) -> None:
    await silent_hub()
    for number in range(1, 4):
        await ready()
        assert database.asked == pings() == number


async def test_hub_that_was_asked_about_can_be_forgotten() -> None:
    hub = await started_hub()
    await ready()
    await hub.stop()
    gone: Callable[[], Any] = weakref.ref(hub)
    del _hubs[asyncio.get_running_loop()], hub
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None
