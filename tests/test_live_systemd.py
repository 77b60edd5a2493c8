"""Daphne as docs/operate.md has systemd start it: several processes that were given one listening socket."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from .live import ROOT, Client, Process, Redis, System, eventually
from .shop.walkthrough import blocks_of

PAGE = "docs/operate.md"
HAND_OVER = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"


def unit(name: str) -> dict[str, str]:
    """Return the directives of a unit file on the page."""
    [text] = [block.text for block in blocks_of(ROOT / PAGE) if f"/{name}\n" in block.text]
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


@contextmanager
def started(listener: socket.socket, env: dict[str, str]) -> Iterator[Process]:
    """Start the process of the service's unit, with the socket as systemd hands it over."""
    command = unit("mysite@.service")["ExecStart"].split()
    assert command[0].endswith("/daphne")
    command[0] = str(Path(sys.executable).parent / "daphne")
    command[-1] = "tests.site.asgi:application"
    number = str(listener.fileno())
    process = Process(sys.executable, "-c", HAND_OVER, number, *command, pass_fds=[listener.fileno()], **env)
    try:
        process.wait_for_line("Listening on")
        yield process
    finally:
        process.stop()


async def test_processes_share_the_socket_and_one_that_ends_takes_nobody_with_it(redis: Redis) -> None:
    assert unit("mysite.socket")["ListenStream"].endswith(":8000")
    system = System(redis)
    env = {"SECRET_KEY": "only for tests", "DJANGO_SETTINGS_MODULE": "tests.site.settings", **system.env}
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        started(listener, env) as one,
        started(listener, env) as two,
    ):
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        async with AsyncExitStack() as stack:
            clients: dict[int, Client] = {}
            while clients.keys() < {one.pid, two.pid}:
                client = await stack.enter_async_context(Client(url))
                answer = await client.ask({"type": "process_request"})
                clients.setdefault(answer["data"], client)
            for client in clients.values():
                await client.subscribe("news")
            await eventually(lambda: redis.members("news") == 2)
            one.signal(signal.SIGTERM)
            assert await clients[one.pid].closed() == (1001, "server shutdown")
            assert await asyncio.to_thread(one.wait) == 0
            newcomer = await stack.enter_async_context(Client(url))
            await newcomer.subscribe("news")
            await asyncio.to_thread(
                system.script("import django; django.setup(); from realtime import publish; publish('news', 1)").wait
            )
            for client in (clients[two.pid], newcomer):
                assert await client.publications(1) == [1]
