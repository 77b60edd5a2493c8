"""Pages that look into the server process: at what clients have left behind, and at those that do not read."""

import asyncio
import gc
import os
from collections import Counter

from django.http import HttpRequest, JsonResponse
from django.urls import include, path

from realtime.hub import get_hub
from realtime.models import Connection, ServerProcess, Subscription

KINDS = (
    *("Backlog", "Bucket", "Connection", "DaphneWire", "Held", "RealtimeConsumer", "UvicornWire", "WebRequest"),
    *("HttpToolsProtocol", "WebSocketProtocol", "WebSocketsSansIOProtocol"),
)
"""What each connection is made of, in us and in the servers."""
BIG = ("bulk", "heap.")
"""What the topics begin with that clients subscribe to which do not read."""


async def slow(request: HttpRequest) -> JsonResponse:
    """Return the connections that subscribe to big publications: what they are being closed with, and what waits."""
    connections = [c for c in get_hub().connections.values() if any(topic.startswith(BIG) for topic in c.topics)]
    return JsonResponse({c.id: {"closed_with": c.closed_with, "waiting": c.wire.buffered} for c in connections})


async def leftovers(request: HttpRequest) -> JsonResponse:
    """Count what connections could leave behind; this request's own parts are included."""
    hub = get_hub()
    rows = {f"rows of {model.__name__}": await model.objects.acount() for model in (Connection, Subscription)}
    gc.collect()
    names = Counter(type(thing).__name__ for thing in gc.get_objects())
    return JsonResponse(
        {
            "connections": len(hub.connections),
            "topics": len(hub.link.groups),
            "pings": len(hub.link._pings),
            "memberships": sum(map(len, getattr(hub.link.layer, "groups", {}).values())),
            "channels": len(getattr(hub.link.layer, "channels", ())),
            "door": hub.door._total,
            "door of clients": sum(hub.door._of.values()),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            **rows,
            **{f"objects of {kind}": names[kind] for kind in KINDS},
        }
    )


async def about(request: HttpRequest) -> JsonResponse:
    """Return the limits that this process keeps to, what it has counted, and whether it is in the registry."""
    hub = get_hub()
    registered = await ServerProcess.objects.filter(pk=hub.id).aexists()
    limits = hub.settings.model_dump(mode="json", exclude={"AUTHENTICATE"})
    return JsonResponse({"limits": limits, "counts": hub.counts, "registered": registered})


urlpatterns = [
    path("", include("realtime.urls")),
    path("slow/", slow),
    path("leftovers/", leftovers),
    path("about/", about),
]
