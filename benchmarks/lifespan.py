"""What the peers answer to uvicorn, which waits for a site to start and to stop."""

from typing import Any


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Tell the server that there is nothing to start or to stop."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
