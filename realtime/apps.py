"""The app's wiring: every app's ``topics.py`` is found, the checks are registered, Daphne is repaired."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class RealtimeConfig(AppConfig):
    """Wire realtime into the site."""

    name = "realtime"
    verbose_name = "Realtime"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import (
            checks,  # noqa: F401
            handshake,
            metrics,
            registry,
            sessions,
        )
        from .servers import daphne

        daphne.install()
        handshake.install()
        sessions.connect_signals()
        registry.install()
        metrics.install()
        autodiscover_modules("topics")
