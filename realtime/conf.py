"""The settings: one dict ``REALTIME`` in Django's settings, every key optional."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Annotated, Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ImportString, ValidationError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Limit = Annotated[int, Field(ge=1)]


@cache
def _call_once(function: Callable[[], Any]) -> Any:
    # The settings are read again and again, and each provider has threads of its own.
    return function()


def provider_of(method: str) -> BeforeValidator:
    """Take an object with ``method``, a dotted path to one, or a function that returns one; or None."""

    def provider(value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = import_string(value)
            except ImportError as error:
                raise ValueError(str(error)) from None
        if isinstance(value, type) or (callable(value) and not hasattr(value, method)):
            try:
                value = _call_once(value)
            except Exception as error:  # it is the site's own code
                raise ValueError(f"it failed: {error!r}") from error
        if value is not None and not hasattr(value, method):
            raise ValueError(f"a provider has a method {method}()")
        return value

    return BeforeValidator(provider)


class Settings(BaseModel):
    """Hold the settings. Each key is documented where it stands, with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    AUTHENTICATION_TIMEOUT: Seconds = 2.0
    """Seconds that finding out who connects may take; after that the connection is accepted without a user."""
    OUTBOX_LIMIT: Annotated[int, Field(ge=1 << 17)] = 1 << 20
    """Bytes that may wait for one client to read them; one for which more would is closed with 3008."""
    WRITE_TIMEOUT: Seconds = 10.0
    """Seconds in which a client that something waits for must read some of it, or it is closed with 3008."""
    MAX_MESSAGE_SIZE: Annotated[int, Field(ge=1024)] = 1 << 16
    """Bytes that a message from a client may have; a client that sends more is closed with 1009."""
    RATE_LIMIT: PerSecond | None = 100.0
    """Requests a second that one client may send in the long run, pings counted as well; None for any number."""
    RATE_BURST: Annotated[int, Field(ge=1)] = 1000
    """Requests that one client may send at once; over that it is answered `RATE_LIMITED`, and read from more slowly."""
    FLOOD_TIMEOUT: Seconds = 10.0
    """Seconds after which a client that does not stop sending more than it may is closed with 1008."""
    MAX_CONNECTIONS: Limit | None = 10_000
    """Connections that one server process takes; more are refused with 503. None for any number."""
    MAX_CONNECTIONS_PER_ADDRESS: Limit | None = None
    """Connections that one process takes from one client address (of IPv6, from one /64); more are refused with 429."""
    MAX_CONNECTIONS_PER_USER: Limit | None = None
    """Connections that one process takes of one signed-in user; more are refused with 429."""
    TRUSTED_HOPS: Annotated[int, Field(ge=0)] = 0
    """Proxies of your own in front, each of which appends to `X-Forwarded-For`; 0 takes the address of the peer."""
    FIRST_MESSAGE_TIMEOUT: Seconds | None = None
    """Seconds in which a client must have sent a message, or it is closed with 1008."""
    MAX_CONNECTION_AGE: Seconds | None = 86_400.0
    """Seconds after which a connection is closed with 1001, or up to a tenth earlier, so that few end at once."""
    DRAIN_SECONDS: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """Seconds over which clients are closed with 1001 when the server is told to stop."""
    DRAIN_TIMEOUT: Seconds = 5.0
    """Seconds that clients then have to leave; those still there after that are dropped."""
    TRACER_PROVIDER: Annotated[Any, provider_of("get_tracer")] = None
    """OpenTelemetry's tracer provider, a dotted path to it, or a function that returns it; None for the global one."""
    METER_PROVIDER: Annotated[Any, provider_of("get_meter")] = None
    """OpenTelemetry's meter provider, a dotted path to it, or a function that returns it; None for the global one."""
    TRUST_CLIENT_TRACEPARENT: bool = False
    """Whether a client's `traceparent` is taken for the parent of what it asks for; else spans only link to it."""


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
