"""The settings: one dict ``REALTIME`` in Django's settings, every key optional."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from pydantic import BaseModel, ConfigDict, Field, ImportString, ValidationError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Hold the settings. Each key is documented where it stands, with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    CHANNEL_LAYER: str = "default"
    """The alias in ``CHANNEL_LAYERS`` of the layer that events cross."""
    HEARTBEAT_INTERVAL: Seconds = 5.0
    """Seconds between two heartbeats. Broadcasters with the same interval beat on the same wall-clock slots."""
    MAX_SUBSCRIPTIONS: Annotated[int, Field(ge=1)] = 128
    """How many topics one connection may subscribe to."""
    HANDLER_TIMEOUT: Seconds = 10.0
    """Seconds after which a request whose handler has not finished is answered ``INTERNAL_ERROR``."""
    SYNC_THREADS: Annotated[int, Field(ge=1)] = 8
    """Threads for a site's synchronous code, such as a topic's ``authorize``."""
    REQUIRE_ORIGIN: bool = False
    """Whether to refuse connections without an ``Origin`` header, which all but browsers leave out."""
    AUTHENTICATE: Callable[[str], Any] | ImportString[Callable[[str], Any]] | None = None
    """A function, or a dotted path to one, that returns the user of a token, or None where it is no good."""
    CLOSE_ON_SESSION_END: bool = True
    """Whether logging out, changing a password and deactivating or deleting a user close connections."""
    CONNECTION_REGISTRY: bool = True
    """Whether to keep a table of who is connected, for the admin."""
    DRAIN_TIMEOUT: Seconds = 5.0
    """Seconds that clients have to leave when the server stops; those still there then are dropped."""


def get_settings() -> Settings:
    """
    Return the settings as they are now.

    Raises ``ImproperlyConfigured`` for an unknown key or a value that cannot be, and names both.
    """
    return _load()


@lru_cache(maxsize=1)
def _load() -> Settings:
    configured = getattr(django_settings, "REALTIME", {})
    try:
        return Settings.model_validate(configured)
    except ValidationError as error:
        raise ImproperlyConfigured("; ".join(text for _, text in explain(error))) from None


def explain(error: ValidationError) -> list[tuple[str, str]]:
    """Return (kind of error, sentence) for each thing that is wrong with the settings."""
    problems = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            known = ", ".join(Settings.model_fields)
            problems.append(("unknown", f"REALTIME has the unknown key {key!r}; known are {known}"))
        elif key:
            problems.append(("value", f"REALTIME[{key!r}] is {detail['input']!r}: {detail['msg'].lower()}"))
        else:
            problems.append(("value", f"REALTIME must be a dict, but is {detail['input']!r}"))
    return problems


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "REALTIME":
        _load.cache_clear()


setting_changed.connect(_forget)
