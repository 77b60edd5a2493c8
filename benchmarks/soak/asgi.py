"""The site under load: realtime with its limits as they are by default."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.soak.settings")
django_application = get_asgi_application()

from realtime.routing import with_realtime  # noqa: E402 - needs the apps to be loaded

application = with_realtime(django_application)
