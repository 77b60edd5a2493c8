"""
What crosses the channel layer: one Channels message type, and in it one small validated envelope.

Nothing that a client controls goes into the ``type`` or into a group's name. An envelope holds only
texts, numbers and lists of them, since every layer serialises those alike.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Annotated, Any, Literal

from django.utils.crypto import salted_hmac
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

CHANNELS_TYPE = "realtime.event"
CHANNEL_PREFIX = "realtime"
"""What the hubs' channel names begin with."""
ALL_GROUP = "realtime.all"
"""The group every hub is in."""
PROBE_PREFIX = "realtime.probe"
"""What the names of the groups begin with that a hub sends its own pings to."""


def group_name(topic: str) -> str:
    """Return the name of ``topic``'s group: ASCII and short, whatever characters the topic has."""
    digest = blake2b(topic.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"realtime.topic.{digest}"


def session_digest(session_key: str) -> str:
    """Return what stands for a session where its key must not be seen: in events, in logs and in the hub."""
    return salted_hmac("realtime.session", session_key, algorithm="sha256").hexdigest()[:32]


class Envelope(BaseModel):
    """Be the base of all events. Unknown fields are ignored, so that versions can run side by side."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_message(self) -> dict[str, Any]:
        """Return the message for the channel layer."""
        return {"type": CHANNELS_TYPE, **self.model_dump(exclude_none=True)}


class TracedEnvelope(Envelope):
    """
    Be the base of events that are followed from one process to another.

    ``traceparent`` is the sender's span as W3C's Trace Context writes it; there is none where that is not recorded.
    """

    traceparent: str | None = None


class PublicationEvent(TracedEnvelope):
    """
    Carry a publication; ``payload`` is JSON already, ``sent_at`` in seconds since the epoch.

    ``sequence`` counts the publications of ``publisher`` on this topic; one of an older version has no publisher.
    """

    kind: Literal["publication"] = "publication"
    topic: str
    payload: str
    sent_at: float
    publisher: str = ""
    sequence: int = 0


class BeatEvent(TracedEnvelope):
    """Carry a heartbeat of the wall-clock slot that begins at ``slot`` (seconds since the epoch)."""

    kind: Literal["beat"] = "beat"
    slot: float
    sent_at: float


class CloseEvent(TracedEnvelope):
    """
    Ask every hub to close connections.

    All, those subscribed to ``topic``, those in ``ids``, those of ``user`` (the primary key as text), or those of
    ``session`` (its digest). With ``user``, the connections of ``keep_session`` stay, but are not that session's any
    more, as its key has changed; from then on ``session`` together with ``user`` closes them too.

    ``spread`` is the number of seconds to stagger the closes over, ``reply_to`` the channel that wants an ack,
    and ``part`` the event's number among those that ask for one thing together.
    """

    kind: Literal["close"] = "close"
    code: int
    reason: str
    topic: str | None = None
    ids: list[str] | None = None
    user: str | None = None
    session: str | None = None
    keep_session: str | None = None
    spread: float = 0.0
    reply_to: str | None = None
    part: int = 0


class AckEvent(Envelope):
    """Say how many connections the hub named ``server`` closes for one close event: the one with the same ``part``."""

    kind: Literal["ack"] = "ack"
    server: str
    part: int = 0
    connections: int


class SurveyEvent(Envelope):
    """Ask every hub for a report, to be sent to the channel ``reply_to``."""

    kind: Literal["survey"] = "survey"
    reply_to: str


class ReportEvent(Envelope):
    """
    Say what the hub called ``server`` has: so many connections, and a row for each topic subscribed to.

    A row is the topic's name, its number of subscribers, and when something was last published on it (seconds since
    the epoch, 0 if nothing was while somebody here subscribed). ``name`` is the process' host and id, to be read.
    """

    kind: Literal["report"] = "report"
    server: str
    name: str
    connections: int
    topics: list[tuple[str, int, float]]


class PingEvent(Envelope):
    """Come back to whoever sent it, and prove that a group or a channel is connected."""

    kind: Literal["ping"] = "ping"
    nonce: str


Event = PublicationEvent | BeatEvent | CloseEvent | AckEvent | SurveyEvent | ReportEvent | PingEvent
_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def from_message(message: Any) -> Event:
    """Return the event in a message of the channel layer. Raises ``ValueError`` when it holds none."""
    if not isinstance(message, dict) or message.get("type") != CHANNELS_TYPE:
        raise ValueError(f"expected a dict with the type {CHANNELS_TYPE!r}")
    return _EVENTS.validate_python(message)


def next_slot(interval: float, now: float) -> float:
    """
    Return when the next heartbeat slot begins (seconds since the epoch).

    Slots are multiples of ``interval`` since the epoch, so that every broadcaster beats at the same
    moments, and none drifts.
    """
    slot = (math.floor(now / interval) + 1) * interval
    return slot if slot > now else slot + interval  # at a slot's very beginning the division may round down
