"""Where WebSockets come in: ``with_realtime``, or URL patterns for a site that routes WebSockets already."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from django.conf import settings as django_settings
from django.urls import path

from .conf import get_settings
from .consumers import RealtimeConsumer
from .hub import get_hub, hub_of
from .layers import configured_layer
from .limits import Count
from .logs import complain
from .servers import greet, uvicorn
from .sessions import note_request

logger = logging.getLogger("realtime.routing")

websocket_urlpatterns = [path("ws/", RealtimeConsumer.as_asgi())]
"""For a ``channels.routing.URLRouter`` of the site's own."""


def with_realtime(application: Any, *, paths: Iterable[str] = ("/ws/",)) -> Any:
    """
    Return an ASGI application that serves WebSockets on ``paths``, and all else with ``application``.

    A WebSocket on any other path is refused with 403. The lifespan protocol is answered, so that the
    hub stops with the server. Raises ``ImproperlyConfigured`` when realtime's settings are wrong, or
    when there is no channel layer.
    """
    get_settings()
    configured_layer()
    served = frozenset([paths] if isinstance(paths, str) else paths)
    consumer = RealtimeConsumer.as_asgi()

    async def realtime_application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            handler = consumer if _local_path(scope) in served else refuse
            await handler(scope, receive, send)
        elif scope["type"] == "lifespan":
            await lifespan(scope, receive, send)
        else:
            note_request(scope)
            await application(scope, receive, send)

    return realtime_application


def _local_path(scope: Any) -> str:
    """Return the path below the prefix that the site is mounted at, by the setting or by the server."""
    prefix = django_settings.FORCE_SCRIPT_NAME or scope.get("root_path", "")
    return str(scope["path"]).removeprefix(prefix.rstrip("/"))


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Refuse a WebSocket with 403."""
    greet(scope, receive)
    await receive()
    hub_of(scope).counts[Count.REFUSED_PATH] += 1
    complain(logger, logging.INFO, "event=refused reason=path", "path=%.200r", scope["path"])
    await send({"type": "websocket.close"})


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Start the hub with the server, and stop it with the server."""
    uvicorn.install(receive)
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            get_hub()
            await send({"type": "lifespan.startup.complete"})
        else:
            await get_hub().stop()
            await send({"type": "lifespan.shutdown.complete"})
            return
