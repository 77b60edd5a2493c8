"""
The bad clients. Each does the same again and again, and notes what the server did about it.

``attempt`` is one round; it adds to ``rounds`` when the server did what it should, and to ``problems`` when it did not.
"""

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections import Counter
from typing import ClassVar

from .client import CLOSE, HANDSHAKE, NORMAL, Client, connect, frame, opened, request
from .garbage import Garbage
from .inside import LOOK_EVERY, Inside

FLOODED_AT_ONCE = 100
"""Requests that a flooder writes at once."""
SLACK = 5.0
"""Seconds that something may take longer than its limit says; some things take several."""
LINGER = 5.0
"""Seconds that a client which was closed for not reading may still read."""
PAUSE = 0.5
"""Seconds between two rounds of one client, or else connecting is all that the server does."""
SMALL_BUFFER, BIG_BUFFER = 16 * 1024, 2 * 1024 * 1024
"""Bytes that the kernel takes for a client: one that does not read, and one that reads on, and has to be quick."""
ECHO = request("echo", reqId="flood", echo="x" * 20)
LAST_ECHO = request("echo", reqId="last", echo="are you there?")


class Bad(ABC):
    """Be one bad client, until it is told to end by ``ending``."""

    kind: ClassVar[str]

    def __init__(self, number: int, inside: Inside) -> None:
        self.number = number
        self.inside = inside
        self.rounds = 0
        self.problems: list[str] = []
        self.seen: Counter[str] = Counter()
        self.client: Client | None = None
        self.ending = False

    async def run(self) -> None:
        """Be bad until told to end; a round that is over soon then is still finished."""
        while not self.ending:
            try:
                await self.attempt()
            except OSError as error:  # a TimeoutError is one, too
                self.problems.append(f"{self.kind}: {error!r}")
                await asyncio.sleep(1)
            finally:
                if self.client is not None:
                    self.client.reset()

    @abstractmethod
    async def attempt(self) -> None: ...

    async def open(self, receive_buffer: int | None = None) -> Client:
        self.client = await opened(self.inside.port, receive_buffer=receive_buffer)
        return self.client


class Slow(Bad):
    """
    Subscribe and read no more.

    The even ones get big publications all the time, so that they are soon over the limit; the others no more than make
    the kernel's own buffer overflow, so that they are found out when nothing moves. Half of each read on once they are
    being closed, and see the close frame.
    """

    kind = "slow"

    async def attempt(self) -> None:
        client = await self.open(SMALL_BUFFER)
        key = await client.demand(request("whoami"))
        await client.demand(request("subscribe", topic="ticker"))
        await client.demand(request("subscribe", topic=f"heap.{key}" if self.number % 2 else "bulk"))
        client.transport.pause_reading()
        patience = self.inside.limits["WRITE_TIMEOUT"] + 4 * SLACK
        deadline = time.monotonic() + patience
        while (waiting := self.inside.waiting(key)) is not None and not self.ending:
            if time.monotonic() > deadline:
                self.problems.append(f"a client that does not read is still there after {patience:g} s")
                return
            if self.number % 2 and not waiting:
                client.write(request("heap"))
            await asyncio.sleep(LOOK_EVERY)
        if waiting is None:
            await self._closed(client, key)

    async def _closed(self, client: Client, key: str) -> None:
        """See the close through: on the wire, or in what the server says."""
        self.inside.to_be_closed.append(key)
        if self.number % 4 < 2:
            client.read_on(BIG_BUFFER)
            async with asyncio.timeout(LINGER + SLACK):
                code = await client.gone
            self.seen[f"closed with {code}"] += 1
            if code != 3008:
                self.problems.append(f"a client that did not read was closed with {code} on the wire")
        else:
            async with asyncio.timeout(LINGER + SLACK):
                while key in self.inside.slow:
                    await asyncio.sleep(0.1)
            self.seen["dropped unread"] += 1
        self.rounds += 1


class Flooder(Bad):
    """Ask for echoes as fast as the socket takes them, and read the answers."""

    kind = "flooder"

    async def attempt(self) -> None:
        client = await self.open()
        client.on_frame = self._answered
        begin, limit = time.monotonic(), self.inside.limits["FLOOD_TIMEOUT"]
        while not client.gone.done() and not self.ending:
            client.write(ECHO * FLOODED_AT_ONCE)
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(0.5):
                    await client.writable.wait()
            except TimeoutError:  # held back; it may be closed meanwhile
                pass
            if time.monotonic() - begin > 2 * limit + 2 * SLACK:
                self.problems.append(f"a flooder is still there after {2 * limit + 2 * SLACK:g} s")
                return
        if client.gone.done():
            self._closed(client.gone.result(), time.monotonic() - begin, limit)

    def _answered(self, opcode: int, payload: bytes) -> None:
        self.seen["RATE_LIMITED" if b'"RATE_LIMITED"' in payload else "answered"] += 1

    def _closed(self, code: int, after: float, limit: float) -> None:
        self.seen[f"closed with {code}"] += 1
        self.rounds += 1
        if code != 1008:
            self.problems.append(f"a flooder was closed with {code} after {after:.1f} s")
        elif after < limit * 0.9:
            self.problems.append(f"a flooder was closed after {after:.1f} s already")


class Garbler(Bad):
    """Send one piece of garbage after the other, each on a connection of its own."""

    kind = "garbler"

    def __init__(self, number: int, inside: Inside, garbage: list[Garbage], total: int) -> None:
        super().__init__(number, inside)
        begin = number * len(garbage) // total
        self._garbage = itertools.cycle(garbage[begin:] + garbage[:begin])

    async def attempt(self) -> None:
        garbage = next(self._garbage)
        client = await self.open()
        client.write(garbage.data)
        if garbage.half:
            await asyncio.sleep(0.2)
            outcome, right = "half sent", not client.gone.done()
        else:
            outcome, right = await self._outcome(client, garbage)
        if not right:
            self.problems.append(f"garbage {garbage.name!r}: {outcome}")
        self.seen[outcome] += 1
        self.rounds += 1
        await asyncio.sleep(PAUSE)

    async def _outcome(self, client: Client, garbage: Garbage) -> tuple[str, bool]:
        """Return what came of it, and whether that was right."""
        last = asyncio.get_running_loop().create_future()

        def received(opcode: int, payload: bytes) -> None:
            if b'"reqId":"last"' in payload and not last.done():
                last.set_result(None)

        client.on_frame = received
        if garbage.lives:
            client.write(LAST_ECHO)
        patience = 2 * self.inside.limits["FLOOD_TIMEOUT"] + 2 * SLACK
        await asyncio.wait([last, client.gone], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if last.done():
            return "lived on", garbage.lives
        if client.gone.done():
            return f"closed with {client.gone.result()}", client.gone.result() in garbage.codes
        return "nothing", self.ending


class Vanisher(Bad):
    """Connect, and be gone: at once, in mid-handshake, right after it or a request, after half a frame or a close."""

    kind = "vanisher"

    async def attempt(self) -> None:
        way = (self.number + self.rounds) % 7
        subscribe = request("subscribe", topic="ticker")
        if way < 3:
            self.client = await connect(self.inside.port, (b"", HANDSHAKE[:60], HANDSHAKE)[way])
            await asyncio.sleep(0.01 * (self.rounds % 3))
        else:
            client = await self.open()
            client.write((subscribe, subscribe[:20], b"\x81", subscribe + frame(NORMAL, CLOSE))[way - 3])
            await asyncio.sleep(0.02 * (self.rounds % 2))
        self.client.reset()
        self.rounds += 1
        self.seen["vanished"] += 1
        await asyncio.sleep(PAUSE)
