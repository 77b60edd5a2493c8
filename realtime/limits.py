"""
The limits: how much one client may ask for, how many may come in, and what was counted against them.

Each has a key in the settings and a row in docs/operate.md.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from .conf import Settings

PRESSING = 1.0
"""Seconds within which a client that was refused a request must be refused the next, to count as flooding."""
SPARE_DESCRIPTORS = 200
"""File descriptors that a process needs besides its connections."""
NETWORK_OF_IPV6 = 64
"""The bits of an IPv6 address that count as one client: a subscriber is given all that begin with them."""


class Count(StrEnum):
    """Name what is counted, once for each time that it happens. ``/readyz`` shows the counts of its process."""

    SLOW_CONSUMERS = "slow_consumers"
    """Connections closed with 3008: over ``OUTBOX_LIMIT``, or nothing could be written for ``WRITE_TIMEOUT``."""
    CONFLATED = "conflated"
    """Publications of ``latest`` topics that a newer one took the place of."""
    RATE_LIMITED = "rate_limited"
    """Requests answered ``RATE_LIMITED``."""
    FLOODERS = "flooders"
    """Connections closed with 1008 after ``FLOOD_TIMEOUT``."""
    TOO_BIG = "too_big"
    """Connections closed with 1009: a message of over ``MAX_MESSAGE_SIZE``."""
    TOO_MANY_SUBSCRIPTIONS = "too_many_subscriptions"
    """Requests answered ``TOO_MANY_SUBSCRIPTIONS``: over ``MAX_SUBSCRIPTIONS``."""
    REFUSED_FULL = "refused_full"
    """Handshakes refused: over ``MAX_CONNECTIONS``."""
    REFUSED_ADDRESS = "refused_address"
    """Handshakes refused: over ``MAX_CONNECTIONS_PER_ADDRESS``."""
    REFUSED_USER = "refused_user"
    """Handshakes refused: over ``MAX_CONNECTIONS_PER_USER``."""
    REFUSED_DRAINING = "refused_draining"
    """Handshakes refused: the server stops."""
    REFUSED_ORIGIN = "refused_origin"
    """Handshakes refused: another site's page."""
    REFUSED_PATH = "refused_path"
    """Handshakes refused: nothing is served on that path."""
    REFUSED_TOKEN = "refused_token"
    """Connections closed with 1008: a token that was no good."""
    UNIDENTIFIED = "unidentified"
    """Handshakes whose user could not be read, or not within ``AUTHENTICATION_TIMEOUT``."""
    SILENT = "silent"
    """Connections closed with 1008: no message within ``FIRST_MESSAGE_TIMEOUT``."""
    AGED = "aged"
    """Connections closed with 1001: older than ``MAX_CONNECTION_AGE``."""
    GAPS = "gaps"
    """Times that publications were missing when a later one of the same publisher arrived."""
    LOST = "lost"
    """Publications that were missing then."""
    REPEATED = "repeated"
    """Publications that arrived once more, or after a later one, and were not delivered."""
    HANDLER_FAULTS = "handler_faults"
    """Requests answered ``INTERNAL_ERROR``: the site's code raised, took over ``HANDLER_TIMEOUT``, or had no thread."""
    DRAIN_ABORTED = "drain_aborted"
    """Connections dropped at the server's stop: they had not left within ``DRAIN_TIMEOUT``."""


Counts = Counter[Count]


class Bucket:
    """
    Let ``burst`` requests through at once, and ``rate`` a second in the long run: a token bucket.

    One that finds no token costs one all the same, so that whoever asks on gets no further than the rate.
    """

    __slots__ = ("_burst", "_flooding_since", "_limited_until", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._updated = time.monotonic()
        self._limited_until = -math.inf
        self._flooding_since = 0.0

    def take(self) -> float:
        """Take a token. Return 0, or if there was none, after how many seconds there is one."""
        now = time.monotonic()
        tokens = self._tokens + (now - self._updated) * self._rate
        self._updated = now
        self._tokens = (tokens if tokens < self._burst else self._burst) - 1
        if self._tokens >= 0:
            return 0.0
        wait = (1 - self._tokens) / self._rate
        if now - self._limited_until > PRESSING:
            self._flooding_since = now
        self._limited_until = now + wait
        return wait

    @property
    def flooded_for(self) -> float:
        """For how many seconds there has been a try without a token in every one of them."""
        return self._updated - self._flooding_since


class Refusal(NamedTuple):
    """Say why a handshake is refused: with ``status``, or with 1013 and ``reason`` where the server cannot."""

    counted_as: Count
    status: int
    reason: str
    retry_after: int = 10


def cause_of(count: Count) -> str:
    """Return why a handshake was refused, in one word, for the log and for metrics."""
    return count.removeprefix("refused_")


DRAINING = Refusal(Count.REFUSED_DRAINING, 503, "server shutdown", 1)
FULL = Refusal(Count.REFUSED_FULL, 503, "the server is full")
ADDRESS = Refusal(Count.REFUSED_ADDRESS, 429, "too many connections from this address")
USER = Refusal(Count.REFUSED_USER, 429, "too many connections of this user")


class Door:
    """Count the connections that are there or on the way in: all of them, and those of each address and user."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._total = 0
        self._of: Counter[tuple[str, str]] = Counter()

    def enter(self, address: str) -> Refusal | None:
        """Count one connection, unless that is one too many; then return why. Call ``leave`` in the end."""
        settings = self._settings
        if settings.MAX_CONNECTIONS is not None and self._total >= settings.MAX_CONNECTIONS:
            return FULL
        if not self._count("address", _client_of(address), settings.MAX_CONNECTIONS_PER_ADDRESS):
            return ADDRESS
        self._total += 1
        return None

    def enter_as(self, user: str) -> Refusal | None:
        """Count one connection of ``user``, unless that is one too many; then return why."""
        return None if self._count("user", user, self._settings.MAX_CONNECTIONS_PER_USER) else USER

    def _count(self, kind: str, whose: str, limit: int | None) -> bool:
        if limit is None or not whose:
            return True
        if self._of[kind, whose] >= limit:
            return False
        self._of[kind, whose] += 1
        return True

    def leave(self, address: str, user: str) -> None:
        """Undo an ``enter``, and an ``enter_as`` for a ``user`` that is not empty."""
        self._total -= 1
        for key in (("address", _client_of(address)), ("user", user)):
            if key in self._of:
                self._of[key] -= 1
                if not self._of[key]:
                    del self._of[key]


def descriptors(wanted: int | None = None) -> float:
    """
    Return how many files this process may open, which connections count as, or infinity where that is not known.

    With ``wanted`` raise that to as many first, as far as the process may.
    """
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows has no such limit
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted is not None and soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return math.inf if soft == resource.RLIM_INFINITY else soft


def _client_of(address: str) -> str:
    """Return what counts as one client: an address, or the network that an IPv6 subscriber has."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if ip.version == 4:
        return address
    return str(ip.ipv4_mapped or ip_network((int(ip), NETWORK_OF_IPV6), strict=False))


def address_of(scope: Any, trusted_hops: int) -> str:
    """
    Return the client's address, as far as it can be believed.

    Each proxy appends to ``X-Forwarded-For`` whom it talks to, so with so many proxies of one's own in front it is
    that many from the right. What is further left is the client's own invention.
    """
    direct = str((scope.get("client") or [""])[0])
    if not trusted_hops:
        return direct
    headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    hops = [hop.strip() for hop in ",".join(headers).split(",")] if headers else []
    if len(hops) < trusted_hops:
        return direct
    hop = hops[-trusted_hops]
    if hop.startswith("["):  # [2001:db8::1]:443
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:  # 192.0.2.1:443
        hop = hop.partition(":")[0]
    try:
        ip = ip_address(hop)
    except ValueError:
        return direct
    return str(getattr(ip, "ipv4_mapped", None) or ip)
