"""Users, tokens and the end of sessions over real connections, and what is seen of them in the servers' logs."""

from __future__ import annotations

import asyncio
import http.cookiejar
import re
import shutil
import sqlite3
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .live import SERVERS, TIMEOUT, Client, Server, System, eventually, manage, running, running_system

ENDED = (1008, "session ended")
PASSWORD = "correct horse battery"
SECRET = "s3cr3t-t0k3n"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A migrated database with two people in it; return its URL."""
    url = f"sqlite:///{tmp_path_factory.mktemp('sessions') / 'site.sqlite3'}"
    create = "\n".join(
        [
            "from django.contrib.auth.models import User",
            f"User.objects.create_superuser('ada', '', '{PASSWORD}')",
            f"User.objects.create_superuser('bob', '', '{PASSWORD}')",
        ]
    )
    for arguments in (["migrate", "--verbosity", "0"], ["shell", "--verbosity", "0", "-c", create]):
        process = manage(*arguments, DATABASE_URL=url)
        assert process.wait(60) == 0, process.output
    return url


@pytest.fixture
def system(database: str) -> Iterator[System]:
    """Daphne and uvicorn on one Redis and one database."""
    with running_system(*((kind, {"DATABASE_URL": database}) for kind in SERVERS), heartbeats=False) as system:
        yield system


class Browser:
    """Sign in and out of the admin, and connect with the session's cookie."""

    def __init__(self, server: Server, user: str = "ada", password: str = PASSWORD) -> None:
        self.server = server
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.jar), urllib.request.ProxyHandler({})
        )
        self.post("/admin/login/", username=user, password=password, next="/admin/")

    @property
    def cookie(self) -> str:
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.jar)

    def open(self, path: str, form: dict[str, str] | None = None) -> str:
        url = f"http://127.0.0.1:{self.server.port}{path}"
        data = None if form is None else urllib.parse.urlencode(form).encode()
        with self._opener.open(url, data, timeout=TIMEOUT) as response:
            return str(response.read().decode())

    def post(self, path: str, **form: str) -> str:
        """Fill in the form of a page and send it. Return the page that this leads to."""
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.open(path))
        assert token is not None
        page = self.open(path, {"csrfmiddlewaretoken": token[1], **form})
        assert "errornote" not in page, page
        return page

    def connect(self, server: Server | None = None) -> Client:
        return Client((server or self.server).url, additional_headers={"Cookie": self.cookie})


async def browser(server: Server, user: str = "ada", password: str = PASSWORD) -> Browser:
    return await asyncio.to_thread(Browser, server, user, password)


async def test_logging_out_closes_that_sessions_connections_on_every_server(system: System) -> None:
    daphne, uvicorn = system.servers
    here, elsewhere = await browser(daphne), await browser(uvicorn)
    async with here.connect(daphne) as one, here.connect(uvicorn) as two, elsewhere.connect(daphne) as other:
        for client in (one, two, other):
            await client.subscribe("members")
        began = time.monotonic()
        await asyncio.to_thread(here.open, "/admin/logout/", {"csrfmiddlewaretoken": token_of(here)})
        assert [await one.closed(), await two.closed()] == [ENDED, ENDED]
        assert time.monotonic() - began < 2
        await other.echo()
    async with here.connect() as again:
        answer = await again.ask({"type": "subscribe_request", "topic": "members"})
        assert answer["error"]["code"] == "FORBIDDEN"


def token_of(browser: Browser) -> str:
    match = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', browser.open("/admin/"))
    assert match is not None
    return match[1]


async def test_changing_the_password_closes_all_but_the_session_that_did_it(system: System) -> None:
    daphne, uvicorn = system.servers
    here, elsewhere = await browser(daphne, "bob"), await browser(uvicorn, "bob")
    async with here.connect(uvicorn) as one, elsewhere.connect(daphne) as two, elsewhere.connect(uvicorn) as three:
        for client in (one, two, three):
            await client.subscribe("members")
        form = {
            "old_password": PASSWORD,
            "new_password1": "another " + PASSWORD,
            "new_password2": "another " + PASSWORD,
        }
        began = time.monotonic()
        await asyncio.to_thread(here.post, "/admin/password_change/", **form)
        assert [await two.closed(), await three.closed()] == [ENDED, ENDED]
        assert time.monotonic() - began < 5  # hashing takes a while
        await one.echo()
        await asyncio.to_thread(here.open, "/admin/logout/", {"csrfmiddlewaretoken": token_of(here)})
        assert await one.closed() == ENDED


async def test_deactivating_a_user_from_another_process_closes_that_users_connections(
    system: System, database: str
) -> None:
    settings = {"DATABASE_URL": database, "REDIS_URL": system.redis.url}
    users = "from django.contrib.auth.models import User; "
    code = users + f"User.objects.create_superuser('carol', '', '{PASSWORD}')"
    process = await asyncio.to_thread(lambda: manage("shell", "-c", code, **settings))
    assert await asyncio.to_thread(process.wait, 60) == 0, process.output
    carol, ada = await browser(system.servers[0], "carol"), await browser(system.servers[0])
    async with carol.connect(system.servers[1]) as hers, ada.connect(system.servers[1]) as other:
        await hers.subscribe("members")
        change = users + "user = User.objects.get(username='carol'); user.is_active = False; user.save()"
        process = await asyncio.to_thread(lambda: manage("shell", "-c", change, **settings))
        assert await hers.closed() == ENDED
        assert await asyncio.to_thread(process.wait, 60) == 0, process.output
        await other.echo()


async def test_token_signs_in(server: Server) -> None:
    headers = {"Authorization": f"Bearer good-{SECRET}"}
    for url, options in [
        (f"{server.url}?token=good-{SECRET}", {}),
        (server.url, {"additional_headers": headers}),
        (server.url, {"subprotocols": ["demows.v1", f"token.good-{SECRET}"]}),
    ]:
        async with Client(url, **options) as client:
            await client.subscribe("members")
            assert client.ws.subprotocol == ("demows.v1" if "subprotocols" in options else None)


async def test_bad_token_is_told_by_a_close_code(server: Server) -> None:
    async with Client(f"{server.url}?token=expired", subprotocols=["demows.v1"]) as client:
        assert await client.closed() == (1008, "token refused")


async def test_token_that_cannot_be_judged_lets_in_without_a_user(server: Server) -> None:
    async with Client(f"{server.url}?token=broken") as client:
        answer = await client.ask({"type": "subscribe_request", "topic": "members"})
        assert answer["error"]["code"] == "INTERNAL_ERROR"
        await client.subscribe("news")


async def test_tokens_are_in_no_log_line(kind: str, tmp_path: Path) -> None:
    options = ["--access-log", str(tmp_path / "access.log")] if kind == "daphne" else []
    with running(kind, *options) as server:
        for path in ("", "ws/", "nope/"):
            for token in (f"good-{SECRET}", SECRET, "broken"):
                query = f"?token={token}&x={SECRET}"
                for options in ({}, {"additional_headers": {"Authorization": f"Bearer {SECRET}"}}):
                    try:
                        async with Client(server.url + path + query, **options) as client:
                            await client.send({"type": "echo_request", "echo": "hello"})
                    except (InvalidStatus, ConnectionClosed, ConnectionResetError):
                        assert (path, token, options) != ("", f"good-{SECRET}", {})
        await server.mark()
    log = tmp_path / "access.log"
    text = server.output + (log.read_text() if log.exists() else "")
    assert re.search(r"WSCONNECT /|WebSocket /", text)
    assert SECRET not in text


@pytest.mark.parametrize("name", ["application", "behind_auth"])
async def test_session_without_a_database_lets_in_without_a_user(kind: str, name: str, tmp_path: Path) -> None:
    database = tmp_path / "never-migrated.sqlite3"
    with running(kind, application=f"tests.site.asgi:{name}", DATABASE_URL=f"sqlite:///{database}") as server:
        for _ in range(2):
            async with Client(server.url, additional_headers={"Cookie": "sessionid=" + "a" * 32}) as client:
                answer = await client.ask({"type": "subscribe_request", "topic": "members"})
                assert answer["error"]["code"] == "INTERNAL_ERROR"
                await client.subscribe("news")
        await server.mark()
        assert server.output.count("event=user_unreadable") == 1
        assert "Traceback" not in server.output


def locked(connection: sqlite3.Connection) -> bool:
    """Lock a database that is in WAL mode from readers too, and return whether that worked."""
    try:
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


@pytest.mark.parametrize("name", ["application", "behind_auth"])
async def test_session_on_a_locked_database_lets_in_within_two_seconds(
    kind: str, name: str, database: str, tmp_path: Path
) -> None:
    path = shutil.copy(database.removeprefix("sqlite:///"), tmp_path / "site.sqlite3")
    with running(kind, application=f"tests.site.asgi:{name}", DATABASE_URL=f"sqlite:///{path}") as server:
        ada = await browser(server)
        lock = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
        try:
            await eventually(lambda: locked(lock))  # the page's connection is closed a moment after its answer
            began = time.monotonic()
            async with ada.connect() as client:
                assert time.monotonic() - began < 4
                answer = await client.ask({"type": "subscribe_request", "topic": "members"})
                assert answer["error"]["code"] == "INTERNAL_ERROR"
        finally:
            lock.close()


@pytest.mark.parametrize(
    ("cookie", "code"),
    [
        (None, "FORBIDDEN"),
        ("sessionid=", "FORBIDDEN"),
        ("sessionid=unknown", "FORBIDDEN"),
        ("sessionid=" + "x" * 3000, "FORBIDDEN"),
        ("sessionid=%00", "FORBIDDEN"),
        ("sessionid=a; sessionid=b", "FORBIDDEN"),
    ],
)
async def test_session_that_is_none_is_nobody(kind: str, database: str, cookie: str | None, code: str) -> None:
    with running(kind, DATABASE_URL=database) as server:
        headers = {} if cookie is None else {"Cookie": cookie}
        async with Client(server.url, additional_headers=headers) as client:
            answer = await client.ask({"type": "subscribe_request", "topic": "members"})
            assert answer["error"]["code"] == code
