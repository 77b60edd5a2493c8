"""A peer that need not be there: the plain consumer written with Chanx, which checks messages by pydantic models."""

from typing import Any, Literal

from pydantic import BaseModel

from . import plain_site  # noqa: F401 - sets Django up
from .lifespan import lifespan
from .trigger import publication, with_trigger

# isort: split
from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from chanx.channels.websocket import AsyncJsonWebsocketConsumer
from chanx.core.decorators import channel, ws_handler
from chanx.messages.base import BaseMessage
from django.urls import path


class EchoPayload(BaseModel):
    reqId: str
    echo: str


class EchoMessage(BaseMessage):
    action: Literal["echo"] = "echo"
    payload: EchoPayload


class EchoAnswer(BaseMessage):
    action: Literal["echo_answer"] = "echo_answer"
    payload: EchoPayload


class Publication(BaseMessage):
    action: Literal["publication"] = "publication"
    payload: dict[str, Any]


@channel(name="benchmark")
class ChanxConsumer(AsyncJsonWebsocketConsumer):
    """Join the group in the path, pass on what is broadcast to it, and echo, for who is signed in."""

    passthrough_events = [Publication]

    async def post_authentication(self) -> None:
        if self.scope["user"].is_authenticated:
            await self.join_group(self.scope["url_route"]["kwargs"]["topic"])
        else:
            await self.close()

    @ws_handler
    async def echo(self, message: EchoMessage) -> EchoAnswer:
        return EchoAnswer(payload=message.payload)


async def publish(topic: str) -> None:
    await ChanxConsumer.broadcast_event(Publication(payload=publication(topic)), [topic])


site = ProtocolTypeRouter(
    {
        "websocket": AuthMiddlewareStack(URLRouter([path("ws/<str:topic>/", ChanxConsumer.as_asgi())])),
        "lifespan": lifespan,
    }
)
application = with_trigger(site, publish)
