"""Act inside a server process, and look into it."""

import asyncio
import gc
import os

from django.http import JsonResponse

from realtime import CloseMessage, aclose_connections, apublish, close_connections, publish
from realtime.consumers import RealtimeConsumer
from realtime.hub import Connection, get_hub


def publish_many(request):
    """Publish numbers on a topic, from synchronous code."""
    topic, count = request.GET.get("topic", "news"), int(request.GET.get("count", "1"))
    for number in range(count):
        publish(topic, {"number": number})
    return JsonResponse({"published": count})


async def apublish_many(request):
    """Publish numbers on a topic, all at once."""
    topic, count = request.GET.get("topic", "news"), int(request.GET.get("count", "1"))
    await asyncio.gather(*(apublish(topic, {"number": number}) for number in range(count)))
    return JsonResponse({"published": count})


async def close(request):
    """Close connections as an operator would."""
    message = CloseMessage(code=int(request.GET["code"]), reason=request.GET.get("reason", ""))
    outcome = await aclose_connections(
        message, topic=request.GET.get("topic"), spread=float(request.GET.get("spread", "0"))
    )
    return JsonResponse(outcome._asdict())


def close_sync(request):
    """Close connections as an operator would, from synchronous code."""
    outcome = close_connections(CloseMessage(code=int(request.GET["code"])), topic=request.GET.get("topic"))
    return JsonResponse(outcome._asdict())


async def census(request):
    """Count what a connection could leave behind."""
    gc.collect()
    hub = get_hub()
    objects = gc.get_objects()
    return JsonResponse(
        {
            "connections": len(hub.connections),
            "groups": len(hub.link.groups),
            "layer_groups": len(getattr(hub.link.layer, "groups", ())),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "objects": sum(isinstance(thing, Connection | RealtimeConsumer) for thing in objects),
        }
    )


async def slow(request):
    """Take longer than any stop may."""
    await asyncio.sleep(60)
    return JsonResponse({})
