"""
Metrics: what the hubs of this process have counted, told to OpenTelemetry when somebody collects it.

Every instrument is observable: nothing is called while frames are handled. Where the plain figure is a distribution,
there are three counters: the cumulative buckets (with their upper bounds in ``le``, as in Prometheus), the number and
the sum. A histogram of OpenTelemetry's own costs a call for each value, which is a quarter of an echo.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from opentelemetry import metrics as otel_metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from . import __version__, telemetry
from .conf import get_settings
from .hub import Hub, observers
from .layers import waiting
from .limits import Count, cause_of
from .registry import STARTED, Registry
from .telemetry import SCOPE, Attributes, Buckets, Key, Stats
from .threads import get_threads

Value = tuple[float, Attributes]
COUNTER, UP_DOWN, GAUGE = "counter", "up-down counter", "gauge"
REFUSALS = [count for count in Count if count.startswith("refused_")]


class Sources:
    """Be where the figures of one meter come from: the hubs that run, and what those that have stopped had counted."""

    def __init__(self, provider: Any = None) -> None:
        self.provider = provider
        self.created = False
        """Whether the provider has the instruments."""
        self.clear()

    def clear(self) -> None:
        """Forget every hub, and what was counted."""
        self._lock = threading.Lock()  # held while a hub goes from those that run to those that have stopped
        self.hubs: list[Hub] = []
        self._past = Stats()
        self._past_returns = 0

    @property
    def stats(self) -> list[Stats]:
        with self._lock:
            return [self._past, *(hub.stats for hub in self.hubs)]

    @property
    def returns(self) -> int:
        with self._lock:
            return self._past_returns + sum(hub.link.returns for hub in self.hubs)

    def add(self, hub: Hub) -> None:
        """Read the figures of a hub from now on."""
        with self._lock:
            self.hubs = [*self.hubs, hub]

    def retire_lost(self) -> None:
        """Retire hubs whose event loop ended before they could stop."""
        for hub in self.hubs:
            if hub.loop.is_closed():
                self.retire(hub)

    def retire(self, hub: Hub) -> None:
        """Keep what a hub has counted, which must not seem to shrink."""
        with self._lock:
            if hub in self.hubs:
                past = Stats()  # a new one, as somebody may be reading the old one
                past.absorb(self._past)
                past.absorb(hub.stats)
                self._past = past
                self._past_returns += hub.link.returns
                self.hubs = [other for other in self.hubs if other is not hub]


# How each figure is read. All this runs on the collector's thread, while event loops go on counting: dicts are copied
# first, by dict(), which unlike list() lets no other thread in between, and figures that belong together may be one
# event apart.


def _connections(sources: Sources) -> Iterator[Value]:
    yield sum(stats.accepted for stats in sources.stats), {}


def _active(sources: Sources) -> Iterator[Value]:
    yield sum(len(hub.connections) for hub in sources.hubs), {}


def _start_time(sources: Sources) -> Iterator[Value]:
    yield STARTED, {}


def _started(sources: Sources) -> Iterator[Value]:
    yield int(any(hub.link.running and not hub.draining for hub in sources.hubs)), {}


def _flows(field: str, sources: Sources) -> Iterator[Value]:
    for stats in sources.stats:
        for pattern, flow in dict(stats.flows).items():
            yield getattr(flow, field), {Key.TOPIC: pattern}


def _type_of(request: type[Any]) -> str:
    fields = getattr(request, "model_fields", None)
    return "invalid" if fields is None else str(fields["type"].default)


def _requests(sources: Sources) -> Iterator[Value]:
    for stats in sources.stats:
        for kind, requests in dict(stats.requests).items():
            for outcome, number in (("OK", requests.ok), *dict(requests.refused).items()):
                if number:
                    yield number, {Key.REQUEST: _type_of(kind), Key.OUTCOME: str(outcome)}


def _durations(sources: Sources) -> Iterator[tuple[Buckets, Attributes]]:
    for stats in sources.stats:
        for kind, requests in dict(stats.requests).items():
            yield requests.duration, {Key.REQUEST: _type_of(kind)}


def _lags(sources: Sources) -> Iterator[tuple[Buckets, Attributes]]:
    for stats in sources.stats:
        yield stats.lag, {}


Distribution = Callable[[Sources], Iterable[tuple[Buckets, Attributes]]]


def _buckets(distribution: Distribution, sources: Sources) -> Iterator[Value]:
    for buckets, attributes in distribution(sources):
        for bound, number in zip((*buckets.bounds, "+Inf"), accumulate(buckets.counts), strict=True):
            yield number, {**attributes, Key.LE: str(bound)}


def _numbers(distribution: Distribution, sources: Sources) -> Iterator[Value]:
    for buckets, attributes in distribution(sources):
        yield sum(buckets.counts), attributes


def _sums(distribution: Distribution, sources: Sources) -> Iterator[Value]:
    for buckets, attributes in distribution(sources):
        yield buckets.total, attributes


def _count(count: Count, sources: Sources) -> Iterator[Value]:
    yield sum(stats.counts[count] for stats in sources.stats), {}


def _refusals(sources: Sources) -> Iterator[Value]:
    for count in REFUSALS:
        if number := sum(stats.counts[count] for stats in sources.stats):
            yield number, {Key.REASON: cause_of(count)}


def _drops(sources: Sources) -> Iterator[Value]:
    for count in (Count.CONFLATED, Count.REPEATED):
        yield sum(stats.counts[count] for stats in sources.stats), {Key.REASON: count.value}


def _closes(sources: Sources) -> Iterator[Value]:
    for stats in sources.stats:
        for (code, side), number in dict(stats.closes).items():
            yield number, {Key.CODE: code, Key.SIDE: side}


def _outbox(sources: Sources) -> Iterator[Value]:
    yield sum(hub.stats.outbox for hub in sources.hubs), {}


def _congested(sources: Sources) -> Iterator[Value]:
    yield sum(hub.stats.congested for hub in sources.hubs), {}


def _returns(sources: Sources) -> Iterator[Value]:
    yield sources.returns, {}


def _layer_up(sources: Sources) -> Iterator[Value]:
    if sources.hubs:
        yield int(all(hub.link.up for hub in sources.hubs)), {}


def _queue(sources: Sources) -> Iterator[Value]:
    lengths = [waiting(hub.link.layer, hub.link.channel, hub.loop) for hub in sources.hubs]
    if known := [length for length in lengths if length is not None]:
        yield sum(known), {}


def _heartbeat_age(sources: Sources) -> Iterator[Value]:
    if beats := [hub.last_beat for hub in sources.hubs if hub.last_beat]:
        yield time.monotonic() - min(beats), {}


def _beats_missing(sources: Sources) -> Iterator[Value]:
    yield int(any(hub.beats_missing for hub in sources.hubs)), {}


def _registry_lag(sources: Sources) -> Iterator[Value]:
    registries = [observer for hub in sources.hubs for observer in hub.observers if isinstance(observer, Registry)]
    if registries:
        yield max(registry.lag for registry in registries), {}


def _loop_lag(sources: Sources) -> Iterator[Value]:
    if lags := [hub.loop_lag.greatest for hub in sources.hubs if hub.loop_lag is not None]:
        yield max(0.0, *lags), {}


def _threads_busy(sources: Sources) -> Iterator[Value]:
    yield get_threads().busy, {}


def _threads(sources: Sources) -> Iterator[Value]:
    yield get_settings().SYNC_THREADS, {}


def _spans_dropped(sources: Sources) -> Iterator[Value]:
    yield telemetry.worker.dropped, {}


class Instrument(NamedTuple):
    """Say what is measured: the name, the kind, the unit (UCUM), in words, the attributes, and how it is read."""

    name: str
    kind: str
    unit: str
    description: str
    attributes: tuple[Key, ...]
    read: Callable[[Sources], Iterable[Value]]


def _distribution(
    name: str, unit: str, description: str, attributes: tuple[Key, ...], read: Distribution
) -> list[Instrument]:
    by_bound = (*attributes, Key.LE)
    return [
        Instrument(f"{name}.bucket", COUNTER, unit, f"{description}: how many took up to le seconds", by_bound,
                   partial(_buckets, read)),
        Instrument(f"{name}.count", COUNTER, unit, f"{description}: how many there were", attributes,
                   partial(_numbers, read)),
        Instrument(f"{name}.sum", COUNTER, "s", f"{description}: all together", attributes, partial(_sums, read)),
    ]  # fmt: skip


TOPIC, REQUEST = (Key.TOPIC,), (Key.REQUEST,)
INSTRUMENTS = [
    Instrument("realtime.connections", COUNTER, "{connection}", "Connections accepted", (), _connections),
    Instrument("realtime.connections.active", UP_DOWN, "{connection}", "Connections that are there", (), _active),
    Instrument("realtime.start_time", GAUGE, "s", "When the process started, since the epoch", (), _start_time),
    Instrument("realtime.started", GAUGE, "", "1 while the process takes connections, else 0", (), _started),
    Instrument("realtime.subscriptions", UP_DOWN, "{subscription}", "Subscriptions that are there", TOPIC,
               partial(_flows, "subscriptions")),
    Instrument("realtime.requests", COUNTER, "{request}", "Requests answered", (Key.REQUEST, Key.OUTCOME), _requests),
    *_distribution("realtime.request.duration", "{request}", "From a request read to its answer written", REQUEST,
                   _durations),
    Instrument("realtime.publications", COUNTER, "{publication}", "Publications that arrived for somebody", TOPIC,
               partial(_flows, "publications")),
    Instrument("realtime.deliveries", COUNTER, "{delivery}", "Publications written, once for each subscriber", TOPIC,
               partial(_flows, "deliveries")),
    *_distribution("realtime.delivery.lag", "{publication}", "From publish() to the last local write", (), _lags),
    Instrument("realtime.publications.dropped", COUNTER, "{publication}", "Publications not delivered, by why",
               (Key.REASON,), _drops),
    Instrument("realtime.gaps", COUNTER, "{gap}", "Times that publications were missing", (),
               partial(_count, Count.GAPS)),
    Instrument("realtime.publications.lost", COUNTER, "{publication}", "Publications that were missing", (),
               partial(_count, Count.LOST)),
    Instrument("realtime.outbox.size", GAUGE, "By", "What waits for clients to read it", (), _outbox),
    Instrument("realtime.connections.congested", GAUGE, "{connection}", "Connections that cannot be written to at once",
               (), _congested),
    Instrument("realtime.slow_consumers", COUNTER, "{connection}", "Connections closed because they did not read", (),
               partial(_count, Count.SLOW_CONSUMERS)),
    Instrument("realtime.rate_limited", COUNTER, "{request}", "Requests over the rate", (),
               partial(_count, Count.RATE_LIMITED)),
    Instrument("realtime.closes", COUNTER, "{connection}", "Connections that ended", (Key.CODE, Key.SIDE), _closes),
    Instrument("realtime.handshakes.refused", COUNTER, "{handshake}", "Handshakes refused", (Key.REASON,), _refusals),
    Instrument("realtime.handshakes.unidentified", COUNTER, "{handshake}", "Handshakes whose user could not be read",
               (), partial(_count, Count.UNIDENTIFIED)),
    Instrument("realtime.layer.up", GAUGE, "", "1 while the channel layer works, else 0", (), _layer_up),
    Instrument("realtime.layer.reconnects", COUNTER, "{reconnect}", "Times that the channel layer came back", (),
               _returns),
    Instrument("realtime.layer.queue", GAUGE, "{message}", "Messages that wait for the hub", (), _queue),
    Instrument("realtime.heartbeat.age", GAUGE, "s", "Since the newest heartbeat arrived", (), _heartbeat_age),
    Instrument("realtime.heartbeat.missing", GAUGE, "", "1 while heartbeats are due and none comes, else 0", (),
               _beats_missing),
    Instrument("realtime.registry.lag", GAUGE, "s", "Since the table of connections was written", (), _registry_lag),
    Instrument("realtime.event_loop.lag", GAUGE, "s", "The most that the event loop was late by of late", (),
               _loop_lag),
    Instrument("realtime.threads.busy", GAUGE, "{call}", "Calls of synchronous code under way or waiting", (),
               _threads_busy),
    Instrument("realtime.threads.limit", GAUGE, "{thread}", "Threads for synchronous code", (), _threads),
    Instrument("realtime.spans.dropped", COUNTER, "{span}", "Spans lost, as the tracer provider is too slow", (),
               _spans_dropped),
]  # fmt: skip
"""All instruments, as docs/observe.md lists them."""


def _callback(instrument: Instrument, sources: Sources) -> Callable[[CallbackOptions], list[Observation]]:
    def observe(options: CallbackOptions) -> list[Observation]:
        sources.retire_lost()
        totals: dict[tuple[tuple[str, str | int], ...], float] = {}
        for value, attributes in instrument.read(sources):
            key = tuple(telemetry.plain(attributes).items())
            totals[key] = totals.get(key, 0) + value
        return [Observation(value, dict(key)) for key, value in totals.items()]

    return observe


def _create(provider: Any, sources: Sources) -> None:
    provider = otel_metrics.get_meter_provider() if provider is None else provider
    meter: Meter = provider.get_meter(SCOPE, __version__)
    create = {
        COUNTER: meter.create_observable_counter,
        UP_DOWN: meter.create_observable_up_down_counter,
        GAUGE: meter.create_observable_gauge,
    }
    for instrument in INSTRUMENTS:
        callbacks = [_callback(instrument, sources)]
        create[instrument.kind](instrument.name, callbacks, instrument.unit, instrument.description)
    sources.created = True


_all: list[Sources] = []
"""One for each provider, with which instruments are created once."""
_lock = threading.Lock()


def observe(hub: Hub) -> None:
    """Have the figures of ``hub`` collected by the site's meter provider, until it stops."""
    provider = hub.settings.METER_PROVIDER
    with _lock:
        sources = next((sources for sources in _all if sources.provider is provider), None)
        if sources is None:
            sources = Sources(provider)
            if not telemetry.worker.post(partial(_create, provider, sources)):
                return
            _all.append(sources)
    sources.add(hub)
    hub.at_stop.append(partial(sources.retire, hub))


def _begin_anew() -> None:
    """Begin anew in a forked child, which has none of its parent's hubs."""
    global _lock
    _lock = threading.Lock()
    _all[:] = [sources for sources in _all if sources.created]
    for sources in _all:
        sources.clear()


os.register_at_fork(after_in_child=_begin_anew)


def install() -> None:
    """Observe every hub from now on. Doing so twice changes nothing."""
    if observe not in observers:
        observers.append(observe)
