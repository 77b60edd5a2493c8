"""What real servers log: a JSON object a line where that is asked for, one line a connection, and none a message."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from websockets.exceptions import InvalidStatus

from .live import Client, Process, Server, eventually, manage, running

OPTIONS = {"daphne": ["--access-log", "/dev/null"], "uvicorn": []}
"""Daphne writes its access log past all loggers."""
ECHOES = 100


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    """Return what lines of JSON hold."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            pytest.fail(f"this line is no JSON: {line}")
        assert isinstance(found[-1], dict), line
        assert {"time", "level", "logger"} <= found[-1].keys(), line
    return found


def ours(lines: list[str]) -> list[dict[str, Any]]:
    """Return what this package has logged."""
    return [line for line in parsed(lines) if line["logger"].startswith("realtime.")]


@asynccontextmanager
async def logging_server(kind: str, **env: str) -> AsyncIterator[Server]:
    """Run a server that logs in JSON."""
    with running(kind, *OPTIONS[kind], LOG_FORMAT="json", **env) as server:
        async with Client(server.url) as client:  # Daphne's hub begins with the first
            await client.echo()
        await asyncio.to_thread(server.wait_for_line, '"event": "disconnected"')
        await asyncio.to_thread(server.wait_for_line, '"event": "layer_up"')
        yield server


async def test_every_line_of_a_server_is_json(kind: str) -> None:
    async with logging_server(kind) as server:
        async with Client(server.url) as client:
            await client.subscribe("news")
            await server.aget("/publish/")
            assert await client.publications(1) == [{"number": 0}]
            assert (await client.ask({"type": "complain_request", "what": "a\nb"}))["status"] == "ERROR"
        with pytest.raises(InvalidStatus):
            async with Client(f"{server.url}nowhere/%0A/"):
                pass
        with pytest.raises(HTTPError):
            await server.aget("/nowhere/")
        with pytest.raises(HTTPError):  # it has no code
            await server.aget("/close/")
    lines = parsed(server.lines)
    [failure] = [line for line in lines if line.get("event") == "handler_failed"]
    assert (failure["request"], failure["level"]) == ("complain_request", "ERROR")
    assert failure["exception"]["traceback"].startswith("Traceback")
    [refused] = [line for line in lines if line.get("event") == "refused"]
    assert (refused["reason"], refused["path"]) == ("path", r"'/nowhere/\n/'")
    [error] = [line for line in lines if line["logger"] == "django.request" and line["level"] == "ERROR"]
    assert error["exception"]["kind"] == "MultiValueDictKeyError"
    assert [line for line in lines if line["logger"].startswith(kind)]


async def test_connection_is_one_line_and_its_messages_none(kind: str) -> None:
    async with logging_server(kind) as server:
        start = await server.mark()
        async with Client(server.url) as client:
            for _ in range(ECHOES):
                await client.echo()
            await client.subscribe("news")
            await server.aget("/publish/")
            assert await client.publications(1) == [{"number": 0}]
            await client.ask({"type": "unsubscribe_request", "topic": "news"})
        await asyncio.to_thread(server.wait_for_line, '"event": "disconnected"', start=start)
        end = await server.mark()
    [line] = ours(server.lines[start:end])
    assert line.keys() == {"time", "level", "logger", "event", "connection", "code", "seconds"}
    assert (line["level"], line["event"], int(line["code"])) == ("INFO", "disconnected", 1000)
    assert line["seconds"] in range(20)


async def test_line_has_the_id_that_the_connection_has_elsewhere(kind: str, tmp_path: Path) -> None:
    database = tmp_path / "site.sqlite3"

    def ids() -> list[str]:
        with closing(sqlite3.connect(database, timeout=5)) as connection:
            return [id for (id,) in connection.execute("SELECT id FROM realtime_connection")]

    env = {"DATABASE_URL": f"sqlite:///{database}"}
    migration = await asyncio.to_thread(manage, "migrate", **env)
    assert await asyncio.to_thread(migration.wait, 60) == 0, migration.output
    async with logging_server(kind, REALTIME_CONNECTION_REGISTRY="true", REGISTRY_INTERVAL="0.2", **env) as server:
        await eventually(lambda: "registry_caught_up" in server.output and not ids())
        start = await server.mark()
        async with Client(server.url) as client:
            await client.echo()
            await eventually(ids)
            [id] = ids()
        await asyncio.to_thread(server.wait_for_line, '"event": "disconnected"', start=start)
        end = await server.mark()
    assert [line["connection"] for line in ours(server.lines[start:end])] == [id]


async def test_line_that_is_about_no_connection_names_none(kind: str) -> None:
    async with logging_server(kind) as server:
        async with Client(server.url) as client:
            await client.subscribe("news")
        await server.mark()
    about_none = [line for line in parsed(server.lines) if line.get("event") in ("layer_up", "close", "draining")]
    assert {line["event"] for line in about_none} >= {"layer_up", "draining"}
    assert not [line for line in about_none if "connection" in line]


def test_warning_of_pythons_is_json() -> None:
    code = "import django, warnings; django.setup(); warnings.warn('a\\nb', stacklevel=1)"
    env = {"DJANGO_SETTINGS_MODULE": "demows_project.settings", "SECRET_KEY": "only for tests", "LOG_FORMAT": "json"}
    process = Process(sys.executable, "-c", code, **env)
    assert process.wait() == 0, process.output
    [line] = parsed(process.lines)
    assert (line["logger"], line["level"]) == ("py.warnings", "WARNING")
    assert "a\nb" in line["message"]


def test_format_of_another_name_is_refused() -> None:
    process = manage("check", LOG_FORMAT="xml")
    assert process.wait() != 0
    assert "ImproperlyConfigured: LOG_FORMAT is 'xml': set it to line or json" in process.output


@pytest.mark.parametrize("name", ["", "line"])
def test_format_is_text_unless_json_is_asked_for(name: str) -> None:
    code = "import django, logging; django.setup(); logging.getLogger('realtime.x').info('event=%s', 'y')"
    env = {"DJANGO_SETTINGS_MODULE": "demows_project.settings", "SECRET_KEY": "only for tests", "LOG_FORMAT": name}
    process = Process(sys.executable, "-c", code, **env)
    assert process.wait() == 0, process.output
    [line] = process.lines
    assert line.endswith(" INFO realtime.x event=y")
