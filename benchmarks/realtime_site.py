"""The site under test: the demo's settings, realtime behind session authentication, one topic, and the trigger."""

import os
from typing import Any

from django.core.asgi import get_asgi_application

from .trigger import DATA, with_trigger

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demows_project.settings")
django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402 - needs the apps to be loaded

from realtime import Topic, apublish  # noqa: E402
from realtime.routing import with_realtime  # noqa: E402

prices = Topic("prices", public=True)
site = with_realtime(django_application)
authenticated_site = AuthMiddlewareStack(site)


async def with_sessions(scope: Any, receive: Any, send: Any) -> None:
    """Authenticate WebSockets; the middleware knows no lifespan."""
    await (authenticated_site if scope["type"] == "websocket" else site)(scope, receive, send)


async def publish() -> None:
    await apublish("prices", DATA)


application = with_trigger(with_sessions, publish)
