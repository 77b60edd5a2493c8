"""What the in-memory tests share: a clean process, a client, a wire, and channel layers that misbehave on demand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer, channel_layers
from channels.testing import WebsocketCommunicator
from hypothesis import strategies as st

from realtime.connection import Connection
from realtime.consumers import RealtimeConsumer
from realtime.events import group_name
from realtime.hub import Hub, _hubs, get_hub
from realtime.logs import _complaints
from realtime.servers.base import payload_of
from realtime.threads import get_threads
from realtime.topics import _patterns, _topics

TIMEOUT = 20.0
"""Seconds that anything here may take before a test fails."""


@pytest.fixture(autouse=True)
async def clean_process() -> AsyncIterator[None]:
    """Give each test a channel layer of its own, and end what it began. Import it to use it."""
    declared, patterns = dict(_topics), {key: list(topics) for key, topics in _patterns.items()}
    use_layer(Layer())
    get_threads.cache_clear()
    _complaints.clear()
    yield
    hub = _hubs.get(asyncio.get_running_loop())
    if hub is not None:
        hub.link.layer.failing = hub.link.layer.hanging = False
        for connection in list(hub.connections.values()):
            hub.disconnected(connection)
        await hub.stop()
    channel_layers.backends.pop("default", None)
    _topics.clear()
    _topics.update(declared)
    _patterns.clear()
    _patterns.update(patterns)


# Channel layers


class Layer(InMemoryChannelLayer):
    """The in-memory layer, which fails or hangs while told so, and takes note of what it is sent."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**{"capacity": 1_000_000, **config})
        self.failing = False
        self.hanging = False
        self.only = ""
        """What is in trouble: a method, or a method and the beginning of a name; empty for all."""
        self.calls: list[str] = []
        self.sent: list[dict[str, Any]] = []

    async def _go_through(self, method: str, name: str = "") -> None:
        self.calls.append(method)
        if f"{method} {name}".startswith(self.only):
            if self.failing:
                raise ConnectionError("the layer is down")
            while self.hanging:
                await asyncio.sleep(0.005)

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        await self._go_through("send", channel)
        await super().send(channel, message)

    async def new_channel(self, prefix: str = "specific.") -> str:
        await self._go_through("new_channel")
        return await super().new_channel(prefix)

    async def receive(self, channel: str) -> Any:
        await self._go_through("receive", channel)
        return await super().receive(channel)

    async def group_add(self, group: str, channel: str) -> None:
        await self._go_through("group_add", group)
        await super().group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        await self._go_through("group_discard", group)
        await super().group_discard(group, channel)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await self._go_through("group_send", group)
        self.sent.append(message)
        await super().group_send(group, message)


class RemoteLayer(BaseChannelLayer):
    """A layer that looks as if it reached other processes: by its type nobody can tell that it is in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Layer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("failing", "hanging", "only"):
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)


for _method in ("send", "receive", "new_channel", "group_add", "group_discard", "group_send"):
    setattr(RemoteLayer, _method, property(lambda self, name=_method: getattr(self.inner, name)))


def use_layer(layer: Any) -> Any:
    """Make ``layer`` the default channel layer, and return it."""
    channel_layers.set("default", layer)
    return layer


def the_layer() -> Layer:
    """Return the test's channel layer."""
    return channel_layers["default"]


# Waiting


async def until(condition: Callable[[], Any], timeout: float = TIMEOUT) -> None:
    """Wait until ``condition`` is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not true within {timeout:g} s"
        await asyncio.sleep(0.001)


async def started_hub() -> Hub:
    """Return this loop's hub, once it has reached the layer."""
    hub = get_hub()
    await until(lambda: hub.link.up)
    return hub


def members(topic: str) -> int:
    """Return how many hubs are in the group of ``topic``."""
    return len(the_layer().groups.get(group_name(topic), {}))


def joined_groups() -> set[str]:
    """Return the topics' groups that have members."""
    return {name for name, channels in the_layer().groups.items() if channels and name.startswith("realtime.topic.")}


# Clients


class Client(WebsocketCommunicator):
    """A client over ASGI, in this process."""

    async def receive_output(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return what the consumer sends next. Unlike Channels' own, a read that fails does not cancel the consumer."""
        reading = asyncio.ensure_future(self.output_queue.get())
        await asyncio.wait([reading, self.future], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():  # what the consumer left behind is still on its way
            await asyncio.wait([reading], timeout=0.2)
        if not reading.done():
            reading.cancel()
            raise AssertionError("the consumer has ended" if self.future.done() else "the consumer sends nothing")
        message: dict[str, Any] = reading.result()
        return message

    async def tell(self, **request: Any) -> None:
        await self.send_json_to(request)

    async def next(self) -> dict[str, Any]:
        message: dict[str, Any] = await self.receive_json_from(TIMEOUT)
        return message

    async def ask(self, **request: Any) -> dict[str, Any]:
        await self.tell(**request)
        return await self.next()

    async def subscribe(self, topic: str) -> dict[str, Any]:
        return await self.ask(type="subscribe_request", topic=topic)

    async def unsubscribe(self, topic: str) -> dict[str, Any]:
        return await self.ask(type="unsubscribe_request", topic=topic)

    async def assert_nothing_waits(self) -> None:
        """Prove silence: ask for an echo, and expect it next."""
        answer = await self.ask(type="echo_request", reqId="silence", echo="")
        assert answer == {"type": "echo_response", "reqId": "silence", "status": "OK", "data": {"echo": ""}}

    async def closed(self) -> tuple[int, str]:
        """Return the code and the reason that the server closes with next."""
        message = await self.receive_output(TIMEOUT)
        assert message["type"] == "websocket.close"
        return message["code"], message["reason"]


@asynccontextmanager
async def connected(application: Any = None, path: str = "/ws/", **options: Any) -> AsyncIterator[Client]:
    """Connect a client, by default to a plain ``RealtimeConsumer``; disconnect it in the end."""
    client = Client(application or RealtimeConsumer.as_asgi(), path, **options)
    accepted, _ = await client.connect(TIMEOUT)
    assert accepted
    try:
        yield client
    finally:
        if not client.future.done():
            await client.disconnect(timeout=5)


class ListWire:
    """A wire that keeps what is written to it."""

    def __init__(self) -> None:
        self.listener: Any = None
        self.closed = False
        self.aborted = False
        self.gone = True
        self.reading = True
        self.buffered = 0
        self.closed_with: tuple[int, str] | None = None
        self.messages: list[dict[str, Any]] = []

    def write(self, frame: bytes) -> None:
        if not self.closed:
            self.messages.append(json.loads(payload_of(frame)))

    def close(self, code: int, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.closed_with = (code, reason)

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    @property
    def data(self) -> list[Any]:
        """What was published to it."""
        return [message["data"] for message in self.messages if message["type"] == "publication"]


def local_connection(hub: Hub, wire: Any = None) -> Connection:
    """Return a connection that ``hub`` knows, with a ``ListWire``."""
    connection = Connection(ListWire() if wire is None else wire, settings=hub.settings, counts=hub.counts)
    hub.connected(connection)
    return connection


async def subscribed(hub: Hub, *topics: str, wire: Any = None) -> Connection:
    """Return a connection subscribed to ``topics`` the way the consumer does it."""
    connection = local_connection(hub, wire)
    for topic in topics:
        hub.add(connection, await hub.link.join(topic))
    return connection


# Frames for hypothesis

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=8,
)
REQUEST_TYPES = ["echo_request", "subscribe_request", "unsubscribe_request", "echo_response", "heartbeat", "error"]
near_requests = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(REQUEST_TYPES) | json_values,
        "reqId": st.text(max_size=300) | json_values,
        "echo": st.text() | json_values,
        "err": st.booleans() | json_values,
        "topic": st.sampled_from(["heartbeat", "nowhere"]) | json_values,
        "req_id": json_values,
        "data": json_values,
    },
)
frames: st.SearchStrategy[str | bytes] = st.one_of(
    st.text(),
    st.binary(),
    json_values.map(json.dumps),
    near_requests.map(json.dumps),
    near_requests.map(lambda value: json.dumps(value).encode()),
)
"""Anything a client might send, much of it nearly right."""


async def toggle(hub: Hub, steps: list[tuple[str, int]]) -> None:
    """Subscribe to a topic, or unsubscribe from it, one after the other; pause for some turns between."""
    connection = local_connection(hub)
    for topic, turns in steps:
        if not hub.remove(connection, topic):
            hub.add(connection, await hub.link.join(topic))
        for _ in range(turns):
            await asyncio.sleep(0)


async def assert_settled(hub: Hub) -> None:
    """Wait until the hub is in the groups of its connections' topics, and in no other."""
    wanted = {group_name(topic) for connection in hub.connections.values() for topic in connection.topics}
    await until(lambda: joined_groups() == wanted and hub.link.up, timeout=5)
    await until(lambda: all(group.joined for group in hub.link.groups.values()), timeout=5)
    await until(lambda: {group.name for group in hub.link.groups.values()} == wanted, timeout=5)
