"""
The load's side of a WebSocket, bare enough not to be what is measured.

The handshake and the frames (RFC 6455 §4.1, §5.2) are made by hand, and no payload is looked into here.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from .processes import HOST, Server

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nCookie: {cookie}\r\n\r\n"
)
TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
NORMAL = (1000).to_bytes(2)
TIMEOUT = 30.0
"""Seconds that connecting, an answer or leaving may take."""


class Connection(asyncio.Protocol):
    """
    Be one client. ``on_frame`` is called with each whole frame, pings excepted, which are answered.

    ``on_failure`` is called when the connection ends before ``close``.
    """

    def __init__(self, server: Server, path: str, on_failure: Callable[[Exception], None]) -> None:
        loop = asyncio.get_running_loop()
        self.on_frame: Callable[[bytes], None] = ignore
        self.asked = 0.0
        """When the last request was sent, where the load measures how long answers take."""
        self.opened: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._on_failure = on_failure
        self._handshake = HANDSHAKE.format(path=path, host=HOST, port=server.port, cookie=server.cookie).encode()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self.write(self._handshake)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if not self.opened.done():
            head, separator, data = data.partition(b"\r\n\r\n")
            if not separator:
                self._rest = head
            elif head.startswith(b"HTTP/1.1 101"):
                self._rest = b""
                self.opened.set_result(None)
            else:
                self.opened.set_exception(ConnectionError(f"refused: {head[:200]!r}"))
                return
        while (end := _end_of_frame(data)) <= len(data):
            frame, data = (data, b"") if end == len(data) else (data[:end], data[end:])
            if frame[0] == PING:
                self.write(client_frame(frame[2:], PONG))
            else:
                self.on_frame(frame)
        self._rest = data

    def connection_lost(self, error: Exception | None) -> None:
        error = error or ConnectionError("the server closed a connection")
        if not self.opened.done():
            self.opened.set_exception(error)
        self._lost.set_result(None)
        self._on_failure(error)

    async def ask(self, frame: bytes, expected: bytes = b"") -> bytes:
        """Send ``frame`` and return the next one that arrives and holds what is ``expected``."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(frame: bytes) -> None:
            if expected in frame and not answer.done():
                self.on_frame = ignore
                answer.set_result(frame)

        self.on_frame = answered
        self.write(frame)
        async with asyncio.timeout(TIMEOUT):
            return await answer

    async def leave(self) -> None:
        """Say goodbye, and wait until the server has closed the connection."""
        self._on_failure = ignore
        self.write(client_frame(NORMAL, CLOSE))
        async with asyncio.timeout(TIMEOUT):
            await self._lost

    def close(self) -> None:
        """Drop the connection."""
        self._on_failure = ignore
        self._transport.abort()


def ignore(_: object) -> None:
    """Do nothing about a frame or a failure."""


async def connect(server: Server, path: str, on_failure: Callable[[Exception], None]) -> Connection:
    """Return a connection on which frames may be sent. Raises ``OSError`` when the server refuses it."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT):
        _, connection = await loop.create_connection(lambda: Connection(server, path, on_failure), HOST, server.port)
        await connection.opened
    return connection


def client_frame(payload: bytes, first: int = TEXT) -> bytes:
    """Return a frame of at most 64 KiB, masked with zeros, which leave the payload as it is."""
    size = [len(payload)] if len(payload) < 126 else [126, *len(payload).to_bytes(2)]
    return bytes([first, 0x80 | size[0], *size[1:], 0, 0, 0, 0]) + payload


def _end_of_frame(data: bytes) -> int:
    """Return where the frame ends that ``data`` begins with, which may be beyond what has arrived."""
    if len(data) < 2:
        return 2
    if data[1] < 126:
        return 2 + data[1]
    if data[1] == 126:
        return 4 + int.from_bytes(data[2:4]) if len(data) >= 4 else 4
    raise ValueError("a frame of over 64 KiB, which no scenario asks for")
