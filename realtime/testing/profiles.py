"""
Scenarios that are ready to use: what goes wrong together, out there, when a phone moves or a site is deployed.

They are scaled down to seconds, so that a test can wait for all of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from ..protocol import CloseCode, CloseMessage
from .faults import Bandwidth, CloseFrame, Delay, DemandPongs, Drop, Fault, Mute, NeverAnswer, Refuse, SlowAccept

_Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class CloseEvent(BaseModel):
    """Be a moment at which connections are closed, as an operator would close them."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)

    message: CloseMessage
    """Code and reason; with 1006 the TCP connection is dropped."""
    since: Literal["connected", "started"]
    """Whether ``after`` counts for each connection from its 101, or for all together from when the profile began."""
    after: _Seconds
    """Seconds until then."""
    spread: _Seconds = 0.0
    """Seconds over which the connections are closed, each at a moment by chance."""


class Profile(BaseModel):
    """Be a scenario."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    summary: str
    """One line on what happens."""
    faults: tuple[SerializeAsAny[Fault], ...] = ()
    settings: dict[str, Any] = {}
    """Keys of ``REALTIME`` that differ."""
    events: tuple[CloseEvent, ...] = ()
    good_client: str
    """What a good client does."""


_ALL = (
    Profile(
        name="flaky-mobile",
        summary="A phone on the move: slow and jittery, now and then silent for seconds, and dropped without a word.",
        faults=(
            NeverAnswer(seed=1, after=1, probability=0.1),
            SlowAccept(seed=1, probability=0.3, seconds=1.0),
            Delay(seed=1, what="everything", seconds=0.05, jitter=0.35),
            Delay(seed=2, what="everything", seconds=3.0, jitter=2.0, probability=0.03),
            Drop(seed=1, after=5, probability=0.05),
            Drop(seed=2, after=5, probability=0.02, reset=True, mid_frame=True),
            Bandwidth(bytes_per_second=16_384),
        ),
        settings={"HEARTBEAT_INTERVAL": 1.0},
        good_client=(
            "Has a timeout for opening, and takes a connection for dead when nothing came for two or three beats, not "
            "when one beat is late. Comes back with backoff and jitter, subscribes again by itself, fails or repeats "
            "what was under way, and forgets its backoff only once a connection has lasted."
        ),
    ),
    Profile(
        name="rolling-deploy",
        summary="Two rounds of restarts: all are closed with 1012 within a second; the second connection meets 503.",
        faults=(Refuse(status=503, retry_after=1, after=1, times=1),),
        settings={"HEARTBEAT_INTERVAL": 1.0},
        events=(
            CloseEvent(
                message=CloseMessage(code=CloseCode.SERVICE_RESTART, reason="deploy"),
                since="started",
                after=2.0,
                spread=1.0,
            ),
            CloseEvent(
                message=CloseMessage(code=CloseCode.SERVICE_RESTART, reason="deploy"),
                since="started",
                after=8.0,
                spread=1.0,
            ),
        ),
        good_client=(
            "Answers the close frame with the same code and comes back after a moment by chance, so that not all come "
            "at once. Waits for Retry-After after the 503, subscribes again, and does not trouble its user with it. "
            "Lives through a second restart shortly after the first, since it may have come back to an old instance."
        ),
    ),
    Profile(
        name="exchange-24h",
        summary="Limits like a public crypto exchange's: 24 hours (here 24 s), 5 messages a second, pings to answer.",
        # As Binance documents for its spot streams: a connection lasts 24 hours, a ping comes every 20 seconds and
        # wants a pong with its payload within a minute, 5 messages a second may come in, 1024 streams at most. Here
        # an hour lasts a second, and the pings go twenty times as fast as theirs.
        faults=(DemandPongs(interval=1.0, timeout=3.0),),
        settings={
            "RATE_LIMIT": 5.0,
            "RATE_BURST": 5,
            "FLOOD_TIMEOUT": 0.001,
            "MAX_SUBSCRIPTIONS": 1024,
            "MAX_CONNECTION_AGE": None,  # it would end up to a tenth earlier
        },
        events=(
            CloseEvent(
                message=CloseMessage(code=CloseCode.GOING_AWAY, reason="24 hours are over"),
                since="connected",
                after=24.0,
            ),
        ),
        good_client=(
            "Answers each ping with its payload. Sends at most 5 messages a second, subscriptions when it comes back "
            "included, and spreads more than 1024 topics over several connections. Opens the next connection before "
            "the 24 hours end and moves over, or comes back at once when they do; a close with 1008 tells its author "
            "that it sends too much, and coming back to send as much again gets its address banned elsewhere."
        ),
    ),
    Profile(
        name="overloaded",
        summary="A full server: 429, then 503, then accepted and closed with 1013; the fourth is served, but slowly.",
        faults=(
            Refuse(status=429, retry_after=1, times=1),
            Refuse(status=503, retry_after=2, after=1, times=1),
            CloseFrame(code=CloseCode.TRY_AGAIN_LATER, reason="the server is full", from_connection=3, connections=1),
            Delay(from_connection=4, seconds=0.5, jitter=1.0),
        ),
        good_client=(
            "Does not come back before Retry-After is over, nor within 10 seconds after 1013, each time with some "
            "jitter on top. Does not take a connection that was accepted and closed at once for a success that resets "
            "its backoff. Has few requests under way while answers are slow."
        ),
    ),
    Profile(
        name="zombie",
        summary="The first connection goes silent after three messages: TCP stays open, nothing is answered any more.",
        faults=(Mute(after=3, connections=1),),
        settings={"HEARTBEAT_INTERVAL": 1.0},
        good_client=(
            "Watches for beats, or sends pings and waits for their pongs, and so notices within seconds what TCP does "
            "not tell for minutes. Drops the connection without waiting for an answer to its close frame, fails what "
            "was under way, comes back and subscribes again."
        ),
    ),
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ALL}
"""Every profile by its name, in the order of the docs."""


def by_name(name: str) -> Profile:
    """Return the profile of that name. Raises ``ValueError``, which lists the names, where there is none."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"there is no profile {name!r}; there are {', '.join(PROFILES)}") from None
