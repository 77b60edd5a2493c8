"""
The test site's ASGI application.

``behind_auth`` is the same behind Channels' authentication, and ``traced`` sends its telemetry at the end as the demo
does.
"""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.site.settings")
django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter  # noqa: E402

from demows_project.telemetry import serve_metrics, with_telemetry  # noqa: E402
from realtime import registry  # noqa: E402
from realtime.routing import with_realtime  # noqa: E402

for constant in ("INTERVAL", "REAP_AFTER", "REAP_INTERVAL", "RENEWAL", "TIMEOUT"):  # tests are in a hurry
    setattr(registry, constant, float(os.environ.get(f"REGISTRY_{constant}", getattr(registry, constant))))

serve_metrics()
application = with_realtime(django_application, paths=["/", "/ws/"])
behind_auth = ProtocolTypeRouter(
    {"http": django_application, "websocket": AuthMiddlewareStack(application), "lifespan": application}
)
traced = with_telemetry(application)


async def wrapped(scope, receive, send):
    """Be the application behind a middleware that replaces ``send``, as tracing ones do."""

    async def own_send(message):
        await send(message)

    await application(scope, receive, own_send)
