"""The registry in one process: what a log comes to, the rows, and what the event loop's side does about them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, ProgrammingError, connection, connections
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from realtime import registry, servers
from realtime.hub import Connection, Hub, Peer, observers
from realtime.models import Connection as ConnectionRow
from realtime.models import ServerProcess, Subscription
from realtime.registry import Registry, Rows, coalesce, fitted, freshness, observe
from realtime.threads import Threads

from .memory import ListWire, clean_process, local_connection, started_hub, subscribed, until  # noqa: F401


def make(**peer: str) -> Connection:
    return Connection(ListWire(), Peer(**peer))


# What a log comes to


def test_connection_that_came_and_went_is_nothing() -> None:
    one = make()
    log = [(one, None, True), (one, "news", True), (one, "odd", True), (one, "odd", False), (one, None, False)]
    assert coalesce(log) == ([], [], [], [])


def test_topic_that_came_and_went_is_nothing() -> None:
    one = make()
    assert coalesce([(one, "news", True), (one, "news", False)]) == ([], [], [], [])
    assert coalesce([(one, "news", False), (one, "news", True)]) == ([], [], [], [])
    assert coalesce([(one, "news", True), (one, "news", False), (one, "news", True)]).added == [(one.id, "news")]


def test_topics_of_a_connection_that_went_are_not_named() -> None:
    one = make()
    assert coalesce([(one, "a", True), (one, "b", False), (one, None, False)]) == ([], [one.id], [], [])


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, None, "a", "b"]))), st.integers(0, 20))
def test_batches_come_to_what_the_log_does(steps: list[tuple[int, str | None]], cut: int) -> None:
    everybody = [make() for _ in range(4)]
    actual: dict[str, set[str]] = {}
    came: set[Connection] = set()
    log: list[registry.Change] = []
    for number, topic in steps:
        one = everybody[number]
        if topic is None and one not in came:
            log.append((one, None, True))
            actual[one.id] = set()
            came.add(one)
        elif topic is None and actual.pop(one.id, None) is not None:
            log.append((one, None, False))
        elif topic is not None and one.id in actual:
            log.append((one, topic, topic not in actual[one.id]))
            actual[one.id] ^= {topic}
    written: dict[str, set[str]] = {}
    for batch in (coalesce(log[:cut]), coalesce(log[cut:])):
        written.update((one.id, set()) for one in batch.came)
        for key, topic in batch.added:
            assert topic not in written[key]
            written[key].add(topic)
        for key, topic in batch.removed:
            written[key].remove(topic)
        for key in batch.went:
            del written[key]
    assert written == actual


# Texts


@pytest.mark.parametrize(
    ("text", "column"),
    [("a\0b", "ab"), ("\ud800x", "?x"), ("ü☂🎉", "ü☂🎉"), ("x" * 300, "x" * 255), ("", "")],
)
def test_text_is_made_to_fit_its_column(text: str, column: str) -> None:
    assert fitted(ConnectionRow, "path", text) == column


def test_moment_is_naive_where_the_site_stores_naive_times(settings: Any) -> None:
    assert registry.moment(0).isoformat() == "1970-01-01T00:00:00+00:00"
    settings.USE_TZ = False
    assert registry.moment(0).isoformat() == "1970-01-01T00:00:00"


# Rows


@pytest.fixture
def rows(db: None) -> Rows:
    """The rows of a server that has just begun."""
    rows = Rows("a" * 32)
    rows.replace({})
    return rows


def table() -> dict[str, list[str]]:
    """Return the connections' ids in the tables with their topics."""
    found: dict[str, list[str]] = {key: [] for key in ConnectionRow.objects.values_list("pk", flat=True)}
    for key, topic in Subscription.objects.values_list("connection", "topic").order_by("pk"):
        found[key].append(topic)
    return found


def statements(work: Callable[[], Any]) -> list[str]:
    """Return the SQL that ``work`` runs, but for that of transactions."""
    with CaptureQueriesContext(connection) as queries:
        work()
    return [query["sql"] for query in queries if "SAVEPOINT" not in query["sql"]]


def age(rows: Rows, seconds: float) -> None:
    """Let the server have been silent for so long."""
    ServerProcess.objects.filter(pk=rows.server).update(last_seen=Now() - timedelta(seconds=seconds))


def test_row_tells_who_is_connected(rows: Rows) -> None:
    peer = {"user_id": "7", "username": "ada", "address": "::1", "path": "/ws/", "user_agent": "test/1"}
    one = make(**peer)
    one.connected_at = 1000.25
    assert rows.update([(one, None, True), (one, "news", True), (one, "odd", True)])
    row = ConnectionRow.objects.get()
    assert {name: getattr(row, name) for name in peer} == peer
    assert (row.pk, row.server_id, row.connected_at.timestamp()) == (one.id, rows.server, 1000.25)
    assert table() == {one.id: ["news", "odd"]}


def test_row_tells_of_the_server(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ServerProcess.objects.get()
    assert server.host == registry.socket.gethostname()
    assert server.pid == registry.os.getpid()
    assert server.started.timestamp() == pytest.approx(registry.STARTED, abs=0.001)
    monkeypatch.setattr(servers, "_software", "daphne 4.2.3")
    rows.update([])
    server.refresh_from_db()
    assert server.software == "daphne 4.2.3"


def test_session_is_not_written(rows: Rows) -> None:
    one = Connection(ListWire(), Peer(session="secret"))
    assert "secret" not in " ".join(statements(lambda: rows.update([(one, None, True)])))


def test_texts_that_no_database_takes_are_mended(rows: Rows) -> None:
    one = make(path="/\0\ud800" + "x" * 500, user_agent="\udfff")
    topic = "n\0ews\ud800"
    rows.update([(one, None, True), (one, topic, True)])
    row = ConnectionRow.objects.get()
    assert (len(row.path), row.path[:3], row.user_agent) == (254, "/?x", "?")
    assert table() == {one.id: ["news?"]}
    rows.update([(one, topic, False)])
    assert table() == {one.id: []}


def test_update_takes_away_what_went(rows: Rows) -> None:
    one, two = make(), make()
    rows.replace({one: ["a", "b"], two: ["a", "b"]})
    rows.update([(one, "a", False), (two, None, False)])
    assert table() == {one.id: ["b"]}


def test_update_without_changes_is_one_statement(rows: Rows) -> None:
    [update] = statements(lambda: rows.update([]))
    assert update.startswith('UPDATE "realtime_serverprocess"')


def test_deletions_are_one_statement_a_table(rows: Rows) -> None:
    one = make()
    rows.replace({one: ["a"]})
    sql = statements(lambda: rows.update([(one, None, False)]))
    assert [text.split(" WHERE")[0] for text in sql[1:]] == [
        'DELETE FROM "realtime_subscription"',
        'DELETE FROM "realtime_connection"',
    ]
    assert [text.split()[0] for text in statements(rows.remove)] == ["DELETE"] * 3


def test_thousands_come_and_go_in_few_statements(rows: Rows) -> None:
    everybody = [make() for _ in range(3000)]
    came = [change for one in everybody for change in ((one, None, True), (one, "a", True), (one, "b", True))]
    assert len(statements(lambda: rows.update(came))) < 80
    assert len(table()) == 3000
    assert len(statements(lambda: rows.update([(one, "a", False) for one in everybody]))) < 20
    assert set(map(tuple, table().values())) == {("b",)}
    assert len(statements(lambda: rows.update([(one, None, False) for one in everybody]))) < 40
    assert table() == {}
    assert not Subscription.objects.exists()


def test_update_writes_nothing_where_the_server_has_no_row(rows: Rows) -> None:
    ServerProcess.objects.all().delete()
    assert not rows.update([(make(), None, True)])
    assert table() == {}


def test_replace_leaves_only_the_snapshot(rows: Rows) -> None:
    one, two = make(), make()
    rows.replace({one: ["a"]})
    rows.replace({two: ["b", "c"]})
    assert table() == {two.id: ["b", "c"]}
    assert ServerProcess.objects.count() == 1


def test_removing_leaves_the_rows_of_others(rows: Rows) -> None:
    other, one, two = Rows("b" * 32), make(), make()
    rows.replace({one: ["a"]})
    other.replace({two: ["b"]})
    rows.remove()
    assert table() == {two.id: ["b"]}
    assert ServerProcess.objects.get().pk == other.server


def test_dead_servers_are_reaped(rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime")
    dead, slow, one, two = Rows("b" * 32), Rows("c" * 32), make(), make()
    dead.replace({one: ["a"]})
    slow.replace({two: ["b"]})
    age(dead, registry.REAP_AFTER + 1)
    age(slow, registry.REAP_AFTER - 1)
    rows.reap()
    rows.reap()
    assert table() == {two.id: ["b"]}
    assert {server.pk for server in ServerProcess.objects.all()} == {rows.server, slow.server}
    name = f"{registry.socket.gethostname()}:{registry.os.getpid()}"
    assert [record.getMessage() for record in caplog.records] == [f"event=registry_reaped server={name} connections=1"]


def test_freshness_tells_how_long_each_server_has_been_silent(rows: Rows) -> None:
    age(rows, 12)
    [(server, seconds)] = freshness()
    assert server.pk == rows.server
    assert seconds == pytest.approx(12, abs=2)


def test_queries_are_not_kept_in_debug_mode(rows: Rows, settings: Any) -> None:
    settings.DEBUG = True
    rows.guarded(lambda: rows.update([]))
    assert not connection.queries


def test_connection_is_dropped_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(connections["default"], "close", lambda: closed.append(True))
    with pytest.raises(ZeroDivisionError):
        Rows("a" * 32).guarded(lambda: 1 / 0)
    assert closed


# The event loop's side


class FakeRows(Rows):
    """Rows that keep in memory what is written, and fail or hang while told so."""

    def __init__(self) -> None:
        super().__init__("a" * 32)
        self.calls: list[str] = []
        self.table: dict[str, list[str]] | None = None
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.waiting = threading.Event()

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if not self.free.is_set():
            self.waiting.set()
        assert self.free.wait(20)
        if self.error is not None:
            raise self.error

    def update(self, log: Any) -> bool:
        self._answer("update")
        if self.table is None:
            return False
        batch = coalesce(log)
        self.table.update((one.id, []) for one in batch.came)
        for key, topic in batch.added:
            self.table[key].append(topic)
        for key, topic in batch.removed:
            self.table[key].remove(topic)
        for key in batch.went:
            del self.table[key]
        return True

    def replace(self, snapshot: Any) -> None:
        self._answer("replace")
        self.table = {one.id: list(topics) for one, topics in snapshot.items()}

    def remove(self) -> None:
        self._answer("remove")
        self.table = None

    def reap(self) -> None:
        self._answer("reap")


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> AsyncIterator[FakeRows]:
    """The rows of this loop's hub; hurry and a thread of the test's own are included."""
    caplog.set_level(logging.INFO, "realtime.registry")
    for constant, value in {"INTERVAL": 0.005, "BACKOFF": (0.005,), "TIMEOUT": 0.2, "STOP_TIMEOUT": 0.2}.items():
        monkeypatch.setattr(registry, constant, value)
    fake = FakeRows()
    monkeypatch.setattr(registry, "_thread", Threads(1))
    monkeypatch.setattr(registry, "Rows", lambda server: fake)
    monkeypatch.setattr("realtime.hub.observers", [Registry])
    yield fake
    fake.free.set()


def the_registry(hub: Hub) -> Registry:
    [observer] = hub.observers
    assert isinstance(observer, Registry)
    return observer


def known(hub: Hub) -> dict[str, list[str]]:
    return {one.id: list(one.topics) for one in hub.connections.values()}


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "realtime.registry"]
    return [message.split()[0].removeprefix("event=registry_") for message in messages]


async def test_table_follows_the_hub(fake: FakeRows) -> None:
    hub = await started_hub()
    await until(lambda: fake.table == {})
    one, two = await subscribed(hub, "news", "odd"), local_connection(hub)
    await until(lambda: fake.table == {one.id: ["news", "odd"], two.id: []})
    hub.remove(one, "news")
    hub.disconnected(two)
    await until(lambda: fake.table == {one.id: ["odd"]})
    hub.disconnected(one)
    await until(lambda: fake.table == {})
    assert fake.calls[:3] == ["update", "replace", "reap"]
    assert fake.calls.count("replace") == 1


async def test_nothing_is_written_while_nothing_changes(fake: FakeRows, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await started_hub()
    await until(lambda: "reap" in fake.calls)
    calls = len(fake.calls)
    for _ in range(3):
        came = len(fake.calls)
        one = local_connection(hub)
        await until(lambda came=came: len(fake.calls) > came)
        await until(lambda one=one: fake.table is not None and one.id in fake.table)
    assert fake.calls[calls:] == ["update"] * 3
    monkeypatch.setattr(registry, "RENEWAL", 0.0)
    await until(lambda: len(fake.calls) > calls + 5)


async def test_failure_is_told_once_and_nothing_is_kept(fake: FakeRows, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    await until(lambda: events(caplog) == ["caught_up"])
    fake.error = OperationalError("the database is down")
    one = await subscribed(hub, "news")
    await until(lambda: "failed" in events(caplog))
    for _ in range(100):
        two = await subscribed(hub, "odd")
    assert the_registry(hub)._log == []
    calls = len(fake.calls)
    await until(lambda: len(fake.calls) > calls + 3)
    assert set(fake.calls[calls:]) == {"update"}
    fake.error = None
    await until(lambda: events(caplog) == ["caught_up", "failed", "caught_up"])
    assert fake.table == known(hub)
    assert len(known(hub)) == 101
    hub.disconnected(two)
    await until(lambda: fake.table == known(hub))
    assert one.id in known(hub)


async def test_each_outage_is_told(fake: FakeRows, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    await until(lambda: events(caplog) == ["caught_up"])
    for number in range(3):
        fake.error = OperationalError("the database is down")
        local_connection(hub)
        await until(lambda number=number: events(caplog).count("failed") == number + 1)
        fake.error = None
        await until(lambda: events(caplog)[-1] == "caught_up")
        assert fake.table == known(hub)
    assert events(caplog) == ["caught_up"] + ["failed", "caught_up"] * 3


@pytest.mark.parametrize(
    "error", [OperationalError("no such table: realtime_serverprocess"), ProgrammingError("relation does not exist")]
)
async def test_missing_table_is_told_with_a_hint(
    fake: FakeRows, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    fake.error = error
    await started_hub()
    await until(lambda: "failed" in events(caplog))
    assert "manage.py migrate" in caplog.text
    assert repr(error) in caplog.text


async def test_hanging_database_is_told_once_and_nothing_is_kept(
    fake: FakeRows, caplog: pytest.LogCaptureFixture
) -> None:
    hub = await started_hub()
    await until(lambda: events(caplog) == ["caught_up"])
    fake.free.clear()
    await subscribed(hub, "news")
    await until(lambda: "failed" in events(caplog))
    calls = len(fake.calls)
    await subscribed(hub, "odd")
    assert the_registry(hub)._log == []
    await until(lambda: registry._thread._work.qsize() > 1)  # tries that were given up
    assert len(fake.calls) == calls
    fake.free.set()
    await until(lambda: events(caplog) == ["caught_up", "failed", "caught_up"])
    assert fake.table == known(hub)


async def test_changes_during_a_write_are_written_next(fake: FakeRows) -> None:
    hub = await started_hub()
    await until(lambda: fake.table == {})
    fake.free.clear()
    one = await subscribed(hub, "news")
    await until(fake.waiting.is_set)
    await subscribed(hub, "odd")
    hub.disconnected(one)
    fake.free.set()
    await until(lambda: fake.table == known(hub))
    assert fake.calls.count("replace") == 1


async def test_changes_while_catching_up_are_not_lost(fake: FakeRows) -> None:
    fake.free.clear()
    hub = await started_hub()
    await until(fake.waiting.is_set)
    one = await subscribed(hub, "news")
    fake.waiting.clear()
    fake.free.set()
    await until(lambda: "replace" in fake.calls)
    await subscribed(hub, "odd")
    hub.disconnected(one)
    await until(lambda: fake.table == known(hub))


async def test_server_that_was_reaped_writes_everything_again(
    fake: FakeRows, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RENEWAL", 0.0)
    hub = await started_hub()
    await subscribed(hub, "news")
    await until(lambda: fake.table == known(hub))
    fake.table = None
    await until(lambda: events(caplog) == ["caught_up", "caught_up"])
    assert fake.table == known(hub)


async def test_failing_reaper_is_told_and_keeps_nothing_from_being_written(
    fake: FakeRows, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OperationalError("deadlock")

    monkeypatch.setattr(fake, "reap", fail)
    hub = await started_hub()
    await until(lambda: events(caplog) == ["caught_up", "failed", "caught_up"])
    await subscribed(hub, "news")
    await until(lambda: fake.table == known(hub))
    assert events(caplog) == ["caught_up", "failed", "caught_up"]


async def test_stop_removes_the_rows(fake: FakeRows, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    await until(lambda: events(caplog) == ["caught_up"])
    await hub.stop()
    assert fake.table is None
    assert events(caplog) == ["caught_up"]
    the_registry(hub).connected(make())
    assert the_registry(hub)._log == []


async def test_stop_waits_only_so_long_for_the_database(fake: FakeRows, caplog: pytest.LogCaptureFixture) -> None:
    hub = await started_hub()
    await until(lambda: events(caplog) == ["caught_up"])
    fake.free.clear()
    async with asyncio.timeout(registry.STOP_TIMEOUT + 1):
        await hub.stop()
    assert events(caplog) == ["caught_up", "left_behind"]


async def test_stop_says_nothing_more_of_a_database_that_failed(
    fake: FakeRows, caplog: pytest.LogCaptureFixture
) -> None:
    fake.error = OperationalError("the database is down")
    hub = await started_hub()
    await until(lambda: "failed" in events(caplog))
    await hub.stop()
    assert events(caplog) == ["failed"]


# Whether there is a registry


@pytest.fixture
def switched_on(settings: Any) -> Iterator[Any]:
    """The site's settings with the registry on."""
    settings.REALTIME = {**django_settings.REALTIME, "CONNECTION_REGISTRY": True}
    return settings


async def test_hub_is_observed(switched_on: Any, fake: FakeRows) -> None:
    registry_of_hub = observe(await started_hub())
    assert isinstance(registry_of_hub, Registry)
    await registry_of_hub.stop()


async def test_hub_is_not_observed_where_the_registry_is_off() -> None:
    assert observe(await started_hub()) is None


async def test_hub_is_not_observed_where_the_site_has_no_database(
    switched_on: Any, fake: FakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await started_hub()
    monkeypatch.setitem(connections.settings["default"], "ENGINE", "django.db.backends.dummy")
    assert observe(hub) is None


def test_installing_twice_changes_nothing() -> None:
    assert observers.count(observe) == 1
    registry.install()
    assert observers.count(observe) == 1
