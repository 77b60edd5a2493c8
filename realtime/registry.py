"""
The registry: it keeps the tables of who is connected, for people to look at. Nothing else depends on it.

On the event loop a change costs one entry in a log. Every second or so a thread writes what the log comes to, in one
transaction. While the database fails nothing is logged; once it is back, this server's rows are replaced by what the
hub knows then. Times that are compared are the database's, so hosts' clocks do not matter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from django.conf import settings as django_settings
from django.db import ProgrammingError, connections, models, reset_queries, router, transaction
from django.db.models import DurationField, ExpressionWrapper, F, Q
from django.db.models.functions import Now
from django.utils.timezone import make_naive

from . import servers
from .connection import Connection
from .hub import Hub, observers
from .layers import bounded
from .models import Connection as ConnectionRow
from .models import ServerProcess, Subscription
from .threads import Threads

M = TypeVar("M", bound=models.Model)
T = TypeVar("T")
Change = tuple[Connection, str | None, bool]
"""A connection, or a topic of it, and whether it came or went."""
Snapshot = Mapping[Connection, Sequence[str]]
"""Connections, each with its topics."""

logger = logging.getLogger("realtime.registry")

INTERVAL = 1.0
"""Seconds between two batches."""
RENEWAL = 4.0
"""Seconds after which the next batch is written, and ``last_seen`` with it, though nothing has changed."""
REAP_AFTER = 30.0
"""Seconds of silence after which a server counts as dead, and another one deletes its rows."""
REAP_INTERVAL = 10.0
"""Seconds between two looks for dead servers."""
TIMEOUT = 10.0
"""Seconds that the database may take, and a millisecond more for each row."""
STOP_TIMEOUT = 2.0
"""Seconds that the database may take to delete this server's rows when it stops."""
BACKOFF = (1.0, 2.0, 5.0)
"""Seconds between two tries while the database fails; the last repeats."""
BATCH = 200
"""Rows that one statement names or inserts: SQLite may take no more than 999 values."""

STARTED = time.time()
_thread = Threads(1)
"""The one thread that waits for the database. While it hangs the process can end nevertheless."""


class Batch(NamedTuple):
    """Say what there is to write: the connections that came and went, and the topics (with their connections' ids)."""

    came: list[Connection]
    went: list[str]
    added: list[tuple[str, str]]
    removed: list[tuple[str, str]]


def coalesce(log: Iterable[Change]) -> Batch:
    """Return what a log comes to: whatever came and went again is not in it."""
    changes: dict[tuple[Connection, str | None], bool] = {}
    gone = set()
    for connection, topic, here in log:
        if changes.setdefault((connection, topic), here) is not here:
            del changes[connection, topic]
        if topic is None and not here:
            gone.add(connection)
    batch = Batch([], [], [], [])
    for (connection, topic), here in changes.items():
        if topic is not None and connection not in gone:
            (batch.added if here else batch.removed).append((connection.id, topic))
        elif topic is None and here:
            batch.came.append(connection)
        elif topic is None:
            batch.went.append(connection.id)
    return batch


def fitted(model: type[models.Model], column: str, text: str) -> str:
    """Return ``text`` cut to the column's length, and without NUL and lone surrogates: PostgreSQL refuses them."""
    length = getattr(model._meta.get_field(column), "max_length", None)
    return text[:length].replace("\0", "").encode(errors="replace").decode()


def moment(seconds: float) -> datetime:
    """Return a time since the epoch as the site's ``USE_TZ`` has it stored."""
    value = datetime.fromtimestamp(seconds, UTC)
    return value if django_settings.USE_TZ else make_naive(value)


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Return ``items`` in pieces of what one statement can take."""
    iterator = iter(items)
    while piece := list(islice(iterator, BATCH)):
        yield piece


class Rows:
    """Be the rows of one server. Every method waits for the database, and raises whatever it raises."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.alias = router.db_for_write(ConnectionRow)

    def update(self, log: Iterable[Change]) -> bool:
        """Write what the log comes to, and renew ``last_seen``. Return False and do nothing where there is no row."""
        batch = coalesce(log)
        with transaction.atomic(using=self.alias):
            # Begin by writing: SQLite refuses at once to let a transaction write that has read what is outdated now.
            if not self._all(ServerProcess).filter(pk=self.server).update(last_seen=Now(), software=servers.software()):
                return False
            self._insert(batch.came, batch.added)
            by_topic = defaultdict(list)
            for key, topic in batch.removed:
                by_topic[fitted(Subscription, "topic", topic)].append(key)
            for topic, keys in by_topic.items():
                for removed in chunks(keys):
                    self._all(Subscription).filter(topic=topic, connection__in=removed).delete()
            for went in chunks(batch.went):
                self._all(Subscription).filter(connection__in=went).delete()
                self._all(ConnectionRow).filter(pk__in=went).delete()
        return True

    def replace(self, snapshot: Snapshot) -> None:
        """Write the server, these connections and their topics, and nothing else of it."""
        with transaction.atomic(using=self.alias):
            self._all(ServerProcess).filter(pk=self.server).delete()
            self._delete_connections(self.server)
            self._all(ServerProcess).create(
                id=self.server,
                host=socket.gethostname(),
                pid=os.getpid(),
                software=servers.software(),
                started=moment(STARTED),
                last_seen=Now(),
            )
            added = ((connection.id, topic) for connection, topics in snapshot.items() for topic in topics)
            self._insert(snapshot, added)

    def remove(self) -> None:
        """Delete everything of the server, and let go of the database."""
        try:
            with transaction.atomic(using=self.alias):
                self._all(ServerProcess).filter(pk=self.server).delete()
                self._delete_connections(self.server)
        finally:
            connections[self.alias].close()

    def reap(self) -> None:
        """Delete everything of servers that have been silent for ``REAP_AFTER``. Others may do so at the same time."""
        silent = Q(last_seen__lt=Now() - timedelta(seconds=REAP_AFTER))
        skip_locked = connections[self.alias].features.has_select_for_update_skip_locked
        for server in self._all(ServerProcess).filter(silent):
            with transaction.atomic(using=self.alias):
                # A row that is locked is being reaped, or its server is suspended while it writes: wait for neither.
                free = self._all(ServerProcess).select_for_update(skip_locked=skip_locked).filter(silent, pk=server.pk)
                if not self._all(ServerProcess).filter(pk__in=free.values("pk")).delete()[0]:
                    continue
                count = self._delete_connections(server.pk)
            logger.info("event=registry_reaped server=%s connections=%d", server, count)

    def guarded(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns. After an error the next work begins with another connection to the database."""
        try:
            return work()
        except BaseException:
            connections[self.alias].close()
            raise
        finally:
            reset_queries()  # with DEBUG each is kept, and only requests have an end at which they are dropped

    def _all(self, model: type[M]) -> models.QuerySet[M]:
        return model._default_manager.using(self.alias)

    def _insert(self, came: Iterable[Connection], added: Iterable[tuple[str, str]]) -> None:
        # Piece by piece: thousands of objects at once would have the garbage collector hold up the event loop.
        for piece in chunks(came):
            self._all(ConnectionRow).bulk_create(map(self._row, piece))
        for pairs in chunks(added):
            self._all(Subscription).bulk_create(
                Subscription(connection_id=key, topic=fitted(Subscription, "topic", topic)) for key, topic in pairs
            )

    def _row(self, connection: Connection) -> ConnectionRow:
        columns = ("user_id", "username", "address", "path", "user_agent")
        return ConnectionRow(
            id=connection.id,
            server_id=self.server,
            connected_at=moment(connection.connected_at),
            **{column: fitted(ConnectionRow, column, getattr(connection.peer, column)) for column in columns},
        )

    def _delete_connections(self, server: str) -> int:
        rows = self._all(ConnectionRow).filter(server=server)
        self._all(Subscription).filter(connection__in=rows.values("pk")).delete()
        return rows.delete()[0]


class Registry:
    """Observe one hub, and keep its rows. No call waits for the database, and none raises."""

    def __init__(self, hub: Hub) -> None:
        self.rows = Rows(hub.id)
        self._hub = hub
        self._log: list[Change] = []
        self._following = False
        """Whether the tables and the log together are what the hub knows."""
        self._failing = False
        self._began = hub.loop.time()
        self._written = self._reaped = -REAP_INTERVAL
        self._task = hub.loop.create_task(self._keep(), context=Context())

    @property
    def lag(self) -> float:
        """For how many seconds nothing was written; with nothing to write that is up to ``RENEWAL``."""
        return self._hub.loop.time() - max(self._written, self._began)

    def connected(self, connection: Connection) -> None:
        if self._following:
            self._log.append((connection, None, True))

    def disconnected(self, connection: Connection) -> None:
        if self._following:
            self._log.append((connection, None, False))

    def subscribed(self, connection: Connection, topic: str) -> None:
        if self._following:
            self._log.append((connection, topic, True))

    def unsubscribed(self, connection: Connection, topic: str) -> None:
        if self._following:
            self._log.append((connection, topic, False))

    async def stop(self) -> None:
        """Delete this server's rows, unless that takes over ``STOP_TIMEOUT``."""
        self._task.cancel()
        following, self._following = self._following, False
        try:
            await bounded(_thread.run_queued(self.rows.remove), STOP_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - each database raises its own kind
            if following:
                logger.warning("event=registry_left_behind error=%r", error)

    async def _keep(self) -> None:
        failures = 0
        while True:
            try:
                await self._write()
                failures = 0
            except Exception as error:  # noqa: BLE001 - each database raises its own kind
                self._failed(error)
                failures += 1
            await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF)) - 1] if failures else INTERVAL)

    async def _write(self) -> None:
        """Do what there is to do now. Raises whatever the database raises, and ``TimeoutError``."""
        now = self._hub.loop.time()
        if self._following and not self._log and now - self._written < RENEWAL:
            return
        log, self._log = self._log, []
        known = await self._wait(len(log), partial(self.rows.update, log))
        if not (known and self._following):
            await self._catch_up()
        self._written = now
        if now - self._reaped >= REAP_INTERVAL:
            self._reaped = now
            await self._wait(0, self.rows.reap)

    async def _catch_up(self) -> None:
        # The snapshot is taken and the log begun between two turns of the event loop, which makes them fit.
        snapshot = {connection: tuple(connection.topics) for connection in self._hub.connections.values()}
        self._log = []
        self._following = True
        await self._wait(len(snapshot) + sum(map(len, snapshot.values())), partial(self.rows.replace, snapshot))
        self._failing = False
        logger.info("event=registry_caught_up connections=%d", len(snapshot))

    async def _wait(self, rows: int, work: Callable[[], T]) -> T:
        return await bounded(_thread.run_queued(self.rows.guarded, work), TIMEOUT + rows / 1000)

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            unmigrated = isinstance(error, ProgrammingError) or "no such" in str(error)
            hint = " hint='is the database up to date? run manage.py migrate'" if unmigrated else ""
            logger.warning("event=registry_failed error=%r%s", error, hint)
        self._failing = True
        self._following = False
        self._log = []


def observe(hub: Hub) -> Registry | None:
    """Keep the rows of ``hub``, unless the site has no database or switched the registry off."""
    engine = connections.settings[router.db_for_write(ConnectionRow)]["ENGINE"]
    if not hub.settings.CONNECTION_REGISTRY or engine == "django.db.backends.dummy":
        return None
    return Registry(hub)


def freshness() -> list[tuple[ServerProcess, float]]:
    """Return the servers with how many seconds ago each wrote last, by the database's clock."""
    silence = ExpressionWrapper(Now() - F("last_seen"), output_field=DurationField())
    return [(server, server.silence.total_seconds()) for server in ServerProcess.objects.annotate(silence=silence)]


def install() -> None:
    """Observe every hub from now on. Doing so twice changes nothing."""
    if observe not in observers:
        observers.append(observe)
