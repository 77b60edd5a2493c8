"""More pages with which tests act inside a server process, and look into it."""

import asyncio
import gc
import logging
import os
import time
from collections import Counter

from django.http import JsonResponse

from realtime import aclose_connections, apublish
from realtime.events import PingEvent
from realtime.hub import get_hub

logger = logging.getLogger("tests.site")
PROTOCOLS = {"WebSocketProtocol", "WebSocketsSansIOProtocol", "WebRequest", "HttpToolsProtocol", "H11Protocol"}
written = Counter()


class Watcher:
    """Count how often a wire says that it can be written to again."""

    def __init__(self, topic):
        self.topic = topic

    def congested(self):
        pass

    def writable(self):
        written.update([self.topic])

    def controlled(self, written):
        pass


async def mark(request):
    """Write a line, so that whoever sees it knows that all that came before was written."""
    logger.info("mark %s", request.GET["text"])
    return JsonResponse({})


async def leftovers(request):
    """Count what connections could leave behind, in us and in the server; this request's own parts included."""
    gc.collect()
    hub = get_hub()
    names = Counter(type(thing).__name__ for thing in gc.get_objects())
    return JsonResponse(
        {
            "connections": len(hub.connections),
            "groups": len(hub.link.groups),
            "pings": len(hub.link._pings),
            "members": sum(map(len, getattr(hub.link.layer, "groups", {}).values())),
            "channels": len(getattr(hub.link.layer, "channels", ())),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "objects": {name: names[name] for name in ("Connection", "RealtimeConsumer", *sorted(PROTOCOLS))},
        }
    )


async def wire(request):
    """Call one wire's methods: that of the one connection subscribed to a topic."""
    topic, action = request.GET["topic"], request.GET["action"]
    connections = get_hub().subscribers(topic)
    if not connections and action == "look":
        return JsonResponse({"kind": "", "buffered": 0, "written": written[topic]})
    [connection] = connections
    wire = connection.wire
    if action == "watch":
        wire.listener = Watcher(topic)
    elif action == "unwatch":
        wire.listener = None
    elif action in ("pause_reading", "resume_reading", "abort"):
        getattr(wire, action)()
    return JsonResponse({"kind": type(wire).__name__, "buffered": wire.buffered, "written": written[topic]})


async def publish_text(request):
    """Publish a text of so many characters on a topic, so many times."""
    text = "x" * int(request.GET["size"])
    for _ in range(int(request.GET.get("count", "1"))):
        await apublish(request.GET.get("topic", "news"), {"text": text})
    return JsonResponse({})


async def publish_number(request):
    """Publish a number on a topic, with a text of so many characters beside it."""
    data = {"number": int(request.GET["number"]), "text": "x" * int(request.GET["size"])}
    await apublish(request.GET["topic"], data)
    return JsonResponse({})


async def close_twice(request):
    """Close a topic's connections with the defaults, and again at once."""
    topic = request.GET["topic"]
    outcomes = [await aclose_connections(topic=topic), await aclose_connections(topic=topic)]
    return JsonResponse({"outcomes": [outcome._asdict() for outcome in outcomes]})


def hold(request):
    """Hold a thread, which nothing can cancel."""
    time.sleep(float(request.GET["seconds"]))
    return JsonResponse({})


async def block(request):
    """Hold the event loop, and with it everybody on it, while so many messages wait for the hub."""
    link = get_hub().link
    for _ in range(int(request.GET.get("messages", "0"))):
        message = link.layer.serialize(PingEvent(nonce="").to_message())
        link.layer.channels[link.channel].put_nowait(message)
    time.sleep(float(request.GET["seconds"]))  # noqa: ASYNC251 - that is what is tested
    return JsonResponse({})
