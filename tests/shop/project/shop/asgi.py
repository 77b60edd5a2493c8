"""The shop's ASGI application: its own WebSockets, and realtime's beside them."""

import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

from realtime.routing import websocket_urlpatterns, with_realtime

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
django_application = with_realtime(get_asgi_application())

from .consumers import ChatConsumer  # noqa: E402 - a consumer may import models

own = [path("ws/chat/", ChatConsumer.as_asgi())]
application = ProtocolTypeRouter(
    {
        "http": django_application,
        "lifespan": django_application,
        "websocket": AuthMiddlewareStack(URLRouter([*own, *websocket_urlpatterns])),
    }
)
