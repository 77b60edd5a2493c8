"""The wire on any ASGI server: frames go through ``send`` in turn, by a task that ends when all are sent."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..protocol import CloseCode
from .base import HIGH_WATER, LINGER, Listener, ServerWire, is_text, payload_of

logger = logging.getLogger("realtime.servers")

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class AsgiWire:
    """
    Use nothing but ASGI's ``send``.

    ``send`` may wait for the client, so frames queue here while it does. ASGI has no way to drop a
    connection or to stop reading: ``abort`` closes with 1001, which clients treat alike, and reading
    is held back only by not calling ``receive``.
    """

    def __init__(self, send: Send) -> None:
        self.listener: Listener | None = None
        self.closed = False
        self.buffered = 0
        self._send = send
        self._queue: deque[tuple[dict[str, Any], int]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._congested = False

    @property
    def gone(self) -> bool:
        return self._task is None

    def write(self, frame: bytes) -> None:
        if not self.closed:
            payload = payload_of(frame)
            content = {"text": payload.decode()} if is_text(frame) else {"bytes": payload}
            self._put({"type": "websocket.send", **content}, len(payload))

    def close(self, code: int, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self._put({"type": "websocket.close", "code": code, "reason": reason}, 0)

    def abort(self) -> None:
        self.discard()
        self.close(CloseCode.GOING_AWAY, "")

    def discard(self) -> None:
        """Send nothing of what is still queued."""
        while self._queue:
            self.buffered -= self._queue.popleft()[1]

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def _put(self, message: dict[str, Any], size: int) -> None:
        self._queue.append((message, size))
        self.buffered += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send_all())
        if self.buffered > HIGH_WATER and not self._congested and self.listener is not None:
            self._congested = True
            self.listener.congested()

    async def _send_all(self) -> None:
        try:
            while self._queue:
                message, size = self._queue.popleft()
                await self._send(message)
                self.buffered -= size
        except Exception as error:  # noqa: BLE001 - each server raises its own kind when the client has gone
            logger.debug("event=send_failed error=%r", error)
            self.closed = True
            self._queue.clear()
            await self._give_up()
        finally:
            self._task = None
            self.buffered = 0
        if self._congested and self.listener is not None:
            self._congested = False
            self.listener.writable()

    async def _give_up(self) -> None:
        """End a connection that something could not be sent to: its client would wait for it."""
        try:
            await self._send({"type": "websocket.close", "code": CloseCode.INTERNAL_ERROR})
        except Exception as error:  # noqa: BLE001
            logger.debug("event=close_failed error=%r", error)


class WrappedWire:
    """
    Send through a middleware's ``send``, and do all else by the server's own wire.

    So what the server holds counts, and the connection can be dropped, whatever stands in between.
    """

    def __init__(self, wire: ServerWire, send: Send) -> None:
        self.listener: Listener | None = None
        self.full: set[_Part] = set()
        self._wire = wire
        self._frames = AsgiWire(send)
        self._wire.listener, self._frames.listener = _Part(self), _Part(self)
        self.pause_reading = wire.pause_reading
        self.resume_reading = wire.resume_reading
        self.write = self._frames.write

    def close(self, code: int, reason: str) -> None:
        if not self.closed:
            self._frames.close(code, reason)
            self._wire.expect_close()
            # `send` may wait for a client that never reads, and the close frame with it.
            asyncio.get_running_loop().call_later(LINGER, self.abort)

    @property
    def closed(self) -> bool:
        return self._frames.closed or self._wire.closed

    @property
    def gone(self) -> bool:
        return self._wire.gone

    @property
    def buffered(self) -> int:
        return self._frames.buffered + self._wire.buffered

    def abort(self) -> None:
        self._frames.discard()
        self._wire.abort()


class _Part:
    """Listen to one part of a ``WrappedWire``, which is writable when both are."""

    def __init__(self, whole: WrappedWire) -> None:
        self._whole = whole

    def congested(self) -> None:
        self._whole.full.add(self)
        if self._whole.listener is not None:
            self._whole.listener.congested()

    def writable(self) -> None:
        self._whole.full.discard(self)
        if not self._whole.full and self._whole.listener is not None:
            self._whole.listener.writable()

    def controlled(self, written: int) -> None:
        if self._whole.listener is not None:
            self._whole.listener.controlled(written)
