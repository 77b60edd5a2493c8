"""
A client that does everything right, on a bare socket, to be made wrong in exactly one way.

It runs on an event loop in a thread of its own, so that a case takes as long as it takes and no process is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from realtime.protocol import Reconnect, client_reconnect

from ..raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, handshake

SCALE = 0.04
"""What the client's own delays are multiplied by: what takes a second elsewhere takes 40 ms."""


class Broken(Exception):
    """Say that the server breaks the protocol, and with which code the connection fails."""


class Ended(Exception):
    """Say that the connection has ended, with the server's code or 1006."""


class Refused(Exception):
    """Say that the handshake was answered with something else than 101."""


class Stream:
    """Read frames, and look at every bit of them."""

    def __init__(self, reader: asyncio.StreamReader, client: Good) -> None:
        self._reader, self._client = reader, client

    async def frame(self) -> tuple[bool, int, bytes]:
        """Return whether the next frame is final, its opcode and its payload."""
        head = await self._reader.readexactly(2)
        self._client.check_head(head[0], head[1])
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8))
        mask = await self._reader.readexactly(4) if head[1] & 0x80 else None
        payload = await self._reader.readexactly(size)
        if mask:
            payload = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
        return bool(head[0] & 0x80), head[0] & 0x0F, payload


class Good:
    """Be a good client. Each method is a thing that another client may get wrong."""

    topics = ("heartbeat", "conformance.a")
    agent = "scripted"

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.failures = 0
        self.connections = 0
        self.writer: asyncio.StreamWriter
        self.writers: list[asyncio.StreamWriter] = []
        self.waiting: dict[str, asyncio.Future[Any]] = {}
        self.last_id = 0
        self.closing = False
        self.stopping = False
        self.ended: str | None = None
        self.output = ""
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None]

    # What a run does with it

    def start(self, url: str) -> None:
        started = threading.Event()

        def work() -> None:
            asyncio.run(self._main(url, started))

        self._thread = threading.Thread(target=work, name="scripted-client", daemon=True)
        self._thread.start()
        assert started.wait(5)

    def ask_to_stop(self) -> None:
        self._loop.call_soon_threadsafe(self.stop)

    def end(self) -> None:
        if self._thread is not None and self.alive:
            with contextlib.suppress(RuntimeError):  # its loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(5)

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    async def _main(self, url: str, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self.run(url))
        started.set()
        try:
            await self._task
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - as a process would end with a traceback
            self.output = repr(error)
            self.ended = "it ended with an exception"
        else:
            self.ended = "it ended by itself"
        for writer in self.writers:
            writer.transport.abort()
            await asyncio.sleep(0)  # so that the loop lets go of it before it is closed

    # Connecting

    async def run(self, url: str) -> None:
        """Connect again and again, as the protocol says."""
        while True:
            retry_after = 0.0
            try:
                code = await self.connect(url)
            except Refused as refused:
                code, retry_after = 1006, self.retry_after(*refused.args)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                code = 1006
            if self.stopping or not self.comes_back(code):
                return
            await asyncio.sleep(retry_after + self.delay(code))
            self.failures += 1

    def comes_back(self, code: int) -> bool:
        return client_reconnect(code) is not Reconnect.STAY_AWAY

    def delay(self, code: int) -> float:
        least = 10.0 if client_reconnect(code) is Reconnect.BACKOFF_10S else 0.0
        return SCALE * (least + self.backoff())

    def backoff(self) -> float:
        return self.random.uniform(0.5, 1) * min(30.0, 2.0**self.failures)

    def retry_after(self, status: int, seconds: float) -> float:
        return seconds

    def timeout(self) -> float:
        """Return the seconds that a handshake and an answer may take."""
        return 10 * SCALE

    def silence(self) -> float:
        return 25 * SCALE

    async def connect(self, url: str) -> int:
        """Be connected, and return with which code that ended."""
        parts = urlsplit(url)
        reader, self.writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
        self.writers.append(self.writer)
        try:
            async with asyncio.timeout(self.timeout()):
                await self.shake_hands(reader, f"{parts.path}?{parts.query}")
            return await self.talk(Stream(reader, self))
        finally:
            self.drop()

    def drop(self) -> None:
        self.writer.transport.abort()

    async def shake_hands(self, reader: asyncio.StreamReader, path: str) -> None:
        self.writer.write(handshake(path, ["Sec-WebSocket-Protocol: demows.v1", f"User-Agent: {self.agent}"]))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        status = int(head.split(" ", 2)[1])
        if status != 101:
            raise Refused(status, float(headers.get("retry-after", 0)))
        self.check_subprotocol(headers.get("sec-websocket-protocol"))

    def check_subprotocol(self, subprotocol: str | None) -> None:
        if subprotocol != "demows.v1":
            raise OSError("a subprotocol that was not offered")

    # Talking

    async def talk(self, stream: Stream) -> int:
        """Do what there is to do on a connection, and return with which code it ended."""
        self.connections += 1
        self.closing, self.waiting, self.last_id = False, {}, 0
        work = asyncio.ensure_future(self.work())
        try:
            await self.read(stream)
        except Ended as ended:
            return int(ended.args[0])
        except Broken as broken:
            self.send_close(broken.args[0])
            return 1006
        finally:
            work.cancel()
            await asyncio.wait([work])
        return 1006

    async def read(self, stream: Stream) -> None:
        parts: list[bytes] | None = None
        while True:
            async with asyncio.timeout(self.silence()):
                final, opcode, payload = await stream.frame()
            if opcode == PING:
                self.pinged(payload, parts is not None)
            elif opcode == PONG:
                self.ponged()
            elif opcode == CLOSE:
                await self.closed(int.from_bytes(payload[:2]), stream)
            else:
                parts = [*(parts or []), payload]
                self.received(opcode, payload)
                if final:
                    self.message(self.decode(b"".join(parts)))
                    parts = None

    def check_head(self, first: int, second: int) -> None:
        if first & 0x70 or second & 0x80 or first & 0x0F not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise Broken(1002)

    def received(self, opcode: int, payload: bytes) -> None:
        """Look at a frame of a message."""

    def decode(self, payload: bytes) -> str:
        try:
            return payload.decode()
        except UnicodeDecodeError:
            raise Broken(1007) from None

    def pinged(self, payload: bytes, within: bool) -> None:
        self.write(frame(PONG, payload))

    def ponged(self) -> None:
        """Ignore it."""

    async def closed(self, code: int, stream: Stream) -> None:
        self.send_close(code)
        with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(self.goodbye()):
                while True:
                    await stream.frame()
        raise Ended(code)

    def goodbye(self) -> float:
        """Return the seconds that the server has to end the connection."""
        return 5 * SCALE

    def send_close(self, code: int) -> None:
        self.write(frame(CLOSE, code.to_bytes(2)))
        self.closing = True

    def write(self, data: bytes) -> None:
        if not self.closing:
            self.writer.write(data)

    def stop(self) -> None:
        self.stopping = True
        self.send_close(1000)

    # The protocol

    def message(self, text: str) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            return
        if isinstance(message, dict) and str(message.get("type", "")).endswith("_response"):
            self.answered(message)

    def answered(self, message: dict[str, Any]) -> None:
        waiting = self.waiting.pop(str(message.get("reqId")), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message.get("data"))

    def next_id(self) -> str:
        self.last_id += 1
        return str(self.last_id)

    async def ask(self, **fields: Any) -> Any:
        req_id = self.next_id()
        answer = self.waiting[req_id] = asyncio.get_running_loop().create_future()
        self.write(self.encode({**fields, "reqId": req_id}))
        async with asyncio.timeout(self.timeout()):
            return await answer

    def encode(self, message: Any) -> bytes:
        return frame(TEXT, json.dumps(message).encode())

    async def work(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.gather(*self.subscribe())
        number = 0
        while True:
            sent = [f"echo {number} a", f"echo {number} b"]
            number += 1
            came = await asyncio.gather(*map(self.echo, sent), return_exceptions=True)
            pairs = [(text, data["echo"]) for text, data in zip(sent, came, strict=True) if isinstance(data, dict)]
            with contextlib.suppress(TimeoutError):
                await self.echo("answered " + json.dumps(pairs))
            await asyncio.sleep(SCALE)

    def subscribe(self) -> list[Any]:
        return [self.ask(type="subscribe_request", topic=topic) for topic in self.topics]

    def echo(self, text: str) -> Any:
        return self.ask(type="echo_request", echo=text)


def bad(**methods: Callable[..., Any]) -> type[Good]:
    """Return a client that is good but for these methods."""
    return type("Bad", (Good,), methods)
