"""The management commands as people run them: each a process of its own, on a database of its own."""

from __future__ import annotations

import asyncio
import http.cookiejar
import os
import re
import signal
import sqlite3
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from .live import ROOT, SERVERS, TIMEOUT, Client, Process, Redis, Server, eventually, free_port, manage
from .test_live_redis import wait

UP = "Listening on TCP address|Uvicorn running on"
LONGEST_STOP = 10.0
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


class Site:
    """Run commands of the demo project on one port and one database, which begins empty."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.http = f"http://127.0.0.1:{self.port}"
        self.ws = f"ws://127.0.0.1:{self.port}/"
        self.database = directory / "demo.sqlite3"
        self.processes: list[Process] = []
        self.env = {
            "DJANGO_SETTINGS_MODULE": "demows_project.settings",
            "DATABASE_URL": f"sqlite:///{self.database}",
            "REDIS_URL": "",
            "DEBUG": "",
            "REALTIME_HEARTBEAT_INTERVAL": "0.2",
        }

    def manage(self, *arguments: str, **env: str) -> Process:
        self.processes.append(manage(*arguments, **{**self.env, **env}))
        return self.processes[-1]

    def serve(self, *options: str, **env: str) -> Process:
        """Start ``serve``, and wait until it serves."""
        process = self.manage("serve", "--host", "127.0.0.1", "--port", str(self.port), *options, **env)
        process.wait_for_line(UP)
        if "--workers" in options:  # uvicorn says that it runs before its workers do
            begin = 0
            for _ in range(int(options[options.index("--workers") + 1])):
                process.wait_for_line("Application startup complete", start=begin)
                begin += 1 + [*map(bool, map(re.compile("startup complete").search, process.lines[begin:]))].index(True)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.stop()

    def browser(self) -> Browser:
        return Browser(self.http)

    def tables(self) -> list[str]:
        connection = sqlite3.connect(self.database)
        try:
            return [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")]
        finally:
            connection.close()

    def superusers(self) -> int:
        connection = sqlite3.connect(self.database)
        try:
            return int(connection.execute("SELECT count(*) FROM auth_user WHERE is_superuser").fetchone()[0])
        finally:
            connection.close()


class Browser:
    """Get pages and post forms, and keep cookies."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()), urllib.request.ProxyHandler({})
        )

    def open(self, path: str, form: dict[str, str] | None = None) -> tuple[str, str]:
        """Return the path that the browser ends up at, and the page there."""
        data = None if form is None else urllib.parse.urlencode(form).encode()
        with self._opener.open(self._address + path, data, timeout=TIMEOUT) as response:
            return response.url.removeprefix(self._address), response.read().decode()

    def sign_in(self, password: str) -> str:
        """Sign in to the admin, and return the path that this leads to."""
        _, page = self.open("/admin/login/")
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert token is not None
        form = {"csrfmiddlewaretoken": token[1], "username": "admin", "password": password, "next": "/admin/"}
        return self.open("/admin/login/", form)[0]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.stop()


def children(pid: int) -> dict[int, str]:
    """Return the process ids and the command lines of a process' children."""
    found = {}
    for directory in Path("/proc").iterdir():
        try:
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            if directory.name.isdigit() and int(parent) == pid:
                found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, IndexError):  # no process, or one that has just ended
            pass
    return found


def broadcasters(pid: int) -> list[int]:
    """Return the process ids of the ``run_heartbeats`` that a ``serve`` started."""
    return [child for child, command in children(pid).items() if "run_heartbeats" in command]


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, whether or not anybody asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def assert_ends(process: Process, code: int = 0) -> None:
    """Assert that a process which was told to stop does so in time."""
    began = time.monotonic()
    assert await asyncio.to_thread(process.wait, 40) == code, process.output
    assert time.monotonic() - began < LONGEST_STOP
    assert "Traceback" not in process.output, process.output


async def assert_serves(url: str) -> None:
    """Assert that a client is echoed and gets beats."""
    async with Client(url) as client:
        await client.echo()
        await client.subscribe("heartbeat")
        assert await client.beat() < await client.beat() < await client.beat()


# serve


@pytest.fixture(scope="module", params=SERVERS)
def debugged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that ``serve`` serves with DEBUG on, for the first time."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.serve("--server", request.param, DEBUG="1")
        yield site
    finally:
        site.stop()


async def test_serve_serves_websockets(debugged: Site) -> None:
    await assert_serves(debugged.ws)
    await assert_serves(f"{debugged.ws}ws/")
    assert "Traceback" not in debugged.processes[0].output


def test_serve_serves_the_page_and_the_admins_style(debugged: Site) -> None:
    assert "demo" in debugged.browser().open("/")[1].lower()
    assert len(style_sheets(debugged.browser())) >= 2


def test_serve_prints_addresses(debugged: Site) -> None:
    for address in (debugged.ws, f"{debugged.http}/", f"{debugged.http}/admin/"):
        debugged.processes[0].wait_for_line(rf"\s{re.escape(address)}$")


def test_serve_creates_an_admin_with_debug_whose_password_signs_in(debugged: Site) -> None:
    password = debugged.processes[0].wait_for_line(r"account 'admin' with the password (\S+)")[1]
    assert debugged.browser().sign_in("not the password") == "/admin/login/"
    browser = debugged.browser()
    assert browser.sign_in(password) == "/admin/"
    assert "Site administration" in browser.open("/admin/")[1]


async def test_line_to_try_leads_to_a_heartbeat(debugged: Site) -> None:
    [process] = debugged.processes
    command = process.wait_for_line(r"^Try\s+(.*)$")[1]
    line = process.wait_for_line(r"type\s+(\{.*\})$")[1]
    pipe = asyncio.subprocess.PIPE
    tried = await asyncio.create_subprocess_exec(*command.split(), stdin=pipe, stdout=pipe, env={**os.environ})
    try:
        assert tried.stdin is not None
        assert tried.stdout is not None
        tried.stdin.write(line.encode() + b"\n")
        output = ""
        async with asyncio.timeout(TIMEOUT):
            while '"type":"heartbeat"' not in output:
                output += (await tried.stdout.readline()).decode()
        assert '"status":"OK"' in output
        tried.stdin.close()
        await tried.communicate()
    finally:
        if tried.returncode is None:
            tried.kill()
            await tried.wait()


async def test_serve_listens_on_localhost_by_default(site: Site) -> None:
    process = site.manage("serve", "--port", str(site.port))
    await asyncio.to_thread(process.wait_for_line, UP)
    await assert_serves(f"ws://localhost:{site.port}/")


def test_serve_tells_the_password_only_once(site: Site) -> None:
    first = site.serve(DEBUG="1")
    password = first.wait_for_line(r"with the password (\S+)")[1]
    first.stop()
    second = site.serve(DEBUG="1")
    assert "password" not in second.output
    assert site.superusers() == 1
    assert site.browser().sign_in(password) == "/admin/"


def test_serve_creates_no_admin_without_debug(site: Site) -> None:
    process = site.serve()
    assert "password" not in process.output
    assert site.superusers() == 0
    assert 'name="username"' in site.browser().open("/admin/login/")[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--workers", "2", "--server", "daphne"], "Daphne is one process: use --server uvicorn"),
        (["--workers", "0"], "--workers takes a whole number from 1 on, not 0"),
    ],
)
def test_serve_refuses_workers_that_cannot_be(site: Site, options: list[str], reason: str) -> None:
    process = site.manage("serve", "--port", str(site.port), *options)
    assert process.wait() == 1
    process.wait_for_line(reason)
    assert len(process.lines) == 1
    assert not site.database.exists()


@pytest.mark.parametrize("server", SERVERS)
def test_serve_fails_on_a_port_that_is_taken(site: Site, server: str) -> None:
    site.serve()
    second = site.manage("serve", "--host", "127.0.0.1", "--port", str(site.port), "--server", server)
    assert second.wait() != 0, second.output
    second.wait_for_line("(?i)address already in use|listen failure|in use")


@SIGNALS
@pytest.mark.parametrize("server", SERVERS)
async def test_serve_stops_when_told_to(site: Site, server: str, number: int) -> None:
    process = await asyncio.to_thread(site.serve, "--server", server)
    async with Client(site.ws) as client:
        await client.subscribe("heartbeat")
        process.signal(number)
        assert await client.closed() == (1001, "server shutdown")
    await assert_ends(process)


EARLY = """
import logging, os, signal
from demows_project.settings import *

class Stop(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith(("Listening on TCP", "Waiting for application startup")):
            os.kill(os.getpid(), signal.SIGTERM)

LOGGING["handlers"]["stop"] = {"class": "own_settings.Stop"}
LOGGING["root"]["handlers"] = [*LOGGING["root"]["handlers"], "stop"]
LOGGING["loggers"]["uvicorn"] = {}
"""


@pytest.mark.parametrize("server", SERVERS)
async def test_serve_that_is_told_to_stop_while_it_starts_does(site: Site, server: str) -> None:
    (site.directory / "own_settings.py").write_text(EARLY)
    env = {"DJANGO_SETTINGS_MODULE": "own_settings", "PYTHONPATH": f"{site.directory}:{ROOT}"}
    options = ["serve", "--server", server, "--host", "127.0.0.1", "--port", str(site.port)]
    await assert_ends(site.manage(*options, **env))


# serve with Redis


@pytest.mark.parametrize("server", SERVERS)
async def test_serve_with_redis_broadcasts_heartbeats(site: Site, redis: Redis, server: str) -> None:
    process = await asyncio.to_thread(site.serve, "--server", server, REDIS_URL=redis.url)
    await assert_serves(site.ws)
    assert len(broadcasters(process.pid)) == 1


async def test_serve_restarts_heartbeats_that_were_killed(site: Site, redis: Redis) -> None:
    process = await asyncio.to_thread(site.serve, REDIS_URL=redis.url)
    await asyncio.to_thread(process.wait_for_line, "event=heartbeats_started")
    async with Client(site.ws) as client:
        await client.subscribe("heartbeat")
        lines = len(process.lines)
        [killed] = broadcasters(process.pid)
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(process.wait_for_line, "event=heartbeats_started", start=lines)
        await client.beat(time.time())
    assert broadcasters(process.pid) != [killed]


async def test_serve_without_heartbeats_starts_none(site: Site, redis: Redis) -> None:
    process = await asyncio.to_thread(site.serve, "--no-heartbeats", REDIS_URL=redis.url)
    async with Client(site.ws) as client:
        await client.subscribe("heartbeat")
        assert broadcasters(process.pid) == []
        beats = site.manage("run_heartbeats", "--count", "1", REDIS_URL=redis.url)
        first = await client.beat()  # its own
        assert await client.beat() > first
        assert await wait(beats) == 0
        await client.echo()  # and no other


async def test_workers_all_serve_and_get_beats(site: Site, redis: Redis) -> None:
    await asyncio.to_thread(site.serve, "--workers", "2", REDIS_URL=redis.url)
    async with AsyncExitStack() as stack:
        clients = []
        while await asyncio.to_thread(redis.members, "heartbeat") < 2:
            assert len(clients) < 200
            clients.append(await stack.enter_async_context(Client(site.ws)))
            await clients[-1].subscribe("heartbeat")
        begin = max([await client.beat() for client in clients])  # each one's own first
        assert len({await client.beat(begin) for client in clients}) == 1


def stop_all(process: Process, number: int) -> None:
    """Do what Ctrl-C in a terminal does: signal every process that was started."""
    os.killpg(process.pid, number)


@pytest.mark.parametrize(
    ("options", "stop", "number"),
    [
        (["--server", "daphne"], Process.signal, signal.SIGTERM),
        (["--server", "daphne"], stop_all, signal.SIGINT),
        (["--server", "uvicorn"], Process.signal, signal.SIGINT),
        (["--workers", "2"], Process.signal, signal.SIGTERM),
        (["--workers", "2"], stop_all, signal.SIGINT),
    ],
    ids=["daphne-SIGTERM", "daphne-Ctrl-C", "uvicorn-SIGINT", "workers-SIGTERM", "workers-Ctrl-C"],
)
async def test_serve_with_redis_stops_with_all_its_children(
    site: Site, redis: Redis, options: list[str], stop: Callable[[Process, int], None], number: int
) -> None:
    process = await asyncio.to_thread(site.serve, *options, REDIS_URL=redis.url)
    await asyncio.to_thread(process.wait_for_line, "event=heartbeats_started")
    async with Client(site.ws) as client:
        await client.subscribe("heartbeat")
        await client.beat(await client.beat())
        started = list(children(process.pid))
        assert started
        stop(process, number)
        assert await client.closed() == (1001, "server shutdown")
    await assert_ends(process)
    await eventually(lambda: all(map(is_gone, started)), 5)  # multiprocessing's own helper notices a bit later
    assert process.output.count("event=heartbeats_started") == 1


async def test_serve_stops_although_its_heartbeats_hang(site: Site, redis: Redis) -> None:
    process = await asyncio.to_thread(site.serve, REDIS_URL=redis.url)
    await asyncio.to_thread(process.wait_for_line, "event=heartbeats_started")
    [broadcaster] = broadcasters(process.pid)
    os.kill(broadcaster, signal.SIGSTOP)
    process.signal(signal.SIGTERM)
    await assert_ends(process)
    assert is_gone(broadcaster)


async def test_heartbeats_end_when_serve_is_killed(site: Site, redis: Redis) -> None:
    process = await asyncio.to_thread(site.serve, REDIS_URL=redis.url)
    await asyncio.to_thread(process.wait_for_line, "event=heartbeats_started")
    [child] = broadcasters(process.pid)
    process.signal(signal.SIGKILL)
    await eventually(lambda: is_gone(child), 5)


# run_heartbeats


def test_run_heartbeats_stops_after_its_count(site: Site, redis: Redis) -> None:
    process = site.manage("run_heartbeats", "--count", "3", "--interval", "0.1", REDIS_URL=redis.url)
    assert process.wait() == 0
    assert process.lines[-1] == "Stopped after 3 beats."
    assert redis.ask("INFO", "commandstats")["cmdstat_publish"]["calls"] == 3


@SIGNALS
def test_run_heartbeats_stops_when_told_to(site: Site, redis: Redis, number: int) -> None:
    process = site.manage("run_heartbeats", "--interval", "60", REDIS_URL=redis.url)
    process.wait_for_line("event=heartbeats_started interval=60")
    process.signal(number)
    assert process.wait(5) == 0
    assert "Traceback" not in process.output
    assert re.fullmatch(r"Stopped after [01] beats\.", process.lines[-1])


def test_run_heartbeats_takes_its_interval_from_the_settings(site: Site, redis: Redis) -> None:
    process = site.manage("run_heartbeats", REDIS_URL=redis.url, REALTIME_HEARTBEAT_INTERVAL="0.3")
    process.wait_for_line(r"event=heartbeats_started interval=0\.3$")


async def test_run_heartbeats_beats_at_its_interval(site: Site, redis: Redis) -> None:
    await asyncio.to_thread(site.serve, "--no-heartbeats", REDIS_URL=redis.url)
    async with Client(site.ws) as client:
        await client.subscribe("heartbeat")
        await client.beat()
        site.manage("run_heartbeats", "--interval", "0.5", REDIS_URL=redis.url)
        slots = [int(await client.beat() / 0.5) for _ in range(4)]
    assert slots == list(range(slots[0], slots[0] + 4))


def test_run_heartbeats_refuses_the_in_memory_layer(site: Site) -> None:
    process = site.manage("run_heartbeats")
    assert process.wait() == 1
    assert len(process.lines) == 1
    process.wait_for_line("CommandError: The in-memory channel layer reaches only this process.*set REDIS_URL")


def test_run_heartbeats_refuses_an_interval_that_cannot_be(site: Site) -> None:
    process = site.manage("run_heartbeats", "--interval", "-1")
    assert process.wait() == 1
    assert process.lines == ["CommandError: --interval takes a number of seconds above 0, not -1"]


# close_connections


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--code", "1005"], r"1005 is not a close code that may be sent; legal are 1000-1003, 1006 .*3000-4999"),
        (["--reason", "☂" * 41 + "x"], "the reason has 124 bytes of UTF-8, at most 123 fit"),
        (["--code", "4000"], "The in-memory channel layer reaches only this process.*set REDIS_URL"),
    ],
)
def test_close_connections_refuses_what_cannot_be(site: Site, options: list[str], reason: str) -> None:
    process = site.manage("close_connections", *options)
    assert process.wait() == 1
    assert len(process.lines) == 1
    process.wait_for_line(f"^CommandError: .*{reason}")


def test_close_connections_takes_a_reason_of_123_bytes(site: Site, redis: Redis) -> None:
    process = site.manage("close_connections", "--reason", "☂" * 41, REDIS_URL=redis.url)
    assert process.wait() == 0
    assert process.lines[-1] == "Closed 0 connections on 0 servers."


def test_close_connections_needs_a_number_for_the_code(site: Site) -> None:
    process = site.manage("close_connections", "--code", "away")
    assert process.wait() == 2
    process.wait_for_line("argument --code: invalid int value: 'away'")


# runserver, and the servers' own commands


async def test_runserver_serves_websockets(site: Site) -> None:
    process = site.manage("runserver", "--noreload", f"127.0.0.1:{site.port}", DEBUG="1")
    await asyncio.to_thread(process.wait_for_line, "Listening on TCP address")
    await assert_serves(site.ws)
    async with Client(site.ws) as client:
        await client.echo()
        process.signal(signal.SIGTERM)
        assert await client.closed() == (1001, "server shutdown")
    await assert_ends(process)


async def test_runserver_reloads_and_serves_again(site: Site) -> None:
    settings = site.directory / "own_settings.py"
    settings.write_text("from demows_project.settings import *\n")
    env = {"DJANGO_SETTINGS_MODULE": "own_settings", "PYTHONPATH": f"{site.directory}:{ROOT}", "DEBUG": "1"}
    process = site.manage("runserver", f"127.0.0.1:{site.port}", **env)
    await asyncio.to_thread(process.wait_for_line, "Listening on TCP address")
    await assert_serves(site.ws)
    async with Client(site.ws) as client:
        await client.echo()
        lines = len(process.lines)
        closed = asyncio.ensure_future(client.closed())
        while not closed.done():  # a change before Django has looked at its files for the first time is none
            settings.write_text("from demows_project.settings import *\nREALTIME = {'MAX_SUBSCRIPTIONS': 1}\n")
            await asyncio.wait([closed], timeout=2)
        assert closed.result()[0] in (1001, 1006)
    await asyncio.to_thread(process.wait_for_line, "Listening on TCP address", start=lines)
    async with Client(site.ws) as client:
        await client.echo()
        await client.subscribe("heartbeat")


def style_sheets(browser: Browser) -> dict[str, str]:
    """Return the login page's style sheets by address."""
    page = browser.open("/admin/login/")[1]
    addresses = re.findall(r'<link rel="stylesheet" href="([^"]+)"', page)
    return {address: browser.open(address)[1] for address in addresses}


@pytest.fixture
def bare(site: Site, kind: str) -> Iterator[Server]:
    """A server that its own command started, on a database that was never migrated."""
    server = Server(kind, application="demows_project.asgi:application", **site.env)
    try:
        yield server.wait_until_up()
    finally:
        server.stop()


async def test_bare_server_serves_websockets_without_a_database(bare: Server, site: Site) -> None:
    await assert_serves(bare.url)
    assert site.tables() == []


def test_bare_server_serves_the_admins_login_with_its_style(bare: Server) -> None:
    sheets = style_sheets(Browser(f"http://127.0.0.1:{bare.port}"))
    assert len(sheets) >= 2
    assert all("{" in sheet for sheet in sheets.values())
