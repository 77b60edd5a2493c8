"""
Health: whether the process lives, and whether it is of use.

Only what is this process's own makes it unavailable. When the channel layer or the database is down, all processes
are in the same trouble, and a load balancer that takes every one of them away helps nobody: that is ``degraded``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.db import connections, router, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import cache_control
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from .hub import Hub, get_hub
from .layers import bounded
from .logs import complain, described
from .models import ServerProcess
from .protocol import TOPIC_HEARTBEAT
from .threads import get_threads

logger = logging.getLogger("realtime.views")

OK, DEGRADED, UNAVAILABLE = STATUSES = ("ok", "degraded", "unavailable")
"""How a part may be, and with its worst part the whole."""
LONGEST_CHECK = 1.0
"""Seconds that a request waits for a check."""
CHECK_INTERVAL = 1.0
"""Seconds from the beginning of one check to the next of its kind, however many ask."""
NO_DATABASE = "django.db.backends.dummy"
"""Django's stand-in where a site has no database."""

Part = dict[str, Any]
View = Callable[[HttpRequest], Awaitable[HttpResponse]]


def for_probes(view: View) -> Any:
    """Make ``view`` one for GET and HEAD that everybody may ask, that nothing caches, and that is in no transaction."""
    view = csrf_exempt(login_not_required(cache_control(no_store=True)(require_safe(view))))
    for alias in connections:
        transaction.non_atomic_requests(using=alias)(view)
    return view


@for_probes
async def healthz(request: HttpRequest) -> HttpResponse:
    """Answer, which proves that the process does."""
    return JsonResponse({"status": OK})


@for_probes
async def readyz(request: HttpRequest) -> HttpResponse:
    """
    Answer with how this process and what it needs are: 200, or 503 when it should get no connections.

    With ``?strict=1`` it is 503 as well when what the process needs is in trouble.
    """
    parts = await parts_of_process() if isinstance(request, ASGIRequest) else {"hub": _part("none in this process")}
    status = max((part["status"] for part in parts.values()), key=STATUSES.index)
    well = status == OK or (status == DEGRADED and request.GET.get("strict") != "1")
    response = JsonResponse({"status": status, "parts": parts}, status=200 if well else 503)
    vars(response)["_has_been_logged"] = True  # else Django mails the admins about each 503
    return response


async def parts_of_process() -> dict[str, Part]:
    """Return how each part is, which takes hardly more than a second, whatever hangs."""
    try:
        hub = get_hub()  # Daphne's is started by whoever is first
    except ImproperlyConfigured as error:
        complain(logger, logging.ERROR, "event=hub_not_started", "error=%r", error)
        return {"hub": _part(type(error).__name__, UNAVAILABLE)}
    parts = {"hub": hub_part(hub)}
    if parts["hub"]["status"] == OK:
        checks = _checks.setdefault(hub, {})
        if not checks:
            checks.update(checks_of_process())
        parts["heartbeat"] = heartbeat_part(hub)
        results = await asyncio.gather(*(check.part(hub) for check in checks.values()))
        parts |= zip(checks, results, strict=True)
    return parts


def _part(reason: str = "", status: str = OK, **figures: Any) -> Part:
    return {"status": status, **figures, **({"reason": reason} if reason else {})}


# What is known without asking


def hub_part(hub: Hub) -> Part:
    """Say whether this process takes connections. A limit on their number is another reason not to."""
    figures: dict[str, Any] = {"connections": len(hub.connections)}
    if hub.counts:
        figures["counts"] = dict(hub.counts)
    if not hub.link.running:
        return _part("stopped", UNAVAILABLE, **figures)
    if hub.draining:
        return _part("draining", UNAVAILABLE, **figures)
    return _part(**figures)


def heartbeat_part(hub: Hub) -> Part:
    """Say whether beats arrive, as they must while somebody here subscribes to them."""
    group = hub.link.groups.get(TOPIC_HEARTBEAT)
    if group is None or not group.subscribers:
        return _part("nobody subscribes", subscribers=0)
    figures: dict[str, Any] = {"subscribers": len(group.subscribers)}
    if hub.last_beat >= group.since:
        figures["last_beat_age"] = round(time.monotonic() - hub.last_beat, 3)
    if hub.beats_missing:
        return _part("no beats arrive", DEGRADED, **figures)
    return _part(**figures)


# What has to be asked


async def check_layer(hub: Hub) -> Part:
    """Send a message through the channel layer to the hub's own channel. Raises whatever the layer raises."""
    seconds = await bounded(hub.link.round_trip(), LONGEST_CHECK)
    return _part(round_trip_ms=round(seconds * 1000, 3))


async def check_database(hub: Hub) -> Part:
    """
    Ask realtime's database for next to nothing. Raises whatever the database raises.

    This takes as long as the database does: it is over when the thread is free again, and not before.
    """
    began = time.monotonic()
    await get_threads().run_queued(select_1, router.db_for_read(ServerProcess))
    return _part(round_trip_ms=round((time.monotonic() - began) * 1000, 3))


def select_1(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


class Check:
    """
    Look at one thing for all who ask, at most once a second and never twice at a time.

    Whoever asks while it takes longer than that is told so, and waits no more.
    """

    def __init__(self, name: str, look: Callable[[Hub], Awaitable[Part]]) -> None:
        self._name = name
        self._look = look
        self._began = -math.inf
        self._result = _part("not known yet", DEGRADED)
        self._task: asyncio.Task[None] | None = None
        self._noted: set[str] = set()
        """The kinds of failure that were logged since all was well."""

    async def part(self, hub: Hub) -> Part:
        """Return how the thing is, or was less than a second ago."""
        now = time.monotonic()
        if (self._task is None or self._task.done()) and now - self._began >= CHECK_INTERVAL:
            self._began = now
            self._task = hub.link.spawn(self._run(hub))  # the hub's, as whoever asks may go away
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=self._began + LONGEST_CHECK - now)
            if not self._task.done():
                seconds = time.monotonic() - self._began
                self._note_failure(TimeoutError(f"no answer within {LONGEST_CHECK:g} s"))
                return _part(f"no answer for {seconds:.0f} s", DEGRADED)
        return self._result

    async def _run(self, hub: Hub) -> None:
        try:
            self._result = await self._look(hub)
        except Exception as error:  # noqa: BLE001 - each layer and each database raises its own kind
            self._result = _part(type(error).__name__, DEGRADED)  # its text may hold a password
            self._note_failure(error)
        else:
            if self._noted:
                logger.info("event=check_ok part=%s", self._name)
            self._noted.clear()

    def _note_failure(self, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._noted:
            logger.warning("event=check_failed part=%s error=%s", self._name, described(error))
        self._noted.add(kind)


_checks: WeakKeyDictionary[Hub, dict[str, Check]] = WeakKeyDictionary()


def checks_of_process() -> dict[str, Check]:
    """Return a check for each thing that there is to ask."""
    looks = {"layer": check_layer}
    if connections.settings[router.db_for_read(ServerProcess)]["ENGINE"] != NO_DATABASE:
        looks["database"] = check_database
    return {name: Check(name, look) for name, look in looks.items()}
