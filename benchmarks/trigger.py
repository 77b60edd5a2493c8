"""How a broadcast is asked for: a WebSocket on ``/publish``, each frame of which names a topic to publish on."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

PATH = "/publish"
DATA = {"symbol": "ACME", "price": "12.34", "volume": 5600}
"""What is published, by each site."""


def publication(topic: str) -> dict[str, Any]:
    """Return the message that peers publish: it holds what realtime's does."""
    if topic == "heartbeat":
        return {"type": "heartbeat", "timestamp": datetime.now(UTC).isoformat()}
    return {"type": "publication", "topic": topic, "data": DATA, "timestamp": datetime.now(UTC).isoformat()}


def with_trigger(application: Any, publish: Callable[[str], Awaitable[None]]) -> Any:
    """
    Return an ASGI application that calls ``publish`` for each frame on ``PATH``, beside ``application``.

    The in-memory layer reaches its own process only, so the publisher has to be in it.
    """

    async def application_with_trigger(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket" and scope["path"] == PATH:
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await publish(message["text"])
        else:
            await application(scope, receive, send)

    return application_with_trigger
