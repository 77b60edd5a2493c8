"""A peer that vanishes without a word: no FIN, no RST, nothing more ever comes from its address."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count

import pytest

from .live import Client, eventually, running
from .raw import Raw
from .test_live_limits import PINGS, nobody_left

_numbers = count(1)


class Away:
    """Be a loopback address, until it is taken off the net."""

    def __init__(self) -> None:
        self.address = f"127.77.{next(_numbers)}.1"
        self._gone = False

    def vanish(self) -> None:
        """Have everything that is sent to the address disappear."""
        self._route("add")
        self._gone = True

    def restore(self) -> None:
        if self._gone:
            self._route("del")
            self._gone = False

    def _route(self, verb: str) -> None:
        command = ["ip", "route", verb, "blackhole", f"{self.address}/32", "table", "local"]
        subprocess.run(command, check=True, capture_output=True, timeout=20)


@pytest.fixture
def away() -> Iterator[Away]:
    """An address that can vanish, which takes the right to change this machine's routes."""
    away = Away()
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command (iproute2)")
    try:
        away.vanish()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"routes cannot be changed here: {error.stderr.decode().strip()}")
    away.restore()
    yield away
    away.restore()


@pytest.mark.parametrize("topic", ["news", "heartbeat"], ids=["nothing to send", "heartbeats to send"])
async def test_peer_that_vanished_is_given_up(kind: str, away: Away, topic: str) -> None:
    with running(kind, *PINGS[kind]) as own:
        async with Client(own.url) as other, Raw(own.port, source=away.address) as peer:
            await peer.open()
            await peer.send_json({"type": "subscribe_request", "topic": topic})
            await peer.frame()
            away.vanish()
            await nobody_left(own, but=1)  # though the socket is still open on the other side
            await eventually(lambda: own.get("/leftovers/")["members"] == 2)  # the hub's own
            await asyncio.to_thread(own.wait_for_line, "event=disconnected connection=[0-9a-f-]{36} code=10")
            await other.echo()
        await own.assert_calm(0)
