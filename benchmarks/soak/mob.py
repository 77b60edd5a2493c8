"""All the bad clients at once."""

import asyncio
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import asynccontextmanager
from typing import Any

from .bad import LINGER, SLACK, Bad, Flooder, Garbler, Slow, Vanisher
from .client import opened, request
from .garbage import Garbage
from .inside import Inside

BULK = 32 * 1024
"""Bytes of a big publication."""
BULK_RATE = 32.0
"""Big publications a second. The kernel takes some megabytes for each client before the server has to hold any."""
KINDS = (Slow, Flooder, Garbler, Vanisher)


class Mob:
    """Be so many bad clients of each kind."""

    def __init__(self, inside: Inside, count: int, garbage: list[Garbage], kinds: Container[str]) -> None:
        self._inside = inside
        everybody: list[Bad] = []
        for number in range(count):
            everybody += [kind(number, inside) for kind in (Slow, Flooder, Vanisher)]
            everybody.append(Garbler(number, inside, garbage, count))
        self.members = [member for member in everybody if member.kind in kinds]

    @asynccontextmanager
    async def at_work(self) -> Any:
        """Let them be bad for the length of a ``with`` block, and finish what is over soon then."""
        press = asyncio.create_task(self._press())
        tasks = [asyncio.create_task(member.run()) for member in self.members]
        try:
            yield
            for member in self.members:
                member.ending = True
            await asyncio.wait(tasks, timeout=LINGER + SLACK + 1)
        finally:
            for task in (press, *tasks):
                task.cancel()
            outcomes = await asyncio.gather(press, *tasks, return_exceptions=True)
        for error in outcomes:
            if isinstance(error, Exception):
                raise error

    async def _press(self) -> None:
        """Publish big publications all the time."""
        client = await opened(self._inside.port)
        try:
            while True:
                client.write(request("publish", topic="bulk", size=BULK))
                await asyncio.sleep(1 / BULK_RATE)
        finally:
            client.reset()

    def problems(self) -> Iterator[str]:
        """Yield what the server did about them that it should not have done."""
        for member in self.members:
            yield from member.problems
            if not member.rounds:
                done = dict(member.seen) or "nothing"
                yield f"{member.kind} {member.number}: the server never did what it should about it; seen: {done}"
            if isinstance(member, Flooder) and not member.seen["RATE_LIMITED"]:
                yield f"flooder {member.number} was never answered RATE_LIMITED"
        codes = self._inside.codes()
        for key in self._inside.to_be_closed:
            if codes.get(key) != 3008:
                yield f"by the server's log, connection {key}, which did not read, ended with {codes.get(key)}"

    def figures(self) -> dict[str, Any]:
        """Return for each kind how many rounds it made, and what it has seen."""
        figures: dict[str, Any] = {}
        for kind in KINDS:
            members = [member for member in self.members if isinstance(member, kind)]
            if not members:
                continue
            seen = sum((member.seen for member in members), Counter[str]())
            figures[kind.kind] = {"rounds": sum(member.rounds for member in members), "seen": dict(seen.most_common())}
        return figures
