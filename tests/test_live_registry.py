"""The registry on real databases: its tables tell who is connected, and no trouble with them reaches a client."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .live import SERVERS, TIMEOUT, Client, Server, eventually, manage
from .postgres import Postgres

LONGEST_STOP = 10.0
HURRY = {
    "REALTIME_CONNECTION_REGISTRY": "1",
    "REGISTRY_INTERVAL": "0.2",
    "REGISTRY_REAP_AFTER": "3",
    "REGISTRY_REAP_INTERVAL": "1",
    "REGISTRY_RENEWAL": "0.5",
}


class Sqlite:
    """Be a database in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, timeout=TIMEOUT)) as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody else write."""
        with closing(sqlite3.connect(self.path, timeout=TIMEOUT, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")


Database = Sqlite | Postgres


@contextmanager
def killed(postgres: Postgres) -> Iterator[None]:
    postgres.kill()
    try:
        yield
    finally:
        postgres.start()


@contextmanager
def stopped(postgres: Postgres) -> Iterator[None]:
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


@contextmanager
def frozen(postgres: Postgres) -> Iterator[None]:
    postgres.freeze()
    try:
        yield
    finally:
        postgres.thaw()


def migrate(database: Database) -> None:
    migration = manage("migrate", "--verbosity=0", DATABASE_URL=database.url)
    assert migration.wait() == 0, migration.output


@contextmanager
def servers(database: Database, **env: str) -> Iterator[list[Server]]:
    """Run both servers on one database."""
    with ExitStack() as stack:
        patience = "6" if isinstance(database, Sqlite) else "2"  # SQLite gives up waiting after 5 seconds by itself
        env = {**HURRY, "REGISTRY_TIMEOUT": patience, "DATABASE_URL": database.url, **env}
        started = [Server(kind, **env) for kind in SERVERS]
        for server in started:
            stack.callback(server.stop)
        yield [server.wait_until_up() for server in started]


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Sqlite:
    return Sqlite(tmp_path_factory.mktemp("registry") / "site.sqlite3")


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """A database with the tables."""
    database: Database = request.getfixturevalue(request.param)
    migrate(database)
    return database


@pytest.fixture(scope="module")
def shared(database: Database) -> Iterator[list[Server]]:
    """Both servers on the database: they live through all that happens to it."""
    with servers(database) as started:
        yield started


@pytest.fixture
def pair(shared: list[Server]) -> Iterator[list[Server]]:
    begin = [len(server.lines) for server in shared]
    try:
        yield shared
    finally:
        for server, start in zip(shared, begin, strict=True):
            print(f"-- {server.kind}", *server.lines[start:], sep="\n")  # noqa: T201


def client(server: Server, agent: str, path: str = "") -> Client:
    return Client(server.url + path, user_agent_header=agent)


def table(database: Database) -> list[tuple[str, list[str]]]:
    """Return each connection's user agent and topics."""
    found: dict[str, tuple[str, list[str]]] = {}
    for key, agent, topic in database.ask(
        "SELECT c.id, c.user_agent, t.topic FROM realtime_connection c "
        "LEFT JOIN realtime_subscription t ON t.connection_id = c.id ORDER BY c.user_agent, t.topic"
    ):
        found.setdefault(key, (agent, []))[1].extend([topic] if topic is not None else [])
    return list(found.values())


def count(database: Database, name: str) -> int:
    return int(database.ask(f"SELECT count(*) FROM realtime_{name}")[0][0])


def server_rows(database: Database, server: Server) -> int:
    return int(database.ask(f"SELECT count(*) FROM realtime_serverprocess WHERE pid = {server.pid}")[0][0])


async def all_of(*work: Callable[[], Any]) -> list[Any]:
    return await asyncio.gather(*map(asyncio.to_thread, work))


# The tables


async def test_rows_tell_who_is_connected(pair: list[Server], database: Database) -> None:
    for server in pair:
        async with client(server, "one", "ws/?token=") as one, client(server, "two") as two:
            for topic in ("news", "odd", "heartbeat"):
                await one.send({"type": "subscribe_request", "topic": topic})
            await eventually(lambda: table(database) == [("one", ["heartbeat", "news"]), ("two", [])], 5)
            [row] = database.ask(
                "SELECT s.pid, s.software, c.address, c.path, c.user_id, c.username FROM realtime_connection c "
                "JOIN realtime_serverprocess s ON s.id = c.server_id WHERE c.user_agent = 'one'"
            )
            assert row[:1] + row[2:] == (server.pid, "127.0.0.1", "/ws/", "", "")
            await eventually(lambda server=server: server_software(database, server).startswith(f"{server.kind} "))
            await two.subscribe("news")
            await one.send({"type": "unsubscribe_request", "topic": "news"})
            await eventually(lambda: table(database) == [("one", ["heartbeat"]), ("two", ["news"])], 5)
            await one.ws.close()
            await eventually(lambda: table(database) == [("two", ["news"])], 5)
        await eventually(lambda: table(database) == [], 5)
        assert count(database, "subscription") == 0


def server_software(database: Database, server: Server) -> str:
    return str(database.ask(f"SELECT software FROM realtime_serverprocess WHERE pid = {server.pid}")[0][0])


async def test_last_seen_is_renewed_while_nothing_happens(pair: list[Server], database: Database) -> None:
    query = "SELECT pid, last_seen FROM realtime_serverprocess"
    async with client(pair[0], "one"), client(pair[1], "two"):  # Daphne begins with its first connection
        await eventually(lambda: len(database.ask(query)) == 2)
        before = dict(database.ask(query))
        await eventually(lambda: all(seen > before[pid] for pid, seen in database.ask(query)), 6)


async def test_thousand_connections_come_and_go(pair: list[Server], database: Database) -> None:
    def counts() -> tuple[int, int]:
        return count(database, "connection"), count(database, "subscription")

    async with AsyncExitStack() as stack:
        for _ in range(10):
            clients = [client(server, "many") for server in pair for _ in range(50)]
            await asyncio.gather(*map(stack.enter_async_context, clients))
            await asyncio.gather(*(one.subscribe("news") for one in clients))
        await eventually(lambda: counts() == (1000, 1000))
    await eventually(lambda: counts() == (0, 0))
    assert count(database, "serverprocess") == 2


# Servers that end


async def test_stopped_server_leaves_no_row(pair: list[Server], database: Database) -> None:
    with servers(database) as own:
        async with client(own[0], "own") as one, client(own[1], "own") as two:
            for one_of_them in (one, two):
                await one_of_them.subscribe("news")
            await eventually(lambda: table(database) == [("own", ["news"])] * 2)
            for server in own:
                server.signal(signal.SIGTERM)
            await all_of(*(server.wait for server in own))
        assert [server_rows(database, server) for server in own] == [0, 0]
        assert (count(database, "connection"), count(database, "subscription")) == (0, 0)
        assert not [server.output for server in own if "Traceback" in server.output or "left_behind" in server.output]


async def test_dead_servers_are_reaped_and_suspended_ones_come_back(pair: list[Server], database: Database) -> None:
    start = [len(server.lines) for server in pair]
    with servers(database) as own:
        dead, suspended = own if isinstance(database, Sqlite) else reversed(own)
        async with client(pair[0], "0"), client(suspended, "1") as one, client(dead, "2") as two:
            await one.subscribe("news")
            await two.subscribe("news")
            await eventually(lambda: table(database) == [("0", []), ("1", ["news"]), ("2", ["news"])])
            suspended.signal(signal.SIGSTOP)
            dead.signal(signal.SIGKILL)
            await eventually(lambda: table(database) == [("0", [])])
            assert [count(database, name) for name in ("serverprocess", "subscription")] == [2, 0]
            suspended.signal(signal.SIGCONT)
            await eventually(lambda: table(database) == [("0", []), ("1", ["news"])])
            await one.echo()
        assert "registry_failed" not in suspended.output
        lines = [line for server, begin in zip(pair, start, strict=True) for line in server.lines[begin:]]
        for server in own:
            [line] = [line for line in lines if "event=registry_reaped" in line and f":{server.pid} " in line]
            assert line.endswith("connections=1")


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_reaper_waits_for_no_row_that_another_holds(pair: list[Server], database: Postgres) -> None:
    columns = "(id, host, pid, software, started, last_seen)"
    live = "SELECT count(*) FROM realtime_serverprocess WHERE last_seen > %s + interval '2.5 seconds'"
    start = [len(server.lines) for server in pair]
    async with client(pair[0], "one"), client(pair[1], "two"):
        database.ask(f"INSERT INTO realtime_serverprocess {columns} VALUES ('x', 'h', 1, '', now(), '2000-01-01')")
        with psycopg.connect(database.url) as another:
            another.execute("SELECT * FROM realtime_serverprocess WHERE id = 'x' FOR UPDATE")
            [[now]] = database.ask("SELECT now()")
            await eventually(lambda: database.ask(live, now) == [(2,)])  # meanwhile each has looked for dead servers
            assert count(database, "serverprocess") == 3
        await eventually(lambda: count(database, "serverprocess") == 2)
    for server, begin in zip(pair, start, strict=True):
        assert not [line for line in server.lines[begin:] if "registry_failed" in line]


# Databases in trouble


class Load:
    """Be clients that stay and subscribe to this and that, and clients that come and go."""

    def __init__(self) -> None:
        self.rounds = 0
        self.topics: dict[str, set[str]] = {}
        """The topics of those that stay."""
        self.going = asyncio.Event()
        self.over = False
        self._resting: set[asyncio.Task[Any] | None] = set()

    async def stay(self, server: Server, agent: str) -> None:
        topics = self.topics[agent] = set()
        number = 0
        async with client(server, agent) as one:
            while await self._may_go_on():
                topic = f"many-{number % 7}"
                kind = "unsubscribe" if topic in topics else "subscribe"
                answer = await one.ask({"type": f"{kind}_request", "topic": topic})
                assert (answer["type"], answer["status"]) == (f"{kind}_response", "OK")
                topics ^= {topic}
                number += 1 + number // 7 % 2
                self.rounds += 1
                await asyncio.sleep(0.01)
            await one.echo()

    async def come_and_go(self, server: Server) -> None:
        while await self._may_go_on():
            async with client(server, "passer-by") as one:
                await one.subscribe("news")
                await asyncio.sleep(0.01)
                await one.echo()

    async def _may_go_on(self) -> bool:
        self._resting.add(asyncio.current_task())
        await self.going.wait()
        self._resting.discard(asyncio.current_task())
        return not self.over

    async def go_on(self, rounds: int) -> None:
        """Go on until so much more has happened."""
        self.going.set()
        rounds += self.rounds
        await eventually(lambda: self.rounds >= rounds)

    async def rest(self, tasks: int) -> None:
        """Hold on; who stays, stays connected."""
        self.going.clear()
        await eventually(lambda: len(self._resting) == tasks)

    @property
    def expected(self) -> list[tuple[str, list[str]]]:
        return sorted((agent, sorted(topics)) for agent, topics in self.topics.items())


@asynccontextmanager
async def under_load(pair: list[Server]) -> AsyncIterator[Load]:
    load = Load()
    async with asyncio.TaskGroup() as group:
        for server in pair:
            for number in range(4):
                group.create_task(load.stay(server, f"{server.kind}-{number}"))
            group.create_task(load.come_and_go(server))
        try:
            yield load
        finally:
            load.over = True
            load.going.set()


async def test_outages_cost_one_line_each_and_no_connection(pair: list[Server], database: Any) -> None:
    async with under_load(pair) as load:
        await load.go_on(200)
        await eventually(lambda: [server_rows(database, server) for server in pair] == [1, 1])
        for outage in [Sqlite.locked] if isinstance(database, Sqlite) else [killed, frozen, stopped]:
            start = [len(server.lines) for server in pair]
            with outage(database):
                load.going.set()
                for server, begin in zip(pair, start, strict=True):
                    await asyncio.to_thread(server.wait_for_line, "event=registry_failed", start=begin)
                await load.go_on(700)
            for server, begin in zip(pair, start, strict=True):
                await asyncio.to_thread(server.wait_for_line, "event=registry_caught_up", start=begin)
            await load.go_on(200)
            await load.rest(10)
            await eventually(lambda: table(database) == load.expected)
            for server, begin in zip(pair, start, strict=True):
                assert len([line for line in server.lines[begin:] if "event=registry_failed" in line]) == 1
                await server.assert_calm(begin)
    await eventually(lambda: table(database) == [])


async def test_frozen_database_does_not_hold_up_a_stop(postgres: Postgres) -> None:
    migrate(postgres)
    with servers(postgres) as own:
        async with client(own[0], "own"), client(own[1], "own"):
            await eventually(lambda: count(postgres, "connection") == 2)
            with frozen(postgres):
                began = time.monotonic()
                for server in own:
                    server.signal(signal.SIGTERM)
                await all_of(*(server.wait for server in own))
                assert time.monotonic() - began < LONGEST_STOP
    for server in own:
        server.wait_for_line("event=registry_left_behind")


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without any table."""
    if request.param == "sqlite":
        yield Sqlite(tmp_path / "empty.sqlite3")
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    postgres.ask("CREATE DATABASE empty")
    url, postgres.url = postgres.url, postgres.url.removesuffix("postgres") + "empty"
    try:
        yield postgres
    finally:
        postgres.url = url


async def test_unmigrated_database_costs_one_line_until_it_is_migrated(empty: Database) -> None:
    with servers(empty) as own:
        async with client(own[0], "one") as one, client(own[1], "two") as two:
            for client_of, server in ((one, own[0]), (two, own[1])):
                await asyncio.to_thread(server.wait_for_line, "event=registry_failed.*manage.py migrate")
                await client_of.subscribe("news")
                await client_of.echo()
            await asyncio.to_thread(migrate, empty)
            await eventually(lambda: table(empty) == [("one", ["news"]), ("two", ["news"])])
        assert [server.output.count("registry_failed") for server in own] == [1, 1]
        assert not [server.output for server in own if "Traceback" in server.output]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_registry_that_is_off_writes_nothing(pair: list[Server], database: Database) -> None:
    with servers(database, REALTIME_CONNECTION_REGISTRY="0") as own:
        async with client(own[0], "own") as one, client(own[1], "own") as two, client(pair[0], "other"):
            await one.subscribe("news")
            await two.subscribe("news")
            await eventually(lambda: table(database) != [])
            async with client(pair[0], "later"):
                await eventually(lambda: table(database) == [("later", []), ("other", [])])
        assert [server_rows(database, server) for server in own] == [0, 0]
