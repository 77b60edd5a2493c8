"""The site's topics, and the requests by which the load publishes and learns its connections' ids."""

import asyncio

from pydantic import BaseModel, Field

from realtime import Caller, Topic, apublish, request_handler

BULK = 32 * 1024
"""Bytes of a big publication."""
AT_ONCE = 48
"""Big publications that one request leads to at most: they must not be over the limit together."""

ticker = Topic("ticker", public=True)
"""What the good clients listen to."""
bulk = Topic("bulk", public=True)
"""Big publications without end, for clients that do not read."""
heap = Topic("heap.{owner}", public=True)
"""A topic for one client that does not read: as much is published on it as the kernel holds, and then no more."""


class Publish(BaseModel):
    """Ask for a publication of about ``size`` bytes."""

    topic: str
    size: int = Field(ge=0, le=1 << 16)
    number: int = 0
    sent: float = 0.0


class Heap(BaseModel):
    """Ask for a few big publications on the connection's own ``heap``, unless some wait in the server already."""


class WhoAmI(BaseModel):
    """Ask for the id that the server knows the connection by."""


@request_handler("publish_request", public=True)
async def publish(request: Publish, caller: Caller) -> int:
    data = {"number": request.number, "sent": request.sent, "pad": "x" * request.size}
    await apublish(request.topic, data)
    return request.number


@request_handler("whoami_request", public=True)
async def who_am_i(request: WhoAmI, caller: Caller) -> str:
    return caller.connection.id


@request_handler("heap_request", public=True)
async def pile_up(request: Heap, caller: Caller) -> int:
    for count in range(AT_ONCE):
        if caller.connection.wire.buffered:
            return count
        await apublish(f"heap.{caller.connection.id}", {"pad": "x" * BULK})
        await asyncio.sleep(0.005)
    return AT_ONCE
