"""The wire on uvicorn, and the guards in front of it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import Protocol as WebSocket

from realtime.servers import AsgiWire, text_frame, uvicorn, wire_for
from realtime.servers.asgi import WrappedWire

from .memory import until
from .test_asgi_wire import Listening

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
    (WebSocketsSansIOProtocol, "data_received"): "c89d394077d8841d",
    (WebSocketsSansIOProtocol, "handle_cont"): "d96fe1479da61beb",
    (WebSocketsSansIOProtocol, "handle_ping"): "41bcf345d372c55c",
    (WebSocketsSansIOProtocol, "handle_pong"): "b20c68cc7e4f9bca",
    (WebSocketsSansIOProtocol, "pause_writing"): "4830f7e0d81f877d",
    (WebSocketsSansIOProtocol, "resume_writing"): "ef79384e5fff077c",
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


class Transport(asyncio.Transport):
    """Look like a transport that takes nothing, to the wire."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.reading = self.aborted = False

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.written))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Open(Unknown):
    """Look like uvicorn's protocol object of a connection that is open, to the wire."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.conn = SimpleNamespace(extensions=[])
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.handshake_complete, self.close_sent, self.disconnected, self.read_paused = True, False, False, False

    def shutdown(self) -> None: ...
    def keepalive_timeout(self) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def handle_ping(self) -> None: ...
    def handle_pong(self, event: Any) -> None: ...
    def handle_cont(self, event: Any) -> None: ...


def open_protocol() -> Any:
    """Return an ``Open`` whose class is called what uvicorn's is."""
    module, name = uvicorn.PROTOCOL
    used = {*vars(Open), *vars(Open())}
    unused = {key: None for key in uvicorn.USED_ATTRIBUTES if key not in used and key != "send"}
    # A copy each time: the wire mends the class.
    return type(name, (Open,), {**vars(Open), "__module__": module, "__qualname__": name, **unused})()


async def test_send_of_the_protocol_itself_gets_its_wire() -> None:
    known = open_protocol()
    wire = wire_for({"type": "websocket"}, known.receive, known.send)
    assert isinstance(wire, uvicorn.UvicornWire)
    wire.write(text_frame(b"x"))
    assert known.transport.written == [b"\x81\x01x"]


async def test_send_of_another_object_is_wrapped() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    known = open_protocol()
    wire = wire_for({"type": "websocket"}, known.receive, send)
    assert isinstance(wire, WrappedWire)
    assert known.transport.reading
    known.transport.written.append(b"12345")
    wire.write(text_frame(b"x"))
    assert wire.buffered == 6
    await until(lambda: sent)
    assert sent == [{"type": "websocket.send", "text": "x"}]
    wire.pause_reading()
    assert not known.transport.reading
    wire.abort()
    assert known.transport.aborted
    assert wire.closed


async def test_wire_tells_what_its_protocol_is_told() -> None:
    known = open_protocol()
    wire = wire_for({"type": "websocket"}, known.receive, known.send)
    listening = wire.listener = Listening(wire)
    known.pause_writing()
    known.resume_writing()
    known.handle_ping()
    known.handle_pong(None)
    known.handle_cont(None)
    assert [what for what, _ in listening.told] == ["congested", "writable", *["controlled"] * 3]


async def test_wire_tells_how_much_an_answer_to_a_ping_has_added() -> None:
    known = open_protocol()
    known.on_ping = lambda: known.transport.write(b"pong!")
    type(known).handle_ping = lambda self: self.on_ping()
    wire = wire_for({"type": "websocket"}, known.receive, known.send)
    listening = wire.listener = Listening(wire)
    known.handle_ping()
    assert listening.told == [("controlled", 5)]


async def test_protocol_without_a_wire_is_told_nothing_about() -> None:
    known, other = open_protocol(), open_protocol()
    wire_for({"type": "websocket"}, known.receive, known.send)
    other.handle_ping()
    other.pause_writing()


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
