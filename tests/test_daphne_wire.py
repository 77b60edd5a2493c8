"""The wire on Daphne, the repairs, and the guards in front of them."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from realtime.servers import AsgiWire, daphne, wire_for

from .live import ROOT

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
    "autobahn.twisted.websocket.WebSocketAdapterProtocol._closeConnection": "17833f32dde140f0",
    "twisted.internet.abstract.FileDescriptor.registerProducer": "7d7ad4f91234689d",
    "twisted.internet.abstract.FileDescriptor.write": "3e46c97fc173bc7e",
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


def test_missing_way_to_drop_connections_is_not_repaired_and_said(
    fake: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    del fake.protocol._closeConnection
    assert not daphne.install()
    assert "_closeConnection is missing" in caplog.text


async def send(message: Any) -> None:
    """Be an ASGI server's ``send``."""


async def receive() -> Any:
    """Be an ASGI server's ``receive``."""


def test_scope_without_a_protocol_gets_the_wire_of_any_server() -> None:
    assert isinstance(wire_for({"type": "websocket"}, receive, send), AsgiWire)


@pytest.mark.parametrize("wrap", ["function", "partial of another function", "partial of another protocol"])
def test_send_that_is_not_daphnes_own_gets_the_wire_of_any_server(wrap: str) -> None:
    async def handle_reply(protocol: Any, message: Any) -> None: ...

    async def another(protocol: Any, message: Any) -> None: ...

    protocol = object()
    own: Any = {
        "function": send,
        "partial of another function": functools.partial(another, protocol),
        "partial of another protocol": functools.partial(handle_reply, object()),
    }[wrap]
    scope = {"type": "websocket", "extensions": {daphne.SCOPE_KEY: protocol}}
    assert isinstance(wire_for(scope, receive, own), AsgiWire)
