"""A client on the reconnect loop of ``websockets``, as its documentation has it, with a simple protocol on top."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from typing import Any

SCALE = float(os.environ.get("DEMOWS_SCALE", "1"))
for name, seconds in {"INITIAL": 5, "MIN": 3.1, "MAX": 90}.items():  # its own, which it reads when it is imported
    os.environ[f"WEBSOCKETS_BACKOFF_{name}_DELAY"] = str(seconds * SCALE)

from websockets.asyncio.client import ClientConnection, connect  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402


async def read(ws: ClientConnection, waiting: dict[str, asyncio.Future[Any]]) -> None:
    """Give answers to whoever waits for them, by their reqId."""
    async for frame in ws:
        try:
            message = json.loads(frame)
        except ValueError:
            continue
        answer = waiting.pop(message.get("reqId"), None) if isinstance(message, dict) else None
        if answer is not None and not answer.done():
            answer.set_result(message.get("data"))


async def talk(ws: ClientConnection, waiting: dict[str, asyncio.Future[Any]], scale: float) -> None:
    """Subscribe, and echo each second."""
    ids = (str(number) for number in itertools.count(1))

    async def ask(**fields: Any) -> Any:
        req_id = next(ids)
        waiting[req_id] = asyncio.get_running_loop().create_future()
        await ws.send(json.dumps({**fields, "reqId": req_id}))
        async with asyncio.timeout(10 * scale):
            return await waiting[req_id]

    async def echo(text: str) -> str:
        return (await ask(type="echo_request", echo=text))["echo"]

    await ask(type="subscribe_request", topic="heartbeat")
    for number in itertools.count():
        sent = [f"echo {number} a", f"echo {number} b"]
        try:
            came = await asyncio.gather(*map(echo, sent))
            await echo("answered " + json.dumps(list(zip(sent, came, strict=True))))
        except TimeoutError:
            pass
        await asyncio.sleep(scale)


async def main(url: str, scale: float) -> None:
    stopping = asyncio.Event()
    options = {"ping_interval": 20 * scale, "ping_timeout": 20 * scale, "open_timeout": 10 * scale}
    async for ws in connect(url, close_timeout=10 * scale, **options):  # type: ignore[arg-type]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop, stopping, ws)
        waiting: dict[str, asyncio.Future[Any]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(read(ws, waiting))
                talking = group.create_task(talk(ws, waiting, scale))
                reading.add_done_callback(lambda _, talking=talking: talking.cancel())
        except* (ConnectionClosed, TimeoutError):
            pass
        # No look at the code of the close frame: the loop of the documentation has none either.
        if stopping.is_set():
            break


def stop(stopping: asyncio.Event, ws: ClientConnection) -> None:
    stopping.set()
    asyncio.get_running_loop().create_task(ws.close())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], SCALE))
