"""How a broadcast is asked for: a WebSocket on ``/publish``, each frame of which makes the site publish once."""

from collections.abc import Awaitable, Callable
from typing import Any

PATH = "/publish"
DATA = {"symbol": "ACME", "price": "12.34", "volume": 5600}
"""What is published, by either site."""


def with_trigger(application: Any, publish: Callable[[], Awaitable[None]]) -> Any:
    """
    Return an ASGI application that calls ``publish`` for each frame on ``PATH``, beside ``application``.

    The in-memory layer reaches its own process only, so the publisher has to be in it.
    """

    async def application_with_trigger(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket" and scope["path"] == PATH:
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] == "websocket.receive":
                await publish()
        else:
            await application(scope, receive, send)

    return application_with_trigger
