"""Health over real connections: what load balancers are told while things are killed, frozen and stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .live import SERVERS, TIMEOUT, Client, Redis, Server, System, eventually, running, running_system
from .test_live_outages import RESUME, frozen, killed

IN_TIME = 1.5
"""Seconds within which a probe is answered, whatever hangs."""
PASSWORD = "s3cr3t"


class Answer(NamedTuple):
    """Be what a probe gets, and how many seconds it took."""

    code: int
    content: Any
    seconds: float

    @property
    def status(self) -> str:
        return str(self.content["status"])

    def reason(self, part: str) -> str:
        return str(self.content["parts"][part].get("reason", ""))


class Prober:
    """Probe on one connection, which is kept open."""

    def __init__(self, server: Server) -> None:
        self._port = server.port

    async def __aenter__(self) -> Prober:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def get(self, path: str, method: str = "GET") -> Answer:
        began = time.monotonic()
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        async with asyncio.timeout(TIMEOUT):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            code = int(head.split()[1])
            assert "cache-control: no-store\r\n" in head
            content = None
            if method != "HEAD":
                size = int(head.split("content-length: ")[1].split("\r\n")[0])
                content = json.loads(await self._reader.readexactly(size))
        return Answer(code, content, time.monotonic() - began)


async def probe(server: Server, path: str = "/readyz") -> Answer:
    """Return the answer to one probe, and assert that it was in time."""
    async with Prober(server) as prober:
        answer = await prober.get(path)
    assert answer.seconds < IN_TIME
    return answer


async def probe_until(server: Server, status: str, seconds: float = RESUME) -> Answer:
    """Probe until the status is ``status``, and return that answer."""
    deadline = time.monotonic() + seconds
    while (answer := await probe(server)).status != status:
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.1)
    return answer


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a site has an empty database of its own."""
    return {"DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('health') / 'site.sqlite3'}"}


@pytest.fixture(scope="module", params=SERVERS)
def well(request: pytest.FixtureRequest, database: dict[str, str]) -> Iterator[Server]:
    """A server that nothing happens to."""
    with running(request.param, **database) as server:
        yield server


@pytest.fixture(scope="module")
def shared(database: dict[str, str]) -> Iterator[System]:
    """Both servers on one Redis, and one broadcaster."""
    with running_system(*((kind, database) for kind in SERVERS)) as system:
        yield system


@pytest.fixture
async def system(shared: System) -> AsyncIterator[System]:
    """The shared system, with all that the last outage did to it over."""
    for server in shared.servers:
        await probe_until(server, "ok")
    with shared.told():
        yield shared


# A server that is well


async def test_server_is_ready_from_the_start(kind: str, database: dict[str, str]) -> None:
    with running(kind, **database) as server:
        answer = await probe(server, "/readyz?strict=1")
        assert (answer.code, answer.status) == (200, "ok")
        assert answer.content["parts"].keys() == {"hub", "heartbeat", "layer", "database"}


async def test_server_lives(well: Server) -> None:
    answer = await probe(well, "/healthz")
    assert (answer.code, answer.content) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_answer_to_head_has_no_content(well: Server, path: str) -> None:
    async with Prober(well) as prober:
        for _ in range(3):  # content would be taken for the head of the next answer
            assert (await prober.get(path, "HEAD")).code == 200


async def test_connections_and_beats_are_told(well: Server) -> None:
    async with Client(well.url) as client:
        await client.subscribe("heartbeat")
        await client.beat(await client.beat())  # the first is for the subscriber alone
        parts = (await probe(well)).content["parts"]
        assert parts["hub"]["connections"] >= 1
        assert parts["heartbeat"].keys() == {"status", "subscribers", "last_beat_age"}
        assert 0 <= parts["heartbeat"]["last_beat_age"] < 5


async def test_many_requests_cost_few_pings(system: System) -> None:
    """The hub's pings go to groups, so that all that is published on its own channel is what probes cost."""
    [server, *_] = system.servers

    def published() -> int:
        return int(str(system.redis.ask("INFO", "commandstats")["cmdstat_publish"]["calls"]))

    before, began = await asyncio.to_thread(published), time.monotonic()
    answers = await asyncio.gather(*(probe_slowly(server) for _ in range(200)))
    beats_and_probes = 2 + (time.monotonic() - began) * (1 / 0.2 + 2)
    assert {answer.code for answer in answers} == {200}
    assert await asyncio.to_thread(published) - before < 20 + 2 * beats_and_probes


async def probe_slowly(server: Server) -> Answer:
    """Probe beside many others, which takes the server's threads some time."""
    async with Prober(server) as prober:
        return await prober.get("/readyz")


# Redis


@pytest.mark.parametrize("outage", [killed, frozen])
async def test_redis_out_degrades_until_it_is_back(system: System, outage: Any) -> None:
    with outage(system):
        for server in system.servers:
            answer = await probe_until(server, "degraded")
            assert answer.code == 200
            assert answer.reason("layer")
            assert answer.content["parts"]["hub"]["status"] == "ok"
            assert answer.content["parts"]["database"]["status"] == "ok"
            assert (await probe(server, "/readyz?strict=1")).code == 503
            assert (await probe(server, "/healthz")).code == 200
    for server in system.servers:
        await probe_until(server, "ok")
        assert (await probe(server, "/readyz?strict=1")).code == 200


async def test_core_layer_is_told_of_too(kind: str, database: dict[str, str], redis: Redis) -> None:
    with running(kind, REDIS_URL=redis.url, TEST_CHANNEL_LAYER="core", **database) as server:
        assert (await probe(server, "/readyz?strict=1")).code == 200
        redis.freeze()
        assert (await probe_until(server, "degraded")).reason("layer")
        redis.thaw()
        await probe_until(server, "ok")


async def test_frozen_redis_is_told_at_once_when_it_is_known(system: System) -> None:
    with frozen(system):
        for server in system.servers:
            answer = await probe_until(server, "degraded")
            while answer.reason("layer") != "LayerUnavailable":  # the hub has found out too
                answer = await probe(server)
            for _ in range(5):
                assert (await probe(server)).seconds < 0.5


# Beats


async def test_missing_beats_degrade_until_somebody_beats() -> None:
    with running_system(*((kind, {}) for kind in SERVERS), heartbeats=False) as system:
        for server in system.servers:
            assert (await probe(server)).status == "ok"
            async with Client(server.url) as client:
                await client.subscribe("heartbeat")
                answer = await probe_until(server, "degraded")
                assert answer.code == 200
                assert answer.reason("heartbeat") == "no beats arrive"
                assert (await probe(server, "/readyz?strict=1")).code == 503
        await asyncio.to_thread(system.broadcast)
        for server in system.servers:
            async with Client(server.url) as client:
                await client.subscribe("heartbeat")
                await client.beat(await client.beat())
                answer = await probe_until(server, "ok")
                assert answer.content["parts"]["heartbeat"]["last_beat_age"] < 5


# The database


class SilentDatabase:
    """Be a PostgreSQL that takes connections and never says a word."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._open = True
        self.env = {"DATABASE_URL": f"postgres://ada:{PASSWORD}@127.0.0.1:{self._listener.getsockname()[1]}/site"}

    def accept(self) -> int:
        """Return how many connections were made until now."""
        try:
            while True:
                self.connections.append(self._listener.accept()[0])
        except BlockingIOError:
            return len(self.connections)

    def close(self) -> None:
        """Be gone."""
        if not self._open:
            return
        self._open = False
        self.accept()
        for connection in [self._listener, *self.connections]:
            connection.close()


@pytest.fixture
def silent() -> Iterator[SilentDatabase]:
    database = SilentDatabase()
    yield database
    database.close()


async def test_database_that_hangs_degrades_and_holds_one_thread(kind: str, silent: SilentDatabase) -> None:
    with running(kind, **silent.env) as server:
        answer = await probe(server)
        assert (answer.code, answer.status) == (200, "degraded")
        assert answer.reason("database").startswith("no answer for ")
        assert (await probe(server, "/readyz?strict=1")).code == 503
        end = time.monotonic() + 2.5  # longer than a check may be shared
        while time.monotonic() < end:
            answer = await probe(server)
            assert answer.status == "degraded"
            assert answer.seconds < 0.5
        assert silent.accept() == 1
        async with Client(server.url) as client:
            await client.echo()


async def test_database_that_is_gone_degrades_and_keeps_its_password(kind: str, silent: SilentDatabase) -> None:
    silent.close()
    with running(kind, **silent.env) as server:
        answer = await probe(server)
        assert (answer.code, answer.reason("database")) == (200, "OperationalError")
        assert PASSWORD not in json.dumps(answer.content)
        assert PASSWORD not in server.output
        server.wait_for_line("event=check_failed part=database error=OperationalError")


async def test_database_that_comes_to_an_end_is_asked_again(silent: SilentDatabase) -> None:
    with running("uvicorn", **silent.env) as server:
        assert (await probe(server)).reason("database").startswith("no answer for ")
        silent.close()
        deadline = time.monotonic() + TIMEOUT
        while (await probe(server)).reason("database") != "OperationalError":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def test_locked_database_degrades_until_it_is_free(kind: str, tmp_path: Path) -> None:
    """A SQLite file in Django's default mode is opened with what the locked one does not answer."""
    file = tmp_path / "site.sqlite3"
    owner = sqlite3.connect(file, isolation_level=None)
    owner.execute("CREATE TABLE taken (place INTEGER)")
    owner.execute("BEGIN EXCLUSIVE")
    try:
        with running(kind, DATABASE_URL=f"sqlite:///{file}") as server:
            assert (await probe(server)).reason("database").startswith("no answer for ")
            assert (await probe(server)).seconds < 0.5
            owner.execute("ROLLBACK")
            await probe_until(server, "ok")
    finally:
        owner.close()


async def test_server_whose_database_hangs_stops_in_time(kind: str, silent: SilentDatabase) -> None:
    with running(kind, **silent.env) as server:
        assert (await probe(server)).status == "degraded"
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait)
        assert time.monotonic() - began < 8
        assert "Traceback" not in server.output, server.output


# The end


async def test_draining_server_is_unavailable(database: dict[str, str]) -> None:
    """On Daphne a connection that is kept alive still gets in; uvicorn answers none from the signal on."""
    with running("daphne", **database) as server:
        async with Prober(server) as prober:
            assert (await prober.get("/readyz")).code == 200
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
            writer.write(b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await eventually(lambda: "GET" in server.output)
            server.signal(signal.SIGTERM)
            await reader.readuntil(b"server shutdown")  # a client that is told, and does not leave
            answer = await prober.get("/readyz")
            assert (answer.code, answer.status) == (503, "unavailable")
            assert answer.reason("hub") == "draining"
            assert (await prober.get("/healthz")).code == 200
            writer.close()
        assert await asyncio.to_thread(server.wait) == 0
        assert "django.request" not in server.output


async def test_redis_that_is_not_there_at_the_start_degrades(kind: str, database: dict[str, str], redis: Redis) -> None:
    redis.kill()
    with running(kind, REDIS_URL=redis.url, **database) as server:
        assert (await probe(server)).reason("layer") == "LayerUnavailable"
        redis.start()
        await probe_until(server, "ok")
