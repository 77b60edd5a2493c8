"""The floor: what the server and JSON cost, and no more. An ASGI application without Django, Channels and sessions."""

import json
from collections import defaultdict
from typing import Any, Literal

from pydantic import BaseModel

from .lifespan import lifespan
from .trigger import publication, with_trigger

subscribers: defaultdict[str, dict[Any, None]] = defaultdict(dict)
"""The ``send`` of each connection, by the topic it is for."""


class EchoRequest(BaseModel):
    type: Literal["echo_request"]
    reqId: str
    echo: str


class EchoResponse(BaseModel):
    type: Literal["echo_response"] = "echo_response"
    reqId: str
    status: Literal["OK"] = "OK"
    data: dict[str, str]


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Subscribe a WebSocket to the topic in its path, and echo."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    topic = scope["path"].split("/")[2]
    await receive()
    await send({"type": "websocket.accept"})
    subscribers[topic][send] = None
    while (message := await receive())["type"] == "websocket.receive":
        request = EchoRequest.model_validate_json(message["text"])
        answer = EchoResponse(reqId=request.reqId, data={"echo": request.echo}).model_dump_json()
        await send({"type": "websocket.send", "text": answer})
    del subscribers[topic][send]


async def publish(topic: str) -> None:
    """Encode once, and send to one after the other: a client that does not read would hold up all after it."""
    message = {"type": "websocket.send", "text": json.dumps(publication(topic))}
    for send in tuple(subscribers[topic]):
        await send(message)


application = with_trigger(application, publish)
