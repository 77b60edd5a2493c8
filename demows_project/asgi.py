"""The demo's ASGI application: Django for HTTP, realtime for WebSockets on ``/`` and ``/ws/``."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demows_project.settings")
django_application = get_asgi_application()

from realtime.routing import with_realtime  # noqa: E402 - needs the apps to be loaded

from .telemetry import serve_metrics, with_telemetry  # noqa: E402

serve_metrics()  # here, as servers alone import this: commands do not, nor does serve itself beside its workers
application = with_telemetry(with_realtime(django_application, paths=["/", "/ws/"]))
