"""
The publisher's side: sending events through the channel layer, from asynchronous and from synchronous code.

Any process of a site may do so, whether it runs a server or not.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import wait as wait_for_futures
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

from django.core.exceptions import SynchronousOnlyOperation
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from .conf import get_settings
from .events import (
    ALL_GROUP,
    CHANNEL_PREFIX,
    AckEvent,
    BeatEvent,
    CloseEvent,
    Envelope,
    PingEvent,
    PublicationEvent,
    ReportEvent,
    SurveyEvent,
    from_message,
    group_name,
    session_digest,
)
from .exceptions import LayerUnavailable
from .hub import Hub, find_hub
from .layers import bounded, configured_layer, count_members, is_local, new_channel, shard_of
from .link import PING_AGAIN, ping
from .logs import described
from .protocol import TOPIC_HEARTBEAT, CloseMessage
from .sequences import Sequences
from .telemetry import Attributes, Key, Name, SpanKind, Trace, get_tracing, kind_of, message_attributes

T = TypeVar("T")
logger = logging.getLogger("realtime.publishing")

PUBLISH_TIMEOUT = 2.0
"""Seconds that the layer has to take an event."""
STUBBORN = 60.0
"""Seconds for which a close that a session's end asks for is tried again while the layer is down."""
IDS_PER_EVENT = 1000
"""How many connection ids one close event carries at most."""


class CloseOutcome(NamedTuple):
    """
    Say what came of closing connections.

    ``servers`` acknowledged, and close ``connections`` between them. ``unknown`` more servers are there but
    did not answer in time; it is None where the channel layer does not tell how many there are.
    """

    servers: int
    connections: int
    unknown: int | None


class Capture(Protocol):
    """Take what is published instead of the layer, in tests."""

    def append_payload(self, topic: str, payload: str) -> None:
        """Take note of a publication."""


captures: list[Capture] = []
"""The newest takes what is published."""


def publish_payload(topic: str, payload: str, pattern: str = "") -> None:
    """
    Send ``payload``, which is JSON already, to the subscribers of ``topic``. Raises ``LayerUnavailable``.

    ``pattern`` is the name that the topic was declared with, for the trace.
    """
    if captures:
        captures[-1].append_payload(topic, payload)
        return
    with _Producing(Name.PUBLISH, pattern, {Key.SIZE: _size(payload)}) as traceparent:
        _run("publish", lambda: _send_publication(topic, payload, traceparent))


async def apublish_payload(topic: str, payload: str, pattern: str = "") -> None:
    """Do what ``publish_payload`` does, on a running event loop."""
    if captures:
        captures[-1].append_payload(topic, payload)
        return
    async with _Producing(Name.PUBLISH, pattern, {Key.SIZE: _size(payload)}) as traceparent:
        await _send_publication(topic, payload, traceparent)


def _size(payload: str) -> int:
    return len(payload) if payload.isascii() else len(payload.encode())


async def _send_publication(topic: str, payload: str, traceparent: str | None) -> None:
    event = PublicationEvent(topic=topic, payload=payload, sent_at=time.time(), traceparent=traceparent)
    await _send_to_topic(topic, event)


async def abeat(slot: float) -> None:
    """Broadcast the heartbeat of the wall-clock slot that begins at ``slot``. Raises ``LayerUnavailable``."""
    async with _Producing(Name.PUBLISH, TOPIC_HEARTBEAT, {}) as traceparent:
        event = BeatEvent(slot=slot, sent_at=time.time(), traceparent=traceparent)
        await _send_to_topic(TOPIC_HEARTBEAT, event)


class _Producing:
    """
    Record a span for the length of a ``with`` or ``async with`` block, if anything is to be recorded.

    What the block gets is the span as an event carries it, or None.
    """

    def __init__(self, name: Name, pattern: str, attributes: Attributes) -> None:
        self._name = name
        self._pattern = pattern
        self._attributes = attributes
        self._tracing = get_tracing(get_settings().TRACER_PROVIDER)
        self._trace: Trace | None = None
        self.outcome: Attributes = {}

    def _what(self) -> tuple[str, SpanKind, Attributes, Context]:
        name, attributes = str(self._name), self._attributes
        if self._pattern:
            name = f"{name} {self._pattern}"
            attributes = {**message_attributes(self._name, self._pattern), **attributes}
        return name, SpanKind.PRODUCER, attributes, otel_context.get_current()

    def __enter__(self) -> str | None:
        if self._tracing.on_here:
            self._trace = self._tracing.start_in_thread(*self._what())
        return None if self._trace is None else self._trace.traceparent

    async def __aenter__(self) -> str | None:
        if self._tracing.on_here:
            self._trace = await self._tracing.start(*self._what())
        return None if self._trace is None else self._trace.traceparent

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._trace is not None:
            self._trace.end(self.outcome, "" if error is None else kind_of(error))

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.__exit__(kind, error, traceback)


def close_connections(
    message: CloseMessage | None = None,
    *,
    topic: str | None = None,
    user: Any = None,
    session: str | None = None,
    ids: Sequence[str] | None = None,
    spread: float = 0.0,
    wait: float = 2.0,
) -> CloseOutcome:
    """
    Close client connections on every server, with the code and the reason in ``message``.

    All of them, or those that subscribe to ``topic``, those of ``user`` (a user or a primary key), those that
    signed in by the cookie of ``session`` (a session's key), or those whose ids are in ``ids``. ``spread`` staggers
    the closes evenly over so many seconds; ``wait`` is how many seconds the servers have to acknowledge.

    Raises ``ValueError`` when more than one of those is given, or for a negative time,
    ``LayerUnavailable`` when the channel layer does not take the event, and ``SynchronousOnlyOperation``
    on a running event loop.
    """
    return _run(
        "close_connections",
        lambda: aclose_connections(message, topic=topic, user=user, session=session, ids=ids, spread=spread, wait=wait),
        timeout=wait + 4 * PUBLISH_TIMEOUT,
    )


async def aclose_connections(
    message: CloseMessage | None = None,
    *,
    topic: str | None = None,
    user: Any = None,
    session: str | None = None,
    ids: Sequence[str] | None = None,
    spread: float = 0.0,
    wait: float = 2.0,
) -> CloseOutcome:
    """Do what ``close_connections`` does, on a running event loop."""
    if sum(target is not None for target in (topic, user, session, ids)) > 1:
        raise ValueError("close by one of topic, user, session and ids, not by several")
    if not (0 <= spread < math.inf and 0 <= wait < math.inf):
        raise ValueError(f"spread and wait are seconds from 0 on, but are {spread!r} and {wait!r}")
    message = message or CloseMessage()
    chunks: list[list[str] | None] = [None]
    if ids is not None:
        ids = list(dict.fromkeys(ids))
        chunks = [ids[start : start + IDS_PER_EVENT] for start in range(0, len(ids), IDS_PER_EVENT)]
        if not chunks:
            return CloseOutcome(0, 0, 0)
    event = CloseEvent(
        code=message.code,
        reason=message.reason,
        topic=topic,
        user=None if user is None else str(getattr(user, "pk", user)),
        session=None if session is None else session_digest(session),
        spread=spread,
    )
    target = "topic" if topic is not None else "user" if user is not None else "session" if session is not None else ""
    attributes: Attributes = {Key.CODE: message.code, Key.TARGET: target or ("all" if ids is None else "ids")}
    producing = _Producing(Name.CLOSE_CONNECTIONS, "", attributes)
    async with producing as traceparent:
        updates = [{"ids": chunk, "traceparent": traceparent, "part": part} for part, chunk in enumerate(chunks)]
        events = [event.model_copy(update=update) for update in updates]
        answers, expected = await _on_loop_of(find_hub(), lambda: _ask_hubs(events, wait))
        acks = [answer for answer in answers if isinstance(answer, AckEvent)]
        servers = len({ack.server for ack in acks})
        unknown = None if expected is None else max(0, expected - servers)
        outcome = CloseOutcome(servers, sum(ack.connections for ack in acks), unknown)
        producing.outcome = {Key.SERVERS: outcome.servers, Key.CONNECTIONS: outcome.connections}
    return outcome


def send_close(event: CloseEvent, wait: float) -> None:
    """
    Send a close event that nobody acknowledges, if need be again and again until the layer takes it, for a minute.

    Wait for that at most ``wait`` seconds, and on a running event loop not at all. Raises nothing that the layer does.
    """
    future = asyncio.run_coroutine_threadsafe(_send_stubbornly(event), _loop_for_threads())
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        wait_for_futures([future], wait)


async def _send_stubbornly(event: CloseEvent) -> None:
    end = time.monotonic() + STUBBORN
    pause = 0.2
    while True:
        try:
            await _send(ALL_GROUP, event)
            return
        except LayerUnavailable as error:
            if time.monotonic() > end:
                logger.error("event=close_not_sent error=%s", error)
                return
        await asyncio.sleep(pause)
        pause = min(2 * pause, 5.0)


def survey(wait: float = 1.0) -> list[ReportEvent]:
    """
    Return what every server that answers within ``wait`` seconds has: connections, and topics subscribed to.

    Raises ``LayerUnavailable``, and ``SynchronousOnlyOperation`` on a running event loop.
    """
    return _run("survey", lambda: asurvey(wait), timeout=wait + 4 * PUBLISH_TIMEOUT)


async def asurvey(wait: float = 1.0) -> list[ReportEvent]:
    """Do what ``survey`` does, on a running event loop."""
    answers, _ = await _on_loop_of(find_hub(), lambda: _ask_hubs([SurveyEvent(reply_to="")], wait))
    return [answer for answer in answers if isinstance(answer, ReportEvent)]


Answer = AckEvent | ReportEvent


async def _ask_hubs(events: Sequence[CloseEvent | SurveyEvent], wait: float) -> tuple[list[Answer], int | None]:
    """Return the hubs' answers to ``events``, and how many hubs there are, where the layer tells."""
    layer = configured_layer()
    async with _Inbox(layer) as inbox:
        expected = await count_members(layer, ALL_GROUP)
        for event in events:
            await _send(ALL_GROUP, event.model_copy(update={"reply_to": inbox.channel}))
        return await inbox.collect(None if expected is None else expected * len(events), wait), expected


class _Inbox:
    """Receive the hubs' answers on a channel of its own."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._arrived: asyncio.Queue[Answer | PingEvent] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.channel = ""

    async def __aenter__(self) -> _Inbox:
        try:
            await bounded(self._open(), PUBLISH_TIMEOUT)
        except BaseException as error:
            if self._task is not None:
                self._task.cancel()
            if not isinstance(error, Exception):
                raise
            raise LayerUnavailable(f"the channel layer failed: {described(error)}") from error
        return self

    async def _open(self) -> None:
        await ping(self._layer, ALL_GROUP)
        self.channel = await new_channel(self._layer, CHANNEL_PREFIX)
        self._task = asyncio.create_task(self._receive())
        for wait in PING_AGAIN:  # as when the hub joins a group: what is sent too early is lost
            await self._layer.send(self.channel, PingEvent(nonce="").to_message())
            try:
                async with asyncio.timeout(wait):
                    await self._arrived.get()
                return
            except TimeoutError:
                pass
        await self._arrived.get()

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=PUBLISH_TIMEOUT)

    async def _receive(self) -> None:
        while True:
            try:
                event = from_message(await self._layer.receive(self.channel))
            except ValueError:  # of another version
                continue
            if isinstance(event, Answer | PingEvent):
                self._arrived.put_nowait(event)

    async def collect(self, expected: int | None, wait: float) -> list[Answer]:
        """
        Return the answers that arrive within ``wait`` seconds, or until ``expected`` have.

        One that a server gives twice counts once: what was sent on a connection that died is sent again.
        """
        answers: dict[tuple[str, int], Answer] = {}
        try:
            async with asyncio.timeout(wait):
                while expected is None or len(answers) < expected:
                    event = await self._arrived.get()
                    if isinstance(event, Answer):
                        answers.setdefault((event.server, event.part if isinstance(event, AckEvent) else 0), event)
        except TimeoutError:
            pass
        return [*answers.values()]


async def _send_to_topic(topic: str, event: PublicationEvent | BeatEvent) -> None:
    hub = find_hub()
    if hub is not None and hub.link.direct and hub.link.layer is configured_layer():
        await _on_loop_of(hub, lambda: hub.link.take(event))
    else:
        await _send(group_name(topic), event)


async def _send(group: str, event: Envelope) -> None:
    await _on_layer_loop(lambda: _group_send(group, event))


class _Turns:
    """
    Let one event after the other into one shard of the layer, on one event loop.

    A burst may take longer than one event may, and is no failure while the layer takes its events. When
    one fails, all that wait behind it fail at once, instead of each running into its own timeout.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.failures = 0
        self.sequences = Sequences()


_turns: dict[asyncio.AbstractEventLoop, defaultdict[int, _Turns]] = {}


def _turns_on(shard: int) -> _Turns:
    loop = asyncio.get_running_loop()
    if loop not in _turns:
        for other in [other for other in list(_turns) if other.is_closed()]:
            _turns.pop(other, None)
        _turns[loop] = defaultdict(_Turns)
    return _turns[loop][shard]


async def _group_send(group: str, event: Envelope) -> None:
    layer = configured_layer()
    turns = _turns_on(shard_of(layer, group))
    failures = turns.failures
    message = event.to_message()
    if isinstance(event, PublicationEvent):
        # Before its turn, which it may not live to see: whoever fails has a number too, so that subscribers are told.
        message["publisher"], message["sequence"] = turns.sequences.number(event.topic)
    async with turns.lock:
        if turns.failures != failures:
            raise LayerUnavailable("the channel layer failed while this event waited for its turn")
        try:
            await bounded(layer.group_send(group, message), PUBLISH_TIMEOUT)
        except TimeoutError as error:
            turns.failures += 1
            raise LayerUnavailable(f"the channel layer did not take the event within {PUBLISH_TIMEOUT:g} s") from error
        except Exception as error:  # each layer raises its own kind
            turns.failures += 1
            raise LayerUnavailable(f"the channel layer failed: {described(error)}") from error


@lru_cache(maxsize=1)
def _say_nobody_listens() -> None:
    logger.warning(
        "event=published_to_nobody reason=the in-memory layer reaches only this process, where nobody subscribes"
    )


async def _on_layer_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` where the layer can be used: the in-memory layer's queues belong to the hub's event loop."""
    hub = find_hub() if is_local(configured_layer()) else None
    if hub is None and is_local(configured_layer()):
        _say_nobody_listens()
    return await _on_loop_of(hub, work)


async def _on_loop_of(hub: Hub | None, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    if hub is None or hub.loop is asyncio.get_running_loop():
        return await work()
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), hub.loop))


# From synchronous code


def refuse_running_loop(name: str) -> None:
    """Raise ``SynchronousOnlyOperation``, which names the asynchronous twin of ``name``, on a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise SynchronousOnlyOperation(f"{name}() would block the running event loop: await a{name}() instead")


def _run(name: str, work: Callable[[], Coroutine[Any, Any, T]], timeout: float = 2 * PUBLISH_TIMEOUT) -> T:
    """Run ``work`` on an event loop of another thread, and return what it returns."""
    refuse_running_loop(name)
    future = asyncio.run_coroutine_threadsafe(work(), _loop_for_threads())
    try:
        return future.result(timeout)
    except TimeoutError:
        future.cancel()
        raise LayerUnavailable(f"{name}() did not finish within {timeout:g} s") from None


def _loop_for_threads() -> asyncio.AbstractEventLoop:
    hub = find_hub() if is_local(configured_layer()) else None
    return _background.loop() if hub is None else hub.loop


class _BackgroundLoop:
    """Keep one event loop a process for synchronous callers, in a thread of its own, made when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="realtime-publisher", daemon=True).start()
                self._loop = loop
            return self._loop


_background = _BackgroundLoop()
_parents: list[_BackgroundLoop] = []
"""Loops of the processes that this one was forked from: to end them here would unsettle them there."""


def _forget_parents_loop() -> None:
    """Begin anew in a forked child: the thread that ran the loop did not come along."""
    global _background
    _parents.append(_background)
    _background = _BackgroundLoop()
    _turns.clear()


os.register_at_fork(after_in_child=_forget_parents_loop)
