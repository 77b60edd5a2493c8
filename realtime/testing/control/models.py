"""What goes into the control API and what comes out of it."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from ...protocol import MAX_REASON, CloseCode, CloseMessage
from ..connection import State
from ..controls import Controls
from ..faults import MOST_FAULTS, AnyFault
from ..namespace import ConnectionInfo
from ..profiles import CloseEvent, Profile
from ..transcript import Entry

OneFault = TypeAliasType("OneFault", AnyFault)
"""A fault; it has a name so that the document describes it in one place."""
DAY = 86_400.0
YEAR = 366 * DAY
LEGAL_CODES = {
    "anyOf": [
        {"minimum": 1000, "maximum": 1003},
        {"minimum": 1006, "maximum": 1014},
        {"minimum": 3000, "maximum": 4999},
    ]
}


def clean(fields: dict[str, Any]) -> dict[str, Any]:
    """Return ``fields`` with what is no text in them escaped: clients send bytes that JSON cannot say."""
    return {name: clean_text(value) if isinstance(value, str) else value for name, value in fields.items()}


def clean_text(text: str) -> str:
    """Return ``text`` with what cannot be encoded escaped."""
    return text.encode(errors="backslashreplace").decode()


class Input(BaseModel):
    """Set what all bodies share: strict types, and nothing that is not known."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


class Output(BaseModel):
    """Set what all answers share."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ErrorCode(StrEnum):
    """Say to a program what was wrong."""

    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    CONFLICT = "CONFLICT"
    TIMEOUT = "TIMEOUT"
    TOO_LARGE = "TOO_LARGE"
    INVALID = "INVALID"
    INTERNAL = "INTERNAL"


class Error(Output):
    """Say what was wrong: every answer from 400 on has this body."""

    code: ErrorCode
    """For programs."""
    message: str
    """For people: a sentence that says what came and what is legal."""


# Input


class Close(Input):
    """Say how connections are closed."""

    code: Annotated[int, Field(json_schema_extra=LEGAL_CODES, examples=[1012])] = int(CloseCode.GOING_AWAY)
    """The close code: 1000 to 1003, 1006 to 1014, or 3000 to 4999. 1006 drops the TCP connection."""
    reason: Annotated[str, Field(max_length=MAX_REASON, examples=["deploy"])] = "closed by operator"
    """The reason: at most 123 bytes of UTF-8."""
    delay: Annotated[float, Field(ge=0, le=DAY, allow_inf_nan=False)] = 0.0
    """Seconds of the server's clock until then, by which it can be put forward."""
    mid_message: bool = False
    """Whether the first part of a message is sent before, whose rest never comes."""

    def message(self) -> CloseMessage:
        """Return code and reason. Raises ``ValueError`` where they cannot be sent."""
        return CloseMessage(code=self.code, reason=self.reason)


class Interrupt(Input):
    """Say how connections are dropped."""

    reset: bool = False
    """Whether by RST instead of FIN."""


class Publication(Input):
    """Be what is published."""

    topic: Annotated[str, Field(min_length=1, max_length=255, examples=["demo.news"])]
    data: Annotated[Any, Field(examples=[{"headline": "It works"}])]
    """Any JSON that suits the topic."""


class Advance(Input):
    """Say by how much the clock is put forward."""

    seconds: Annotated[float, Field(ge=0, le=YEAR, allow_inf_nan=False, examples=[60])]


class Wait(Input):
    """Say what is waited for."""

    timeout: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 5.0
    """Seconds to wait at most."""
    count: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many connections, none of which was waited for before."""


class ProfileChoice(Input):
    """Name a profile."""

    name: Annotated[str, Field(max_length=100, examples=["zombie"])]


FaultList = Annotated[
    list[OneFault],
    Field(max_length=MOST_FAULTS, examples=[[{"fault": "delay", "seconds": 2.0}, {"fault": "lose", "what": "beats"}]]),
]

# Output


class Connection(Output):
    """Be a connection as it was when it was looked at."""

    id: str
    number: int
    """Which of its session's connections it is, counted from 1."""
    session: str
    """The session that its URL names; "" for none."""
    address: str
    path: str
    subprotocol: str | None
    user_agent: str
    topics: list[str]
    """What it subscribes to."""
    opened: float
    """When it was opened (seconds since the epoch)."""
    state: State

    @classmethod
    def of(cls, info: ConnectionInfo) -> Connection:
        return cls.model_validate(clean(asdict(info)))


class Affected(Output):
    """Say how many connections something was done to."""

    connections: int


class Beats(Output):
    """Say whether heartbeats are sent by themselves."""

    beating: bool


class Clock(Output):
    """Say what time it is to the server."""

    ahead: float
    """Seconds by which the clock was put forward."""

    @classmethod
    def of(cls, controls: Controls) -> Clock:
        return cls(ahead=round(controls.ahead, 3))


class ProfileInfo(Output):
    """Be a profile."""

    name: str
    summary: str
    """What happens."""
    good_client: str
    """What a good client does."""
    faults: list[OneFault]
    settings: dict[str, Any]
    """Settings of the server that differ."""
    events: list[CloseEvent]
    """Moments at which connections are closed."""

    @classmethod
    def of(cls, profile: Profile) -> ProfileInfo:
        return cls(
            name=profile.name,
            summary=profile.summary,
            good_client=profile.good_client,
            faults=list(profile.faults),
            settings=profile.settings,
            events=list(profile.events),
        )


class CurrentProfile(Output):
    """Say which profile is in force."""

    profile: str | None


class SessionInfo(Output):
    """Be a session."""

    name: str
    url: str
    """Where its clients connect to."""
    connections: int
    """How many are open."""


class ServerInfo(Output):
    """Be the server."""

    version: str
    url: str
    """Where clients of no session connect to."""
    heartbeat_interval: float
    """Seconds between heartbeats, where no profile says otherwise."""
    sessions: list[SessionInfo]
    """Those that have begun, and have a name."""


class TranscriptEntry(Output):
    """Be something that went over the wire."""

    connection: str
    session: str
    direction: Literal["received", "sent"]
    """As the server sees it."""
    kind: Literal["handshake", "frame", "bytes", "end"]
    seconds: float
    """Seconds since the TCP connection was opened."""
    at: str
    """When it was, as RFC 3339 has it."""
    size: int
    """Bytes of the payload."""
    opcode: int | None = None
    name: str | None = None
    """What the opcode is called."""
    final: bool | None = None
    reserved: int | None = None
    masked: bool | None = None
    code: int | None = None
    """The code of a close frame; 1005 where it has none."""
    reason: str | None = None
    text: str | None = None
    """The payload, where it is text."""
    hex: str | None = None
    """The payload, where it is no text."""
    note: str | None = None

    @classmethod
    def of(cls, entry: Entry) -> TranscriptEntry:
        return cls.model_validate(clean(entry.to_dict()))


class TranscriptPage(Output):
    """Be what is kept of what went over the wire, the oldest first."""

    dropped: int
    """How many entries there was no room for, which were the oldest."""
    entries: list[TranscriptEntry]
