"""The wire on uvicorn, and the guards in front of it."""

from __future__ import annotations

import hashlib
import inspect
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import Protocol as WebSocket

from realtime.servers import AsgiWire, uvicorn, wire_for

UPSTREAM = {
    (WebSocketsSansIOProtocol, "__init__"): "631dcd744eab875f",
    (WebSocketsSansIOProtocol, "send"): "d4919ed760ce9f7b",
    (WebSocketsSansIOProtocol, "receive"): "1dc0e715390021a1",
    (WebSocketsSansIOProtocol, "shutdown"): "e8ace796ada616b7",
    (WebSocketsSansIOProtocol, "handle_close"): "62fd412b1f5b9e86",
    (WebSocketsSansIOProtocol, "run_asgi"): "662375aa38d9044c",
    (WebSocketsSansIOProtocol, "connection_lost"): "dd116afc4d8034e1",
    (WebSocketsSansIOProtocol, "send_receive_event_to_app"): "a2b10de91477dc1d",
    (WebSocketsSansIOProtocol, "keepalive_timeout"): "8e1ceb6ec446de9d",
    (WebSocket, "send_text"): "9268f18e580a5d67",
    (WebSocket, "send_close"): "bc2a998cc8b9a3ac",
}
"""A digest of each function that is called, copied from or relied on, as it was when that was written."""


def test_upstream_is_what_the_wire_was_written_for() -> None:
    found = {
        (owner, name): hashlib.sha256(inspect.getsource(getattr(owner, name)).encode()).hexdigest()[:16]
        for owner, name in UPSTREAM
    }
    changed = {
        f"{owner.__name__}.{name}": digest for (owner, name), digest in found.items() if digest != UPSTREAM[owner, name]
    }
    assert not changed, (
        f"upstream changed {', '.join(changed)}: read what changed beside realtime/servers/uvicorn.py, "
        f"mend that if it has to be, and then record {changed}"
    )


def test_uvicorns_default_protocol_is_the_one_we_know() -> None:
    config = Config("tests.site.asgi:application")
    config.load()
    kind = config.ws_protocol_class
    assert (kind.__module__, kind.__qualname__) == uvicorn.PROTOCOL


# The guards


class Unknown:
    """Be some server's protocol object."""

    async def receive(self) -> Any: ...
    async def send(self, message: Any) -> None: ...


def lookalike(**attributes: Any) -> Any:
    """Return an object of a class that is called what uvicorn's is."""
    module, name = uvicorn.PROTOCOL
    return type(name, (Unknown,), {"__module__": module, "__qualname__": name, **attributes})()


def test_unknown_protocol_gets_the_wire_of_any_server() -> None:
    unknown = Unknown()
    assert isinstance(wire_for({"type": "websocket"}, unknown.receive, unknown.send), AsgiWire)


def test_protocol_that_lacks_what_the_wire_uses_gets_the_wire_of_any_server_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    changed = lookalike(**{name: None for name in uvicorn.USED_ATTRIBUTES if name not in ("transport", "conn", "send")})
    with caplog.at_level(logging.WARNING):
        assert isinstance(wire_for({"type": "websocket"}, changed.receive, changed.send), AsgiWire)
    assert "event=unknown_uvicorn missing=conn,transport" in caplog.text


def test_send_of_another_object_gets_the_wire_of_any_server() -> None:
    known = lookalike(**{name: None for name in uvicorn.USED_ATTRIBUTES if name != "send"})
    assert isinstance(wire_for({"type": "websocket"}, known.receive, Unknown().send), AsgiWire)


async def test_plain_function_as_receive_gets_the_wire_of_any_server() -> None:
    async def receive() -> Any: ...

    assert isinstance(wire_for({"type": "websocket"}, receive, Unknown().send), AsgiWire)


class Lifespan:
    """Be what uvicorn's lifespan ``receive`` is a method of."""

    def __init__(self, config: Any) -> None:
        self.config = config

    async def receive(self) -> Any: ...


@pytest.mark.parametrize(("given", "kept"), [(None, uvicorn.GRACEFUL_SHUTDOWN), (30, 30), (0, 0)])
def test_shutdown_gets_an_end_where_none_is_configured(given: int | None, kept: int) -> None:
    config = Config("tests.site.asgi:application", timeout_graceful_shutdown=given)
    uvicorn.install(Lifespan(config).receive)
    assert config.timeout_graceful_shutdown == kept


def test_another_servers_shutdown_is_left_alone() -> None:
    config = SimpleNamespace(timeout_graceful_shutdown=None)
    uvicorn.install(Lifespan(config).receive)
    uvicorn.install(lambda: None)
    assert config.timeout_graceful_shutdown is None
