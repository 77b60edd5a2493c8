"""Draining: what clients, load balancers and operators see while a server is being stopped."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from urllib.error import HTTPError

import pytest

from . import raw
from .live import Client, Server, eventually, running, stalls
from .raw import Raw

FAREWELL = (1001, "server shutdown")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@contextmanager
def stoppable(kind: str, **env: str) -> Iterator[Server]:
    """Run a server that the test may stop."""
    with running(kind, **{f"REALTIME_{name}": value for name, value in env.items()}) as server:
        server.get("/readyz")  # Daphne says that it listens before it minds signals
        yield server


async def ends(server: Server, number: int) -> None:
    """Wait until the server has ended as it does by itself: uvicorn by the signal that stopped it."""
    code = await asyncio.to_thread(server.wait)
    assert code == (-number if server.kind == "uvicorn" and number == signal.SIGTERM else 0), server.output
    assert "Traceback" not in server.output, server.output


def readiness(server: Server) -> int:
    """Return the status that /readyz answers with."""
    try:
        server.get("/readyz")
    except HTTPError as error:
        return error.code
    return 200


@SIGNALS
async def test_server_that_drains_says_so_and_lets_nobody_in(kind: str, number: int) -> None:
    with stoppable(kind, DRAIN_TIMEOUT="10") as own:
        async with Raw(own.port) as stays, Client(own.url) as goes:
            await stays.open()
            own.signal(number)
            assert await goes.closed() == FAREWELL
            assert await stays.closed() == FAREWELL  # and does not answer it
            assert await asyncio.to_thread(readiness, own) == 503
            async with Raw(own.port) as late:
                head = await late.open()
                assert head.split()[1] == "503"
                assert "retry-after: 1\r\n" in (head.lower() + "\r\n")
        await ends(own, number)
        assert f"event=draining signal={signal.Signals(number).name}" in own.output
        assert "event=drain_aborted" not in own.output


async def test_clients_are_closed_in_batches(kind: str) -> None:
    for _ in range(5):
        with stoppable(kind, DRAIN_SECONDS="1") as own:
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(Client(own.url)) for _ in range(300)]

                async def farewell(client: Client) -> float:
                    assert await client.closed() == FAREWELL
                    return time.monotonic()

                async with stalls() as stalled:
                    own.signal(signal.SIGTERM)
                    moments = sorted(await asyncio.gather(*map(farewell, clients)))
            await ends(own, signal.SIGTERM)
        if stalled.longest < 0.1:  # otherwise the moments say little of the server
            break
    assert moments[-1] - moments[0] > 0.3
    assert moments[149] - moments[0] > 0.1


async def test_client_that_does_not_leave_is_dropped_after_the_timeout(kind: str) -> None:
    with stoppable(kind, DRAIN_TIMEOUT="1") as own:
        async with Raw(own.port) as stays:
            await stays.open()
            began = time.monotonic()
            own.signal(signal.SIGTERM)
            assert await stays.closed() == FAREWELL
            await stays.ended()
            assert 0.9 < time.monotonic() - began < 4
        await ends(own, signal.SIGTERM)
        assert "event=drain_aborted dropped=1" in own.output


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_second_signal_drops_everybody_at_once(kind: str, second: int) -> None:
    with stoppable(kind, DRAIN_TIMEOUT="60", HANDLER_TIMEOUT="60") as own:
        async with Raw(own.port) as stays, Client(own.url) as hangs:
            await stays.open()
            await hangs.send({"type": "subscribe_request", "topic": "hanging"})
            await own.mark()
            own.signal(signal.SIGTERM)
            assert await stays.closed() == FAREWELL
            own.signal(second)
            began = time.monotonic()
            await ends(own, signal.SIGTERM)
            assert time.monotonic() - began < 4
            await hangs.closed()
        assert "event=drain_aborted dropped=2" in own.output


async def test_what_waits_is_written_before_the_farewell(kind: str) -> None:
    with stoppable(kind, DRAIN_TIMEOUT="15") as own:
        async with Raw(own.port, receive_buffer=4096) as slow:
            await slow.open()
            await slow.send_json({"type": "subscribe_request", "topic": "many-9"})
            await slow.frame()
            published = 0
            while (await own.aget("/wire/?topic=many-9&action=look"))["buffered"] < 500_000:
                await own.aget("/publish_text/?topic=many-9&size=60000")
                published += 1
            own.signal(signal.SIGTERM)
            await asyncio.to_thread(own.wait_for_line, "event=draining")
            for _ in range(published):
                opcode, payload = await slow.frame()
                assert opcode == raw.TEXT
                assert len(payload) > 60_000
            assert await slow.closed() == FAREWELL
            await slow.send(raw.frame(raw.CLOSE, (1001).to_bytes(2)))
        await ends(own, signal.SIGTERM)
        assert "event=drain_aborted" not in own.output


async def test_handler_that_hangs_ends_with_the_drain(kind: str) -> None:
    with stoppable(kind, DRAIN_TIMEOUT="1", HANDLER_TIMEOUT="60") as own:
        async with Client(own.url) as hangs:
            await hangs.send({"type": "subscribe_request", "topic": "hanging"})
            await own.mark()
            began = time.monotonic()
            own.signal(signal.SIGTERM)
            assert await hangs.closed() == FAREWELL
            await ends(own, signal.SIGTERM)
            assert time.monotonic() - began < 6


async def test_closing_a_live_fleet_spreads_as_asked_and_goes_on(kind: str) -> None:
    with stoppable(kind) as own:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(own.url)) for _ in range(20)]
            outcome = await own.aget("/close/?code=1012&reason=deploy&spread=1")
            assert outcome["connections"] == 20
            began = time.monotonic()
            assert await asyncio.gather(*(client.closed() for client in clients)) == [(1012, "deploy")] * 20
            assert time.monotonic() - began > 0.5
        await eventually(lambda: own.get("/census/")["connections"] == 0)
        async with Client(own.url) as again:
            await again.echo()
