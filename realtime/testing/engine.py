"""
The engine: a small ASGI server for WebSockets that tests can start, look into, and have misbehave.

It is made for tests and never used in production: it trusts whoever holds it, and keeps all it has seen.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections import OrderedDict
from typing import Any
from urllib.parse import parse_qs

from ..conf import Settings
from .connection import ServerConnection
from .namespace import Arrivals, MakeInterposer, Namespace, describe, end_all
from .profiles import Profile
from .transcript import Log

logger = logging.getLogger("realtime.testing")

BACKLOG = 1024
"""Connections that may wait to be accepted."""
SESSIONS = 1000
"""Sessions that are kept; of more, those that nobody has used for the longest time and is connected to are dropped."""
ACCEPT_AGAIN = 1.0
"""Seconds until connections are accepted again, when none can be."""
TURNS = 5
"""Turns that the event loop may take until a connection that was dropped is gone."""
PORT_TRIES = 20
"""Tries to find a port that is free for IPv4 and for IPv6."""


class Engine:
    """Serve ``application`` on one event loop, which it is made, started and stopped on."""

    def __init__(self, application: Any, settings: Settings, log: Log) -> None:
        self.application = application
        self.settings = settings.model_copy(update={"CONNECTION_REGISTRY": False})
        """A test's connections have no place in a site's database."""
        self.log = log
        self.namespaces: OrderedDict[str, Namespace] = OrderedDict()
        self.arrivals = Arrivals()
        self.make_interposer: MakeInterposer | None = None
        """What stands between the server and the connections of sessions that have nothing of their own."""
        self.profile: Profile | None = None
        """What new sessions begin with."""
        self.profile_settings = settings
        self.offset = 0.0
        """By how many seconds the clock of new sessions is put forward."""
        self.beating = True
        """Whether new sessions have heartbeats."""
        self.stopping = False
        """Whether it was told to stop: no session begins any more."""
        self.sockets: dict[ServerConnection, None] = {}
        """Every TCP connection, whatever became of it."""
        self._ids = itertools.count(1)
        self._listening: list[socket.socket] = []
        self._accepting: set[asyncio.Task[object]] = set()
        self._ending: set[asyncio.Task[None]] = set()

    # Life

    async def start(self, host: str, port: int) -> int:
        """Listen, and return on which port. Raises ``OSError`` when that cannot be."""
        self._listening = listen(host, port)
        for sock in self._listening:
            sock.listen(BACKLOG)
            self._accept_from(sock)
        return int(self._listening[0].getsockname()[1])

    # asyncio's own server leaks a client that it accepts in the moment in which it is closed.

    def _accept_from(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, peer = sock.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone already
            return
        except OSError as error:  # as many files are open as may be
            logger.error("event=accept_failed error=%r", error)
            loop.remove_reader(sock)
            loop.call_later(ACCEPT_AGAIN, self._accept_from, sock)
            return
        accepted.setblocking(False)
        task = loop.create_task(loop.connect_accepted_socket(lambda: ServerConnection(self, peer), accepted))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def stop(self) -> None:
        """Close every connection with 1001, wait a little until clients have answered, and listen no more."""
        self.stopping = True
        for sock in self._listening:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        if self._accepting:
            await asyncio.wait(self._accepting)
        await asyncio.gather(*(namespace.stop() for namespace in self.namespaces.values()))
        await end_all(list(self.sockets))
        if self._ending:
            await asyncio.wait(list(self._ending), timeout=1)
        await settle()  # then transports have closed their sockets

    # Sessions

    def namespace(self, name: str) -> Namespace:
        """Return the session of this name, which begins if there is none. Raises ``RuntimeError`` when it stops."""
        namespace = self.namespaces.get(name)
        if namespace is None and self.stopping:
            raise RuntimeError("the server was stopped")
        if namespace is None:
            namespace = Namespace(name, self.settings, self.arrivals, offset=self.offset, beating=self.beating)
            self.namespaces[name] = namespace
            if self.profile is not None:
                namespace.use_profile(self.profile, self.profile_settings)
            self._drop_unused()
        self.namespaces.move_to_end(name)
        return namespace

    def _drop_unused(self) -> None:
        for name, namespace in list(self.namespaces.items())[:-1]:
            if len(self.namespaces) <= SESSIONS:
                return
            if not namespace.connections:
                self.reset(name)

    def reset(self, name: str) -> None:
        """Drop the connections of a session, and forget it."""
        namespace = self.namespaces.pop(name, None)
        if namespace is None:
            return
        namespace.forgotten = True
        for connection in list(namespace.connections.values()):
            connection.drop()
        self.log.clear(name)
        task = asyncio.get_running_loop().create_task(namespace.stop())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    # What connections tell

    def connected(self, connection: ServerConnection) -> None:
        """Take note of a new TCP connection."""
        connection.id = str(next(self._ids))
        self.sockets[connection] = None

    def enter(self, connection: ServerConnection) -> None:
        """Take note that a connection asks for a WebSocket in the session that its query names."""
        name = parse_qs(connection.query).get("session", [""])[0]
        namespace = connection.namespace = self.namespace(name)
        namespace.connections[connection.id] = connection
        namespace.count += 1
        connection.number = namespace.count
        make = namespace.make_interposer or self.make_interposer
        if make is not None:
            connection.interpose(make(connection.number))

    def opened(self, connection: ServerConnection) -> None:
        """Take note that a WebSocket was opened."""
        assert connection.namespace is not None
        connection.namespace.opened(connection)
        self.arrivals.add(describe(connection))

    def disconnected(self, connection: ServerConnection) -> None:
        """Take note that a TCP connection has ended."""
        del self.sockets[connection]
        if connection.namespace is not None:
            connection.namespace.left(connection)


async def settle() -> None:
    """Let the event loop do what it puts off for a turn or two."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def listen(host: str, port: int) -> list[socket.socket]:
    """
    Return the sockets that listen on ``host``: for ``localhost`` those of IPv4 and IPv6, if there is any.

    Port 0 is one that is free. Raises ``OSError``.
    """
    if host != "localhost":
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [_socket(family, host, port)]
    for _ in range(PORT_TRIES):
        first = _socket(socket.AF_INET, "127.0.0.1", port)
        try:
            return [first, _socket(socket.AF_INET6, "::1", first.getsockname()[1])]
        except OSError:
            if not socket.has_ipv6 or not _has_loopback():
                return [first]
            first.close()
            if port:
                raise
    raise OSError(f"no port is free for IPv4 and for IPv6, in {PORT_TRIES} tries")


def _has_loopback() -> bool:
    try:
        _socket(socket.AF_INET6, "::1", 0).close()
    except OSError:
        return False
    return True


def _socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
