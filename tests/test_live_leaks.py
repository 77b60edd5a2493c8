"""Connections that come and go leave nothing behind in the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from . import raw
from .live import Server, eventually
from .raw import Raw

AT_ONCE = 250
ROUNDS = 6


def leftovers(server: Server) -> dict[str, Any]:
    left: dict[str, Any] = server.get("/leftovers/")
    return left


async def idle(server: Server) -> dict[str, Any]:
    """Return what is there once nobody is connected any more."""

    def nobody() -> bool:
        left = leftovers(server)
        kinds = ("Connection", "RealtimeConsumer", "WebSocketProtocol", "WebSocketsSansIOProtocol")
        return left["connections"] == 0 and not any(left["objects"][kind] for kind in kinds)

    await eventually(nobody)
    return leftovers(server)


async def assert_nothing_left(server: Server, before: dict[str, Any]) -> None:
    """
    Wait until there is no more than ``before``.

    There may be less: a request that looked at it may have met the last remains of another, such as a socket that
    was not closed yet.
    """

    def grown() -> dict[str, tuple[int, int]]:
        was, now = flat(before), flat(leftovers(server))
        return {name: (was[name], now[name]) for name in now if now[name] > was[name]}

    seen: dict[str, tuple[int, int]] = {}

    def nothing_has_grown() -> bool:
        seen.clear()
        seen.update(grown())
        return not seen

    try:
        await eventually(nothing_has_grown)
    except AssertionError:
        assert seen == {}, "what there is more of, with how much there was before"
        raise


def flat(left: dict[str, Any]) -> dict[str, int]:
    """Return all counts by one name each."""
    return {name: count for name, count in (left | left["objects"]).items() if isinstance(count, int)}


async def come_and_go(server: Server, number: int) -> None:
    """Connect, do what one client in six does, and leave."""
    async with Raw(server.port) as client:
        await client.open()
        topics = [[], ["heartbeat"], ["news", "many-1"], [f"many-{number % 100}"], ["hanging-thread"], []][number % 6]
        for topic in topics:
            await client.send_json({"type": "subscribe_request", "topic": topic})
        if number % 6 != 4:
            await client.send_json({"type": "echo_request", "echo": "x"})
            while json.loads((await client.frame())[1])["type"] != "echo_response":
                pass
        if number % 2:
            client.abort()
        else:
            await client.send(raw.frame(raw.CLOSE, (1000).to_bytes(2)))
            await client.ended()


async def hundreds_come_and_go(server: Server, rounds: int) -> None:
    for batch in range(rounds):
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(come_and_go(server, batch * AT_ONCE + number))


async def test_connections_that_come_and_go_leave_nothing_behind(server: Server) -> None:
    await hundreds_come_and_go(server, 1)  # what is made once, such as threads, is there from now on
    before = await idle(server)
    await hundreds_come_and_go(server, ROUNDS)
    await assert_nothing_left(server, before)


async def test_refused_and_broken_handshakes_leave_nothing_behind(server: Server) -> None:
    async def refused(part: int | None) -> None:
        async with Raw(server.port) as client:
            await client.send(raw.handshake("/nope/")[:part])
            if part is None:
                await client.ended()
            else:
                client.abort()

    before = await idle(server)
    for _ in range(3):
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(refused([None, 0, 20, 100][number % 4]))
    await assert_nothing_left(server, before)


@pytest.mark.parametrize("code", [4000, 1006])
async def test_closed_connections_leave_nothing_behind(server: Server, code: int) -> None:
    before = await idle(server)
    for _ in range(3):
        clients = [Raw(server.port) for _ in range(100)]
        for client in clients:
            await client.__aenter__()
            await client.open()
            await client.send_json({"type": "subscribe_request", "topic": "news"})
            await client.frame()
        assert (await server.aget(f"/close/?code={code}"))["connections"] == 100
        for client in clients:
            assert await client.closed() == (code, "")
            await client.__aexit__()
    await assert_nothing_left(server, before)
