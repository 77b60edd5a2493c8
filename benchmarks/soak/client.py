"""
One client of the soak: bare enough for five hundred of them, and able to misbehave.

Unlike the client of the other benchmarks it takes frames of any size and can stop reading.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from ..processes import HOST

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
NORMAL = (1000).to_bytes(2)
LOST = 1006
"""Stands for an end without a close frame."""
TIMEOUT = 30.0
"""Seconds that connecting, an answer or leaving may take."""
HANDSHAKE = (
    f"GET /ws/ HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER's value with which closing a socket resets the connection."""


def frame(payload: bytes, opcode: int = TEXT, *, first: int | None = None) -> bytes:
    """Return a frame masked with zeros, which leave the payload as it is; ``first`` is its first byte."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2)
    else:
        length = b"\xff" + size.to_bytes(8)
    return bytes([0x80 | opcode if first is None else first]) + length + bytes(4) + payload


def request(kind: str, **fields: Any) -> bytes:
    """Return the frame of a request."""
    return frame(json.dumps({"type": f"{kind}_request", **fields}).encode())


class Client(asyncio.Protocol):
    """
    Be one client, which answers pings and closes, and calls ``on_frame`` with each other frame's opcode and payload.

    ``gone`` is the code that the server has closed with, once it has.
    """

    def __init__(self, hello: bytes = HANDSHAKE) -> None:
        loop = asyncio.get_running_loop()
        self.on_frame: Callable[[int, bytes], None] = ignore
        self.opened: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[int] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self._hello = hello
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write(self._hello)

    def write(self, data: bytes) -> None:
        """Send ``data``, unless the connection has ended."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def read_on(self, receive_buffer: int) -> None:
        """Read again after ``transport.pause_reading``, with so many bytes for the kernel to fill."""
        if not self.transport.is_closing():
            self._set(socket.SO_RCVBUF, receive_buffer)
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if not self.opened.done():
            head, separator, data = data.partition(b"\r\n\r\n")
            if not separator:
                self._rest = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.opened.set_exception(ConnectionError(f"refused: {head[:200]!r}"))
                self.transport.abort()
                return
            self.opened.set_result(None)
        while (start := _payload_start(data)) and (end := start + _payload_size(data)) <= len(data):
            self._received(data[0] & 0x0F, data[start:end])
            data = data[end:]
        self._rest = data

    def _received(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.write(frame(payload, PONG))
        elif opcode == CLOSE:
            if not self.gone.done():
                self.gone.set_result(int.from_bytes(payload[:2]) if payload else 1005)
                self.write(frame(payload[:2], CLOSE))
        else:
            self.on_frame(opcode, payload)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("the server closed a connection"))
        self.opened.exception()  # whoever has stopped waiting need not look
        if not self.gone.done():
            self.gone.set_result(LOST)
        self.lost.set_result(None)
        self.writable.set()

    async def ask(self, message: bytes) -> dict[str, Any]:
        """Send ``message`` and return the next one that is no publication. Raises ``ConnectionError`` at an end."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        before = self.on_frame

        def received(opcode: int, payload: bytes) -> None:
            if b'"type":"publication"' in payload[:100] or answer.done():
                before(opcode, payload)
            else:
                answer.set_result(json.loads(payload))

        self.on_frame = received
        self.write(message)
        try:
            await asyncio.wait([answer, self.gone], timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.on_frame = before
        if not answer.done():
            raise ConnectionError(f"no answer to {message!r:.100}")
        return answer.result()

    async def demand(self, message: bytes) -> Any:
        """Return the data of the answer. Raises ``ConnectionError`` when the request was refused."""
        answer = await self.ask(message)
        if answer.get("status") != "OK":
            raise ConnectionError(f"{message!r:.100} was answered {answer!r:.200}")
        return answer.get("data")

    async def leave(self) -> None:
        """Say goodbye, and wait until the server has closed the connection."""
        self.write(frame(NORMAL, CLOSE))
        async with asyncio.timeout(TIMEOUT):
            await self.lost

    def reset(self) -> None:
        """Reset the TCP connection."""
        if not self.transport.is_closing():
            self._set(socket.SO_LINGER, RESET)
            self.transport.abort()

    def _set(self, option: int, value: int | bytes) -> None:
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, value)


def ignore(opcode: int, payload: bytes) -> None:
    """Do nothing about a frame."""


async def connect(port: int, hello: bytes = HANDSHAKE, *, receive_buffer: int | None = None) -> Client:
    """Return a client that has a TCP connection, and has said ``hello``."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        async with asyncio.timeout(TIMEOUT):
            await loop.sock_connect(sock, (HOST, port))
            _, client = await loop.create_connection(lambda: Client(hello), sock=sock)
    except BaseException:
        sock.close()
        raise
    return client


async def opened(port: int, **options: Any) -> Client:
    """Return a client on which frames may be sent. Raises ``OSError`` when the server refuses it."""
    client = await connect(port, **options)
    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.shield(client.opened)
    except BaseException:
        client.reset()
        raise
    return client


def _payload_start(data: bytes) -> int:
    """Return where the payload of the frame begins that ``data`` begins with, or 0 while that has not arrived."""
    if len(data) < 2:
        return 0
    start = {126: 4, 127: 10}.get(data[1], 2)
    return start if len(data) >= start else 0


def _payload_size(data: bytes) -> int:
    size = data[1]
    return size if size < 126 else int.from_bytes(data[2 : 4 if size == 126 else 10])
