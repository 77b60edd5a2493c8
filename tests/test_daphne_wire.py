"""The wire on Daphne, the repairs, and the guards in front of them."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from realtime.servers import AsgiWire, daphne, text_frame, wire_for
from realtime.servers.asgi import WrappedWire

from .live import ROOT
from .memory import until
from .test_asgi_wire import Listening

UPSTREAM = {
    "daphne.server.Server.create_application": "f1e300b4ecf636c8",
    "daphne.server.Server.kill_all_applications": "4e1618c6f7871758",
    "daphne.server.Server.listen_success": "0aa2ef7d71380301",
    "daphne.server.Server.handle_reply": "9d9dbaea6de0657a",
    "daphne.ws_protocol.WebSocketProtocol.onConnect": "b1ce2efc1874b9b5",
    "daphne.ws_protocol.WebSocketProtocol.onClose": "4d3b4d7c66afc2ba",
    "daphne.ws_protocol.WebSocketProtocol.handle_reply": "5331423b1cf2016a",
    "daphne.ws_protocol.WebSocketProtocol.serverClose": "8302150efac698d6",
    "autobahn.websocket.protocol.WebSocketProtocol.sendCloseFrame": "a511406d6b0d711e",
    "autobahn.websocket.protocol.WebSocketProtocol.sendMessage": "048d6bcf0d712309",
    "autobahn.websocket.protocol.WebSocketProtocol.dropConnection": "149c74c9a251a7b1",
    "autobahn.websocket.protocol.WebSocketProtocol._fail_connection": "00c349e066d658bf",
    "daphne.ws_protocol.WebSocketProtocol.serverSend": "345f21330d2a18ce",
    "daphne.ws_protocol.WebSocketProtocol.serverReject": "7166e95b99f2a316",
    "daphne.ws_protocol.WebSocketProtocol.onMessage": "826cc86d0e2aeef0",
    "autobahn.twisted.websocket.WebSocketAdapterProtocol.dataReceived": "7997f762de218433",
    "autobahn.websocket.protocol.WebSocketProtocol._dataReceived": "b6616694f9d65410",
    "autobahn.websocket.protocol.WebSocketProtocol.onMessageFrameBegin": "68c4eae4de95e1fb",
    "autobahn.websocket.protocol.WebSocketProtocol.onPing": "d283f6ebda586764",
    "autobahn.websocket.protocol.WebSocketProtocol.onPong": "e75245df70f4224a",
    "autobahn.websocket.protocol.WebSocketProtocol._sendAutoPing": "344058949ed67de3",
    "autobahn.websocket.protocol.WebSocketProtocol.onAutoPingTimeout": "5de3ae0af03e5bd3",
    "autobahn.websocket.protocol.WebSocketServerProtocol.sendHttpErrorResponse": "cea44d9c8accd7df",
    "autobahn.websocket.protocol.WebSocketServerProtocol.failHandshake": "354c2c03cca517fb",
    "autobahn.twisted.websocket.WebSocketAdapterProtocol._closeConnection": "17833f32dde140f0",
    "twisted.internet.abstract.FileDescriptor.registerProducer": "7d7ad4f91234689d",
    "twisted.internet.abstract.FileDescriptor.write": "3e46c97fc173bc7e",
    "twisted.internet.abstract.FileDescriptor.unregisterProducer": "5f09066c8d7f05b0",
    "twisted.internet.abstract.FileDescriptor.doWrite": "a986d7b1b1054e43",
    "twisted.internet.abstract.FileDescriptor.loseConnection": "e13b8468f05208ae",
}
"""A digest of each function that is replaced, copied from or relied on, as it was when that was written."""
DIGESTS = """
import hashlib, importlib, inspect, json, sys
digests = {}
for path in json.loads(sys.argv[1]):
    module, owner, name = path.rsplit(".", 2)
    function = getattr(getattr(importlib.import_module(module), owner), name)
    digests[path] = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
print(json.dumps(digests))
"""


def test_upstream_is_what_the_repairs_were_written_for() -> None:
    # In a process of its own: importing Daphne installs a reactor, and the repairs may have been made here.
    command = [sys.executable, "-c", DIGESTS, json.dumps(list(UPSTREAM))]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    changed = [path for path in UPSTREAM if found[path] != UPSTREAM[path]]
    assert not changed, (
        f"upstream changed {', '.join(changed)}: read what changed beside realtime/servers/daphne.py, "
        f"mend that if it has to be, and then record { ({path: found[path] for path in changed}) }"
    )


# The guards


class Protocol:
    """Look like Daphne's protocol class to the guards."""

    def onConnect(self, request): ...
    def serverClose(self, code=None): ...
    def handle_reply(self, message): ...
    def onClose(self, wasClean, code, reason): ...
    def onMessage(self, payload, isBinary): ...
    def onMessageFrameBegin(self, length): ...
    def onPing(self, payload): ...
    def onPong(self, payload): ...
    def _sendAutoPing(self): ...
    def onAutoPingTimeout(self): ...
    def dataReceived(self, data): ...
    def failHandshake(self, reason, code=400, responseHeaders=None): ...
    def sendCloseFrame(self, code=None, reasonUtf8=None, isReply=False): ...
    def _closeConnection(self, abort=False): ...


class Application:
    """Look like Daphne's server class to the guards."""

    def create_application(self, protocol, scope): ...
    def kill_all_applications(self): ...
    def listen_success(self, port): ...


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules that look like Daphne's, with classes that a test may change."""
    server, protocol = ModuleType("daphne.server"), ModuleType("daphne.ws_protocol")
    classes = SimpleNamespace(
        server=type("Server", (), dict(vars(Application))), protocol=type("WebSocketProtocol", (), dict(vars(Protocol)))
    )
    server.Server, protocol.WebSocketProtocol = classes.server, classes.protocol  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "daphne.server", server)
    monkeypatch.setitem(sys.modules, "daphne.ws_protocol", protocol)
    return classes


def test_install_repairs_what_it_knows(fake: SimpleNamespace) -> None:
    original = fake.protocol.serverClose
    assert daphne.install()
    assert fake.protocol.serverClose is not original


def test_install_twice_repairs_once(fake: SimpleNamespace) -> None:
    daphne.install()
    repaired = fake.protocol.onClose
    assert daphne.install()
    assert fake.protocol.onClose is repaired


def test_install_does_nothing_where_daphne_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "daphne.server", raising=False)
    monkeypatch.delitem(sys.modules, "daphne.ws_protocol", raising=False)
    assert not daphne.install()
    assert "daphne.server" not in sys.modules


@pytest.mark.parametrize("path", list(daphne.EXPECTED))
def test_changed_signature_is_not_repaired_and_said(
    fake: SimpleNamespace, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    owner, name = path.split(".")
    changed = fake.server if owner == "Server" else fake.protocol
    setattr(changed, name, lambda self, new_argument: None)
    before = dict(vars(fake.server)), dict(vars(fake.protocol))
    with caplog.at_level(logging.WARNING):
        assert not daphne.install()
    assert (dict(vars(fake.server)), dict(vars(fake.protocol))) == before
    assert f"{path} is (self, new_argument)" in caplog.text


@pytest.mark.parametrize("path", list(daphne.EXPECTED))
def test_missing_method_is_not_repaired_and_said(
    fake: SimpleNamespace, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    owner, name = path.split(".")
    delattr(fake.server if owner == "Server" else fake.protocol, name)
    assert not daphne.install()
    assert f"{path} is missing" in caplog.text


@pytest.mark.parametrize("replacement", [None, lambda self, code: None])
def test_another_way_to_send_close_frames_is_not_repaired_and_said(
    fake: SimpleNamespace, caplog: pytest.LogCaptureFixture, replacement: Any
) -> None:
    fake.protocol.sendCloseFrame = replacement
    assert not daphne.install()
    assert "sendCloseFrame is another" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *("_closeConnection", "_sendAutoPing", "dataReceived", "failHandshake", "onAutoPingTimeout"),
        *("onMessageFrameBegin", "onPing", "onPong"),
    ],
)
def test_missing_method_of_autobahn_is_not_repaired_and_said(
    fake: SimpleNamespace, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    delattr(fake.protocol, name)
    assert not daphne.install()
    assert f"{name} is missing" in caplog.text


async def send(message: Any) -> None:
    """Be an ASGI server's ``send``."""


async def receive() -> Any:
    """Be an ASGI server's ``receive``."""


def test_scope_without_a_protocol_gets_the_wire_of_any_server() -> None:
    assert isinstance(wire_for({"type": "websocket"}, receive, send), AsgiWire)


class Transport:
    """Look like Twisted's transport to the wire."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.dataBuffer = b""
        self.offset = self._tempDataLen = 0
        self.disconnected = self.disconnecting = False
        self.aborted = False
        self.reading = False
        self.producer: Any = None

    def unregisterProducer(self) -> None:
        self.producer = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def resumeProducing(self) -> None:
        self.reading = True

    def pauseProducing(self) -> None:
        self.reading = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abortConnection(self) -> None:
        self.aborted = True


class Open:
    """Look like Daphne's protocol object of a connection that is open, to the wire."""

    STATE_CLOSED, STATE_OPEN = 0, 3
    _perMessageCompress = None

    def __init__(self) -> None:
        self.state = self.STATE_OPEN
        self.transport = Transport()
        self.application_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.send_queue: list[Any] = []


async def handle_reply(protocol: Any, message: Any) -> None:
    """Be called what Daphne's own way to send is called."""


def wired(own: Any = None) -> tuple[Any, Any]:
    """Return a protocol object and its wire; ``own`` makes the ``send``, by default Daphne's own."""
    protocol = Open()
    scope = {"type": "websocket", "extensions": {daphne.SCOPE_KEY: protocol}}
    own = functools.partial(handle_reply, protocol) if own is None else own(protocol)
    return protocol, wire_for(scope, receive, own)


async def test_send_that_is_daphnes_own_gets_its_wire() -> None:
    protocol, wire = wired()
    assert isinstance(wire, daphne.DaphneWire)
    wire.write(text_frame(b"x"))
    assert protocol.transport.written == [b"\x81\x01x"]


async def another(protocol: Any, message: Any) -> None:
    """Be called something else."""


FOREIGN: dict[str, Any] = {
    "function": lambda protocol: send,
    "partial of another function": lambda protocol: functools.partial(another, protocol),
    "partial of another protocol": lambda protocol: functools.partial(handle_reply, object()),
}


@pytest.mark.parametrize("own", FOREIGN.values(), ids=FOREIGN)
async def test_send_that_is_not_daphnes_own_is_wrapped(own: Any) -> None:
    protocol, wire = wired(own)
    assert isinstance(wire, WrappedWire)


@pytest.fixture
def sent() -> list[Any]:
    """What a middleware's ``send`` is given."""
    return []


@pytest.fixture
def wrapped(sent: list[Any]) -> tuple[Any, Any]:
    """A protocol object, and the wire of a connection behind a middleware."""

    async def send_on(message: Any) -> None:
        sent.append(message)

    return wired(lambda protocol: send_on)


async def test_wrapped_wire_sends_frames_and_the_close_frame_through_the_middleware(wrapped: Any, sent: Any) -> None:
    protocol, wire = wrapped
    wire.write(text_frame(b"x"))
    wire.close(4000, "bye")
    await until(lambda: len(sent) == 2)
    assert sent == [
        {"type": "websocket.send", "text": "x"},
        {"type": "websocket.close", "code": 4000, "reason": "bye"},
    ]
    assert protocol.transport.written == []
    assert wire.closed


async def test_wrapped_wire_counts_what_waits_and_what_the_server_holds(wrapped: Any, sent: Any) -> None:
    protocol, wire = wrapped
    protocol.transport.dataBuffer = b"x" * 1000
    wire.write(text_frame(b"x" * 20))
    assert wire.buffered == 1020
    await until(lambda: sent)
    assert wire.buffered == 1000


async def test_wrapped_wire_drops_the_connection_by_the_servers_wire(wrapped: Any, sent: Any) -> None:
    protocol, wire = wrapped
    wire.write(text_frame(b"x"))
    wire.abort()
    assert protocol.transport.aborted
    assert wire.buffered == 0
    protocol.state = Open.STATE_CLOSED
    assert wire.closed


async def test_wrapped_wire_reads_by_the_servers_wire(wrapped: Any) -> None:
    protocol, wire = wrapped
    assert protocol.transport.reading
    wire.pause_reading()
    assert not protocol.transport.reading
    wire.resume_reading()
    assert protocol.transport.reading


async def test_wrapped_wire_tells_what_the_server_tells(wrapped: Any) -> None:
    protocol, wire = wrapped
    listening = wire.listener = Listening(wire)
    protocol.transport.producer.pauseProducing()
    protocol.transport.producer.resumeProducing()
    assert [what for what, _ in listening.told] == ["congested", "writable"]
