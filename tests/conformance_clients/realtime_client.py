"""Our Python client, as the conformance report sees it: it subscribes, echoes each second, and tells what it got."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys

from realtime import client as realtime_client
from realtime.client import Client
from realtime.exceptions import RealtimeError


async def take_beats(client: Client) -> None:
    while True:
        try:
            async with client.subscribe("heartbeat") as beats:
                async for _ in beats:
                    pass
        except realtime_client.ConnectionEnded:
            return
        except RealtimeError as error:
            print(f"subscription: {error!r}", flush=True)


async def echo(client: Client, scale: float) -> None:
    """Send two echo requests at a time, and then what came back to each."""
    number = 0
    while True:
        sent = [f"echo {number}", f"echo {number + 1}"]
        number += 2
        try:
            came = await asyncio.gather(*(client.echo(text) for text in sent))
            await client.echo("answered " + json.dumps(list(zip(sent, came, strict=True))))
        except realtime_client.ConnectionEnded as error:
            print(f"ended: {error}", flush=True)
            return
        except RealtimeError as error:
            print(f"echo: {error!r}", flush=True)
        await asyncio.sleep(scale)


async def main(url: str, scale: float) -> None:
    realtime_client.BUSY_DELAY *= scale
    realtime_client.STABLE *= scale
    options = {"timeout": 10 * scale, "idle_timeout": 25 * scale, "echo_timeout": 10 * scale}
    async with Client(url, backoff=(scale, 30 * scale), **options) as client:  # type: ignore[arg-type]
        work = asyncio.gather(take_beats(client), echo(client, scale))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            pass


if __name__ == "__main__":
    if "DEMOWS_SEED" in os.environ:
        random.seed(os.environ["DEMOWS_SEED"])
    asyncio.run(main(sys.argv[1], float(os.environ.get("DEMOWS_SCALE", "1"))))
