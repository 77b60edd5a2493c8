"""
The peer: a site with the consumer of the Channels tutorial, behind session authentication, and the trigger.

It has the demo's database and channel layer, and not realtime, which repairs Daphne where it is installed.
"""

from datetime import UTC, datetime
from typing import Any

import django
from django.conf import settings

from demows_project import settings as demo

from .trigger import DATA, with_trigger

settings.configure(
    SECRET_KEY=demo.SECRET_KEY,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "channels"],
    DATABASES=demo.DATABASES,
    CHANNEL_LAYERS=demo.CHANNEL_LAYERS,
    LOGGING=demo.LOGGING,
)
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402 - needs the apps to be loaded
from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

GROUP = "prices"


class PlainConsumer(AsyncJsonWebsocketConsumer):
    """Join a group, pass on what is sent to it, and echo, for who is signed in: in the messages that realtime uses."""

    async def connect(self) -> None:
        if not self.scope["user"].is_authenticated:
            await self.close()
            return
        await self.channel_layer.group_add(GROUP, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(GROUP, self.channel_name)

    async def receive_json(self, content: dict[str, Any]) -> None:
        data = {"echo": content["echo"]}
        await self.send_json({"type": "echo_response", "reqId": content["reqId"], "status": "OK", "data": data})

    async def publication(self, event: dict[str, Any]) -> None:
        await self.send_json(event)


async def publish() -> None:
    event = {"type": "publication", "topic": GROUP, "data": DATA, "timestamp": datetime.now(UTC).isoformat()}
    await get_channel_layer().group_send(GROUP, event)


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Tell uvicorn that there is nothing to start or to stop."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


site = ProtocolTypeRouter(
    {
        "websocket": AuthMiddlewareStack(URLRouter([path("ws/", PlainConsumer.as_asgi())])),
        "lifespan": lifespan,
    }
)
application = with_trigger(site, publish)
