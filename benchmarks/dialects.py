"""What clients say to the sites: how they subscribe, and how a broadcast is asked for."""

import json
from collections.abc import Awaitable, Callable

from .connection import Connection, client_frame
from .trigger import PATH, publication

Connect = Callable[[str], Awaitable[Connection]]
"""What returns a connection to a path of the site."""


def subscribe(topic: str) -> bytes:
    """Return the frame of a subscribe request."""
    return client_frame(b'{"type":"subscribe_request","topic":"%s"}' % topic.encode())


def unsubscribe(topic: str) -> bytes:
    """Return the frame of an unsubscribe request."""
    return client_frame(b'{"type":"unsubscribe_request","topic":"%s"}' % topic.encode())


async def ask(connection: Connection, request: bytes) -> None:
    """
    Send ``request``, and wait for the answer. Raises ``RuntimeError`` when it is a refusal.

    A publication may come before the answer.
    """
    answer = await connection.ask(request, b'"status":')
    if b'"status":"OK"' not in answer:
        raise RuntimeError(f"the request was refused: {answer!r}")


class Dialect:
    """
    Name the topic in the path, and have the site publish.

    ``noise`` is a frame that is no delivery.
    """

    noise = b""

    async def subscriber(self, connect: Connect, topic: str) -> Connection:
        return await connect(f"/ws/{topic}/")

    async def publisher(self, connect: Connect) -> Connection:
        return await connect(PATH)

    def publish(self, topic: str) -> bytes:
        """Return the frame that the publisher sends for a broadcast."""
        return client_frame(topic.encode())


class Requests(Dialect):
    """Subscribe by a request, as realtime's clients do."""

    async def subscriber(self, connect: Connect, topic: str) -> Connection:
        connection = await connect("/ws/")
        await ask(connection, subscribe(topic))
        return connection


class SocketIO(Dialect):
    """Speak Socket.IO 5 in Engine.IO 4, on a WebSocket from the beginning."""

    async def subscriber(self, connect: Connect, topic: str) -> Connection:
        connection = await connect(f"/socket.io/?EIO=4&transport=websocket&topic={topic}")
        await connection.ask(client_frame(b"40"), b"40{")  # the packet that opens Engine.IO may come in between
        return connection


class Nchan(Dialect):
    """Name the channel in the path, and publish the message itself."""

    async def publisher(self, connect: Connect) -> Connection:
        return await connect(f"{PATH}/prices")

    def publish(self, topic: str) -> bytes:
        return client_frame(json.dumps(publication(topic)).encode())


class Nats(Dialect):
    """Speak the text protocol of NATS, a frame for each message."""

    noise = b"\x82\x06PING\r\n"
    """It comes once soon after connecting; nobody waits for the answer while a run takes."""

    async def subscriber(self, connect: Connect, topic: str) -> Connection:
        return await self._connected(connect, b"SUB %s 1\r\n" % topic.encode())

    async def publisher(self, connect: Connect) -> Connection:
        return await self._connected(connect)

    async def _connected(self, connect: Connect, more: bytes = b"") -> Connection:
        connection = await connect("/")
        await connection.ask(client_frame(b'CONNECT {"verbose":false}\r\n' + more + b"PING\r\n"), b"PONG")
        return connection

    def publish(self, topic: str) -> bytes:
        payload = json.dumps(publication(topic)).encode()
        return client_frame(b"PUB %s %d\r\n%s\r\n" % (topic.encode(), len(payload), payload))
