"""
The peer: a site with the consumer of the Channels tutorial, behind session authentication, and the trigger.

It has the demo's database and channel layer, and not realtime, which repairs Daphne where it is installed.
"""

import time
from typing import Any

import django
from django.conf import settings

from demows_project import settings as demo

from .lifespan import lifespan
from .trigger import publication, with_trigger

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


class PlainConsumer(AsyncJsonWebsocketConsumer):
    """
    Join the group in the path, pass on what is sent to it, and echo, for who is signed in.

    The messages are those that realtime uses.
    """

    async def connect(self) -> None:
        if not self.scope["user"].is_authenticated:
            await self.close()
            return
        self.began = time.monotonic()
        self.group = self.scope["url_route"]["kwargs"]["topic"]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive_json(self, content: dict[str, Any]) -> None:
        data = {"echo": content["echo"]}
        await self.send_json({"type": "echo_response", "reqId": content["reqId"], "status": "OK", "data": data})

    async def publication(self, event: dict[str, Any]) -> None:
        await self.send_json(event)

    async def heartbeat(self, event: dict[str, Any]) -> None:
        await self.send_json({**event, "uptime_seconds": str(int(time.monotonic() - self.began))})


async def publish(topic: str) -> None:
    await get_channel_layer().group_send(topic, publication(topic))


site = ProtocolTypeRouter(
    {
        "websocket": AuthMiddlewareStack(URLRouter([path("ws/<str:topic>/", PlainConsumer.as_asgi())])),
        "lifespan": lifespan,
    }
)
application = with_trigger(site, publish)
