"""Django for a test server: that of the site where there is one, else no more than the server needs."""

from __future__ import annotations

import os
import threading

import django
from django.apps import apps
from django.conf import settings

_lock = threading.Lock()
_own = False


def prepare_django() -> None:
    """Set Django up, by ``realtime.testing.settings`` where nobody has said by what. Doing so twice changes nothing."""
    global _own
    with _lock:
        if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
            from . import settings as own

            settings.configure(**{name: getattr(own, name) for name in dir(own) if name.isupper()})
            _own = True
        if not apps.ready:
            django.setup()


def has_site() -> bool:
    """Return whether the settings are a site's, and not ``realtime.testing.settings``."""
    return not _own
