"""Where WebSockets come in."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.exceptions import ImproperlyConfigured

from demows_project.asgi import application as demo
from realtime.hub import find_hub, get_hub
from realtime.routing import websocket_urlpatterns, with_realtime

from .memory import TIMEOUT, Client, clean_process, connected, the_layer, until  # noqa: F401


async def http(scope: Any, receive: Any, send: Any) -> None:
    """Be the site's own application."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["type"].encode()})


@pytest.mark.parametrize("path", ["/ws/", "/ws/?token=1"])
async def test_websocket_on_its_path_is_served(path: str) -> None:
    async with connected(with_realtime(http), path) as client:
        await client.assert_nothing_waits()


@pytest.mark.parametrize("path", ["/", "/ws", "/ws/x", "/ws//", "/WS/", "//ws/", "", "/é", "/ws/%00"])
async def test_websocket_on_another_path_is_refused(path: str, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(with_realtime(http), path)
    await client.send_input({"type": "websocket.connect"})
    assert await client.receive_output() == {"type": "websocket.close"}
    await client.wait()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "event=refused" in caplog.text


@pytest.mark.parametrize("path", ["/", "/live/"])
async def test_paths_may_be_named(path: str) -> None:
    async with connected(with_realtime(http, paths=["/", "/live/"]), path) as client:
        await client.assert_nothing_waits()


async def test_paths_may_be_an_iterator() -> None:
    application = with_realtime(http, paths=iter(["/live/"]))
    for _ in range(2):
        async with connected(application, "/live/") as client:
            await client.assert_nothing_waits()


@pytest.mark.parametrize("root_path", ["/site", "/site/"])
async def test_path_below_the_mount_point_is_served(root_path: str) -> None:
    client = Client(with_realtime(http), "/site/ws/")
    client.scope["root_path"] = root_path
    assert (await client.connect())[0]
    await client.disconnect()


async def test_http_goes_to_the_sites_application() -> None:
    communicator = ApplicationCommunicator(with_realtime(http), {"type": "http", "path": "/ws/"})
    assert (await communicator.receive_output())["status"] == 200
    assert (await communicator.receive_output())["body"] == b"http"
    await communicator.wait()


async def test_url_patterns_fit_a_router_of_the_sites_own() -> None:
    application = ProtocolTypeRouter({"websocket": URLRouter(websocket_urlpatterns)})
    async with connected(application, "/ws/") as client:
        await client.assert_nothing_waits()


@pytest.mark.parametrize("path", ["/", "/ws/"])
async def test_demo_serves_websockets(path: str) -> None:
    async with connected(demo, path) as client:
        await client.assert_nothing_waits()


def test_wrong_settings_are_told_at_the_start(settings: Any) -> None:
    settings.REALTIME = {"HEARTBEAT": 5}
    with pytest.raises(ImproperlyConfigured, match="unknown key 'HEARTBEAT'"):
        with_realtime(http)


def test_missing_layer_is_told_at_the_start(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {}
    with pytest.raises(ImproperlyConfigured, match="CHANNEL_LAYERS has no 'default'"):
        with_realtime(http)


# The lifespan


def lifespan_of(application: Any) -> ApplicationCommunicator:
    return ApplicationCommunicator(application, {"type": "lifespan"})


async def test_lifespan_starts_the_hub() -> None:
    lifespan = lifespan_of(with_realtime(http))
    await lifespan.send_input({"type": "lifespan.startup"})
    assert await lifespan.receive_output() == {"type": "lifespan.startup.complete"}
    hub = find_hub()
    assert hub is not None
    await until(lambda: hub.link.up)
    lifespan.stop()


async def test_lifespan_starts_while_the_layer_is_down() -> None:
    the_layer().failing = True
    lifespan = lifespan_of(with_realtime(http))
    await lifespan.send_input({"type": "lifespan.startup"})
    assert await lifespan.receive_output() == {"type": "lifespan.startup.complete"}
    lifespan.stop()


async def test_lifespan_stops_the_hub_and_closes_its_clients() -> None:
    application = with_realtime(http)
    lifespan = lifespan_of(application)
    await lifespan.send_input({"type": "lifespan.startup"})
    await lifespan.receive_output()
    async with connected(application) as client:
        await client.assert_nothing_waits()
        await lifespan.send_input({"type": "lifespan.shutdown"})
        assert await client.closed() == (1001, "server shutdown")
        await client.disconnect()
    assert await lifespan.receive_output(TIMEOUT) == {"type": "lifespan.shutdown.complete"}
    await lifespan.wait()
    assert find_hub() is None


async def test_lifespan_of_uvicorn_gets_an_end() -> None:
    class Config:
        timeout_graceful_shutdown = None

    Config.__module__ = "uvicorn.config"
    server = SimpleNamespace(config=Config())
    queue: asyncio.Queue[Any] = asyncio.Queue()

    class Lifespan:
        config = server.config

        async def receive(self) -> Any:
            return await queue.get()

    sent = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    queue.put_nowait({"type": "lifespan.startup"})
    queue.put_nowait({"type": "lifespan.shutdown"})
    await with_realtime(http)({"type": "lifespan"}, Lifespan().receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert server.config.timeout_graceful_shutdown == 5


async def test_hub_is_the_loops_own_however_it_was_started() -> None:
    lifespan = lifespan_of(with_realtime(http))
    await lifespan.send_input({"type": "lifespan.startup"})
    await lifespan.receive_output()
    async with connected(with_realtime(http)):
        assert len(get_hub().connections) == 1
    lifespan.stop()
