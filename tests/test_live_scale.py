"""Many processes, and more than one Redis: what a publication costs, who beats, what the outage of one part leaves."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest
import redis as redis_py
from channels_redis.utils import _consistent_hash
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from realtime.events import PROBE_PREFIX, group_name

from .live import SERVERS, TIMEOUT, Client, Process, Redis, Server, System, eventually, free_port
from .test_live_outages import RESUME
from .test_live_redis import wait

INTERVAL = 0.5
"""Seconds between heartbeats."""
AT_ONCE = 0.9
"""Seconds that a subscribe takes at most where its Redis is well; one that waits for a Redis takes 1 s."""


def slot(sent: float) -> int:
    """Return the number of the wall-clock slot of a beat."""
    return int(sent // INTERVAL)


@contextmanager
def running(redis: Redis, *servers: str, **env: str) -> Iterator[System]:
    """Run servers on a Redis, which is stopped at the end."""
    system = System(redis)
    system.env.update(env)
    try:
        system.servers = [Server(kind, **system.env) for kind in servers]
        system.wait_until_up()
        yield system
    finally:
        system.stop()


@asynccontextmanager
async def subscribers(servers: list[Server], topic: str, each: int = 1) -> AsyncIterator[list[Client]]:
    """Connect so many clients to each server, and subscribe them to a topic."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(server.url)) for server in servers * each]
        for client in clients:
            await client.subscribe(topic)
        yield clients


async def layer_status(server: Server) -> str:
    return str((await server.aget("/readyz"))["parts"]["layer"]["status"])


async def layer_becomes(status: str, *servers: Server) -> None:
    """Wait until each server says so of its channel layer."""
    async with asyncio.timeout(RESUME):
        for server in servers:
            while await layer_status(server) != status:
                await asyncio.sleep(0.1)


# Two and four processes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Four servers on one Redis, and no broadcaster."""
    database = f"sqlite:///{tmp_path_factory.mktemp('scale') / 'site.sqlite3'}"
    with running(Redis(), *SERVERS * 2, REALTIME_HEARTBEAT_INTERVAL=str(INTERVAL), DATABASE_URL=database) as system:
        yield system


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    with shared.told():
        yield shared


@asynccontextmanager
async def monitored(redis: Redis) -> AsyncIterator[Counter[tuple[str, str]]]:
    """Count the commands that a Redis gets for the length of a ``with`` block, each with its first argument."""
    seen: Counter[tuple[str, str]] = Counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", redis.port)
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    yield seen
    await asyncio.to_thread(redis.ask, "ECHO", "that is all")
    while b'"ECHO" "that is all"' not in (line := await reader.readline()):
        name, *rest = re.findall(r'"((?:[^"\\]|\\.)*)"', line.decode())
        seen[name.upper(), rest[0] if rest else ""] += 1
    writer.close()


@pytest.mark.parametrize("count", [2, 4])
async def test_publication_costs_one_publish_and_reaches_each_process_once(system: System, count: int) -> None:
    servers = system.servers[:count]
    async with subscribers(servers, "news", each=20) as clients:
        assert await asyncio.to_thread(system.redis.members, "news") == count
        async with monitored(system.redis) as commands:
            await servers[0].aget("/publish/?count=30")
            await servers[1].aget("/apublish/?count=20")
            expected = [{"number": number} for number in [*range(30), *range(20)]]
            for client in clients:
                assert await client.publications(50) == expected
        published = {channel: times for (name, channel), times in commands.items() if name == "PUBLISH"}
        assert published.pop(f"asgi__group__{group_name('news')}") == 50
        assert all(PROBE_PREFIX in channel for channel in published), published  # the hubs' own pings
        assert sum(published.values()) <= 5 * len(system.servers)
        assert {name for name, _ in commands} <= {"PUBLISH", "PING", "SUBSCRIBE", "HELLO", "CLIENT"}
        for client in clients:
            await client.echo()


# Broadcasters


@asynccontextmanager
async def broadcasting(system: System, count: int) -> AsyncIterator[list[Process]]:
    """Run so many broadcasters, and kill what is left of them."""
    await more_broadcasters(system, count)
    try:
        yield system.broadcasters
    finally:
        await kill(*system.broadcasters)
        system.broadcasters.clear()


async def more_broadcasters(system: System, count: int) -> None:
    await asyncio.gather(
        *(asyncio.to_thread(system.broadcast, "--interval", str(INTERVAL)) for _ in range(count)),
    )


async def kill(*processes: Process) -> None:
    for process in processes:
        process.signal(signal.SIGKILL)
    for process in processes:
        await wait(process)


async def test_any_two_of_three_broadcasters_can_be_killed(system: System) -> None:
    async with broadcasting(system, 3) as broadcasters, subscribers(system.servers[:2], "heartbeat", each=2) as clients:
        begin = max([await client.beat() for client in clients])  # each had one at once, of its own
        beats: list[list[float]] = [[] for _ in clients]

        async def read_on() -> None:
            now = time.time()
            for client, seen in zip(clients, beats, strict=True):
                while len(seen) < 2 or seen[-2] < now:
                    seen.append(await client.beat(begin))

        for survivor in range(3):
            killed = [broadcaster for number, broadcaster in enumerate(broadcasters) if number != survivor]
            await read_on()
            await kill(*killed)
            await read_on()
            for broadcaster in killed:
                broadcasters.remove(broadcaster)
            await more_broadcasters(system, 2)
            broadcasters.insert(survivor, broadcasters.pop(0))
        slots = [slot(beat) for beat in beats[0]]
        assert slots == list(range(slots[0], slots[0] + len(slots)))
        shortest = min(map(len, beats))
        assert [seen[:shortest] for seen in beats] == [beats[0][:shortest]] * 4


async def test_missing_beats_and_their_return_are_told_once_by_each_server(system: System) -> None:
    def told(server: Server, start: int) -> list[str]:
        return re.findall(r"event=(beats_\w+)", "\n".join(server.lines[start:]))

    starts = [len(server.lines) for server in system.servers]
    async with broadcasting(system, 1) as broadcasters, subscribers(system.servers, "heartbeat") as clients:
        for client in clients:
            await client.beat(await client.beat())
        await kill(*broadcasters)
        broadcasters.clear()
        for server, start in zip(system.servers, starts, strict=True):
            await asyncio.to_thread(server.wait_for_line, "event=beats_missing", start=start)
        await more_broadcasters(system, 1)  # which takes several of the hubs' looks
        for server, start in zip(system.servers, starts, strict=True):
            await asyncio.to_thread(server.wait_for_line, "event=beats_back", start=start)
        for client in clients:
            await client.beat(time.time())
        assert [told(server, start) for server, start in zip(system.servers, starts, strict=True)] == [
            ["beats_missing", "beats_back"]
        ] * 4


# Topics spread over two Redis


TOPICS = [f"many-{number}" for number in range(40)]


def topics_of(shard: int) -> list[str]:
    """Return the topics that fall to one Redis of two."""
    return [topic for topic in TOPICS if _consistent_hash(f"asgi__group__{group_name(topic)}", 2) == shard]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, list[Redis]]]:
    """Both servers and a broadcaster on two Redis."""
    database = f"sqlite:///{tmp_path_factory.mktemp('spread') / 'site.sqlite3'}"
    with ExitStack() as stack:
        shards: list[Redis] = []
        for _ in range(2):
            shards.append(Redis())
            stack.callback(shards[-1].stop)
        urls = ",".join(shard.url for shard in shards)
        system = stack.enter_context(running(shards[0], *SERVERS, REDIS_URL=urls, DATABASE_URL=database))
        system.broadcast()
        yield system, shards


@pytest.mark.parametrize("out", [0, 1], ids=["first", "second"])
async def test_outage_of_one_redis_leaves_the_topics_of_the_other_alone(
    spread: tuple[System, list[Redis]], out: int
) -> None:
    system, shards = spread
    away, there = topics_of(out), topics_of(1 - out)

    async def publication_arrives(clients: list[Client], topic: str) -> None:
        for server in system.servers:
            await server.aget(f"/publish/?topic={topic}")
            for client in clients:
                assert await client.publications(1) == [{"number": 0}]
                await client.echo()

    with system.told():
        await layer_becomes("ok", *system.servers)
        async with (
            subscribers(system.servers, there[0]) as clients,
            subscribers(system.servers, "heartbeat") as beating,
        ):
            for client in clients:
                await client.subscribe(away[0])
            assert [shards[1 - out].members(there[0]), shards[out].members(away[0])] == [2, 2]
            await publication_arrives(clients, there[0])
            await publication_arrives(clients, away[0])

            await asyncio.to_thread(shards[out].kill)
            await publication_arrives(clients, there[0])
            for client in clients:
                await client.subscribe(away[1])
                began = time.monotonic()
                await client.subscribe(there[1])
                assert time.monotonic() - began < AT_ONCE
            await publication_arrives(clients, there[1])
            await layer_becomes("degraded", *system.servers)
            for server in system.servers:
                with pytest.raises(HTTPError):
                    await server.aget(f"/publish/?topic={away[0]}")
                async with Client(server.url) as newcomer:
                    await newcomer.subscribe(there[0])
                    await newcomer.echo()

            await asyncio.to_thread(shards[out].start)
            await layer_becomes("ok", *system.servers)
            for topic in (away[0], away[1], there[0], there[1]):
                await publication_arrives(clients, topic)
            now = time.time()
            for client in beating:
                await client.beat(now)
            command = system.manage("close_connections", "--code", "4001")
            assert {(await client.closed())[0] for client in [*clients, *beating]} == {4001}
            assert await wait(command) == 0
            assert "Closed 4 connections on 2 servers." in command.output


# Redis with a password, with several databases, and with TLS


async def test_sites_with_different_database_numbers_do_not_hear_each_other() -> None:
    password = "s3cret, with:@/?#%"
    redis = Redis("--requirepass", password)
    address = f"redis://:{quote(password, safe=',')}@127.0.0.1:{redis.port}"
    redis.url = f"{address}/0"
    with running(redis, *SERVERS) as system:
        system.servers += [Server(kind, **{**system.env, "REDIS_URL": f"{address}/3"}) for kind in SERVERS]
        await asyncio.to_thread(system.wait_until_up)
        with system.told():
            async with subscribers(system.servers, "news") as clients:
                for publisher, hearers in ((0, (0, 1)), (1, (0, 1)), (2, (2, 3)), (3, (2, 3))):
                    await system.servers[publisher].aget(f"/publish/?count={publisher + 1}")
                    for hearer in hearers:
                        expected = [{"number": number} for number in range(publisher + 1)]
                        assert await clients[hearer].publications(publisher + 1) == expected
                    for client in clients:
                        await client.echo()
                command = system.manage("close_connections", "--code", "4001")
                assert [await client.closed() for client in clients[:2]] == [(4001, "closed by operator")] * 2
                assert await wait(command) == 0
                assert "Closed 2 connections on 2 servers." in command.output
                for client in clients[2:]:
                    await client.echo()


def certificate(directory: Path, name: str) -> Path:
    """Write a certificate for 127.0.0.1 that its own key has signed, and the key beside it. Return its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def encrypted(tmp_path: Path) -> Redis:
    """A Redis that speaks nothing but TLS."""
    port, path = free_port(), certificate(tmp_path, "redis")
    files = ["--tls-cert-file", str(path), "--tls-key-file", str(path.with_suffix(".key"))]
    try:
        redis = Redis("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", *files, port=port)
    except AssertionError as error:
        if "Bad directive" not in str(error):
            raise
        pytest.skip("this redis-server was built without TLS")
    redis.url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={path}"
    return redis


async def test_redis_with_tls_is_used_if_its_certificate_is_right(encrypted: Redis, tmp_path: Path) -> None:
    publish = "import django; django.setup(); from realtime import publish; publish('news', 'from a script')"
    with running(encrypted, *SERVERS) as system, system.told():
        async with subscribers(system.servers, "news") as clients, subscribers(system.servers, "heartbeat") as beating:
            broadcaster = system.manage("run_heartbeats", "--count", "2")
            script = system.script(publish)
            another = certificate(tmp_path, "another")
            wrong = {
                "another authority": f"rediss://127.0.0.1:{encrypted.port}/0?ssl_ca_certs={another}",
                "another name": encrypted.url.replace("127.0.0.1", "localhost"),
                "no TLS": f"redis://127.0.0.1:{encrypted.port}/0",
            }
            refused = {why: system.script(publish, REDIS_URL=url) for why, url in wrong.items()}
            assert (await wait(script), script.output) == (0, "")
            for client in clients:
                assert await client.publications(1) == ["from a script"]
            for server in system.servers:
                await server.aget("/apublish/?topic=news&count=20")
                for client in clients:
                    assert await client.publications(20) == [{"number": number} for number in range(20)]
            for client in beating:
                begin = await client.beat()
                assert slot(await client.beat(begin)) < slot(await client.beat(begin) + INTERVAL)
            assert await wait(broadcaster) == 0
            for why, failing in refused.items():
                assert await wait(failing) == 1, why
                assert "realtime.exceptions.LayerUnavailable: " in failing.lines[-1], why
            assert "CERTIFICATE_VERIFY_FAILED" in refused["another authority"].output
            assert "CERTIFICATE_VERIFY_FAILED" in refused["another name"].output
            for client in clients:
                await client.echo()


# Sentinel


def wait_until_replaceable(port: int) -> None:
    """Wait until a Sentinel knows a replica that could become the master."""
    deadline = time.monotonic() + TIMEOUT
    with redis_py.Redis(port=port) as sentinel:
        while not any(replica["master-link-status"] == "ok" for replica in sentinel.sentinel_slaves("main")):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextmanager
def watched(directory: Path) -> Iterator[tuple[Redis, Redis, Process, str]]:
    """Run a Redis, its replica, and one Sentinel; yield these, and what ``redis_layer`` takes for them, as JSON."""
    options = ["--dir", str(directory), "--repl-diskless-sync-delay", "0"]
    processes: list[Any] = []
    try:
        master = Redis(*options)
        processes.append(master)
        replica = Redis(*options, "--replicaof", "127.0.0.1", str(master.port))
        processes.append(replica)
        port, config = free_port(), directory / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 500\n"
            "sentinel failover-timeout main 2000\n"
        )
        sentinel = Process(Redis.executable(), str(config), "--sentinel")
        processes.append(sentinel)
        wait_until_replaceable(port)
        yield master, replica, sentinel, json.dumps({"sentinels": [["127.0.0.1", port]], "master_name": "main"})
    finally:
        for process in processes:
            process.stop()


async def publish_until_taken(server: Server, topic: str) -> None:
    """Publish one number, again if the first try finds out that a connection is dead."""
    try:
        await server.aget(f"/publish/?topic={topic}")
    except HTTPError:
        await server.aget(f"/publish/?topic={topic}")


@pytest.mark.parametrize("outage", ["killed", "frozen"])
async def test_clients_stay_and_publications_resume_when_sentinel_replaces_the_master(
    tmp_path: Path, outage: str
) -> None:
    with (
        watched(tmp_path) as (master, replica, sentinel, host),
        running(master, *SERVERS, TEST_CHANNEL_LAYER=host) as system,
        system.told(),
    ):
        async with subscribers(system.servers, "news") as clients:
            await system.servers[0].aget("/publish/?count=3")
            for client in clients:
                assert await client.publications(3) == [{"number": number} for number in range(3)]
            if outage == "killed":
                await asyncio.to_thread(master.kill)
            else:
                master.freeze()
            await asyncio.to_thread(sentinel.wait_for_line, rf"\+switch-master main .* {replica.port}$")
            for client in clients:
                await client.subscribe("many-1")  # by which each server finds out
                await client.echo()
            await eventually(lambda: [replica.members(topic) for topic in ("news", "many-1")] == [2, 2])
            for topic in ("news", "many-1"):
                await asyncio.gather(*(publish_until_taken(server, topic) for server in system.servers))
                for client in clients:
                    assert await client.publications(2) == [{"number": 0}] * 2
            command = system.manage("close_connections", "--code", "4001")
            assert [(await client.closed())[0] for client in clients] == [4001, 4001]
            assert await wait(command) == 0
            assert "Closed 2 connections on 2 servers." in command.output
