"""A WebSocket client on a bare socket: it sends whatever bytes a test wants, and reads only when told to."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from .live import TIMEOUT

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a masked frame, as clients send them."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2)
    else:
        length = b"\xff" + size.to_bytes(8)
    mask = os.urandom(4)
    repeated = int.from_bytes((mask * (size // 4 + 1))[:size])
    masked = (int.from_bytes(payload) ^ repeated).to_bytes(size)
    return bytes([(FIN if fin else 0) | opcode]) + length + mask + masked


def handshake(path: str = "/", headers: Iterable[str] = ()) -> bytes:
    """Return the request that asks for a WebSocket."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Raw:
    """Be a TCP connection to a server, with the few WebSocket frames that tests need on top."""

    def __init__(self, port: int, *, receive_buffer: int | None = None, source: str = "") -> None:
        self._socket = socket.socket()
        self._socket.bind((source, 0))
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._address = ("127.0.0.1", port)
        self._received = b""

    async def __aenter__(self) -> Raw:
        await asyncio.get_running_loop().sock_connect(self._socket, self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def send_json(self, message: Any) -> None:
        await self.send(frame(TEXT, json.dumps(message).encode()))

    async def open(self, path: str = "/", headers: Iterable[str] = ()) -> str:
        """Ask for a WebSocket, and return the head of the response."""
        await self.send(handshake(path, headers))
        return await self.head()

    async def head(self) -> str:
        """Return the head of an HTTP response."""
        while b"\r\n\r\n" not in self._received:
            await self._more()
        head, self._received = self._received.split(b"\r\n\r\n", 1)
        return head.decode()

    async def frame(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of the next frame."""
        head = await self.take(2)
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(await self.take(2 if size == 126 else 8))
        return head[0] & 0x0F, await self.take(size)

    async def text(self) -> bytes:
        """Return the next message: in a test that takes long, the server sends pings meanwhile."""
        while True:
            opcode, payload = await self.frame()
            if opcode != PING:
                assert opcode == TEXT
                return payload

    async def closed(self) -> tuple[int, str]:
        """Read on until the close frame, and return its code and reason; 1006 if the connection ends without."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2]), payload[2:].decode()
        except (EOFError, ConnectionResetError):
            return 1006, ""

    async def ended(self) -> None:
        """Read on until the server has closed or reset the connection."""
        try:
            while True:
                await self._more()
        except (EOFError, ConnectionResetError):
            pass

    async def rest(self) -> tuple[bytes, str]:
        """Return all bytes until the server ends the connection, and how it does: with ``FIN`` or with ``RST``."""
        how = "FIN"
        try:
            while True:
                await self._more()
        except EOFError:
            pass
        except ConnectionResetError:
            how = "RST"
        rest, self._received = self._received, b""
        return rest, how

    def finish(self) -> None:
        """End what the client sends, and read on."""
        with suppress(OSError):  # the server has ended the connection already
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Reset the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes, whatever they are."""
        while len(self._received) < count:
            await self._more()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    async def _more(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 20)
        if not data:
            raise EOFError
        self._received += data
