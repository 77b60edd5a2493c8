"""
Topics: what clients can subscribe to, who may, and how a site publishes.

Declare them in any installed app's ``topics.py``, which is imported when Django starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from pydantic import TypeAdapter
from pydantic_core import to_json

from . import publishing
from .conf import get_settings
from .connection import LARGE
from .exceptions import UnknownTopic
from .guards import Authorize, allows
from .patterns import Pattern
from .protocol import TOPIC_HEARTBEAT
from .threads import call

MAX_NAME = 255
"""The most characters a topic's name may have."""

RESERVED = frozenset({"data", "on_commit", "self", "user"})
"""What a parameter may not be called, as arguments beside it are."""


class Topic:
    """
    Declare a topic; constructing registers it.

    ``name`` is any text of 1 to 255 characters. Between dots it may have parameters: ``orders.{order_id:int}`` stands
    for ``orders.1``, ``orders.2`` and so on. Types are ``str`` (the default), ``slug``, ``int`` and ``uuid``. A name
    that several match belongs to the one without parameters, else to one that begins with a literal, else to the one
    declared first. ``model`` is the pydantic model of what is
    published, where there is one. Who may subscribe:

    - with ``public``, everybody;
    - with ``authorize``, whoever ``authorize(user, **parameters)`` returns true for; it may be async, or instead
      be the name of a Django permission. ``user`` is None or anonymous where nobody signed in;
    - else every signed-in user.

    ``on_subscribe(user, **parameters)``, sync or async, returns what a new subscriber is sent first, as a publication,
    or None. What is published meanwhile follows it, and may be in it already.

    With ``latest`` only the newest publication counts: a client that reads too slowly is not sent those between.

    ``report_gaps`` tells subscribers when something was lost on the way.

    Raises ``ImproperlyConfigured`` for a name that cannot be, or one that is taken, and for a topic
    that is both public and guarded.
    """

    def __init__(
        self,
        name: str,
        model: Any = None,
        *,
        authorize: Authorize | str | None = None,
        public: bool = False,
        on_subscribe: Callable[..., Any] | None = None,
        latest: bool = False,
        report_gaps: bool = False,
    ) -> None:
        if not 0 < len(name) <= MAX_NAME:
            raise ImproperlyConfigured(f"topic name {name!r}: expected 1 to {MAX_NAME} characters")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ImproperlyConfigured(f"topic name {name!r} is no text that JSON can hold") from None
        try:
            self.pattern = Pattern(name)
        except ValueError as error:
            raise ImproperlyConfigured(f"topic name {name!r}: {error}") from None
        for parameter in RESERVED.intersection(self.pattern.parameters):
            raise ImproperlyConfigured(f"topic name {name!r}: call the parameter {parameter!r} something else")
        if public and authorize is not None:
            raise ImproperlyConfigured(f"topic {name!r} is public, so its authorize would never be asked: drop one")
        self.name = name
        self.model = model
        self.authorize = authorize
        self.public = public
        self.on_subscribe = on_subscribe
        self.latest = latest
        self.report_gaps = report_gaps
        self._data: TypeAdapter[Any] | None = None if model is None else TypeAdapter(model)
        _register(self)

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}>"

    async def allows(self, user: Any, **parameters: Any) -> bool:
        """
        Return whether ``user`` (None, anonymous or signed in) may subscribe to the topic with these parameters.

        Raises whatever the site's ``authorize`` raises, and ``ThreadsBusy`` when it is synchronous
        and no thread is free.
        """
        return await allows(user, self.authorize, self.public, parameters)

    async def snapshot(self, user: Any, **parameters: Any) -> str | None:
        """
        Return what a new subscriber is sent first, as JSON, or None.

        Raises whatever the site's ``on_subscribe`` raises, and what ``publish`` raises for data that does not fit.
        """
        data = None if self.on_subscribe is None else await call(self.on_subscribe, user, **parameters)
        return None if data is None else self.encode(data)

    def publish(self, data: Any, *, on_commit: bool | str = False, **parameters: Any) -> None:
        """
        Send ``data`` to every subscriber, on every server; ``on_commit`` waits for the transaction's commit.

        It is True for a transaction of the default database, or the alias of another database.

        The parameters are those of the topic's name: ``orders.publish(data, order_id=42)``.

        Raises ``ValueError`` when they do not fit, or when the data does not leave 64 KiB of ``OUTBOX_LIMIT``,
        ``pydantic.ValidationError`` when ``data`` does not fit the topic's model,
        ``pydantic_core.PydanticSerializationError`` when it is not JSON, ``LayerUnavailable`` when the
        channel layer does not take it within 2 s (with ``on_commit`` that is logged instead, as the
        transaction is over by then), and ``SynchronousOnlyOperation`` on a running event loop.
        """
        publishing.refuse_running_loop("publish")
        name, payload = self.format(**parameters), self.encode(data)
        if on_commit:
            transaction.on_commit(self._sender(name, payload), using=_alias(on_commit), robust=True)
        else:
            publishing.publish_payload(name, payload, self.name)

    async def apublish(self, data: Any, *, on_commit: bool | str = False, **parameters: Any) -> None:
        """Do what ``publish`` does, on a running event loop."""
        name, payload = self.format(**parameters), self.encode(data)
        if on_commit:
            # The transaction, if there is one, belongs to the thread that Django's synchronous code runs on.
            sender = self._sender(name, payload)
            await sync_to_async(transaction.on_commit)(sender, using=_alias(on_commit), robust=True)
        else:
            await publishing.apublish_payload(name, payload, self.name)

    def format(self, **parameters: Any) -> str:
        """Return the topic's name with these parameters. Raises ``ValueError`` when they do not fit."""
        name = self.pattern.format(parameters)
        if len(name) > MAX_NAME:
            raise ValueError(f"topic name {name[:20]!r}... has {len(name)} characters, at most {MAX_NAME} are allowed")
        return name

    def _sender(self, name: str, payload: str) -> Callable[[], None]:
        def publish_on_commit() -> None:  # by this name Django logs what fails
            publishing.publish_payload(name, payload, self.name)

        return publish_on_commit

    def encode(self, data: Any) -> str:
        """Return ``data`` as JSON. Raises what ``publish`` raises for data that does not fit."""
        if self.name == TOPIC_HEARTBEAT:
            raise ValueError("the topic 'heartbeat' is the server's own; run_heartbeats publishes on it")
        if self._data is None:
            payload = to_json(data, inf_nan_mode="null")
        else:
            payload = self._data.dump_json(self._data.validate_python(data), by_alias=True)
        # A client may be sent that much even while other frames wait that the server has no trouble with.
        if len(payload) > (limit := get_settings().OUTBOX_LIMIT - LARGE):
            raise ValueError(f"the data is {len(payload)} bytes as JSON, and at most {limit} can be published")
        return payload.decode()


def _alias(on_commit: bool | str) -> str | None:
    return on_commit if isinstance(on_commit, str) else None


_topics: dict[str, Topic] = {}
"""The topics without parameters, by their names."""
_patterns: dict[tuple[int, str | None], list[Topic]] = {}
"""The topics with parameters, by what candidates for a name are found by."""


def _register(topic: Topic) -> None:
    if not topic.pattern.parameters:
        if topic.name in _topics:
            raise ImproperlyConfigured(f"topic {topic.name!r} is declared twice")
        _topics[topic.name] = topic
        return
    candidates = _patterns.setdefault(topic.pattern.key, [])
    for other in candidates:
        if other.pattern.shape == topic.pattern.shape:
            raise ImproperlyConfigured(f"topic {topic.name!r} is declared twice, the first time as {other.name!r}")
    candidates.append(topic)


def find_topic(name: str) -> Topic | None:
    """Return the topic that ``name`` belongs to, or None."""
    found = match_topic(name)
    return None if found is None else found[0]


def match_topic(name: str) -> tuple[Topic, dict[str, Any]] | None:
    """Return the topic that ``name`` belongs to and the parameters in it, or None."""
    topic = _topics.get(name)
    if topic is not None:
        return topic, {}
    if not _patterns or len(name) > MAX_NAME:
        return None
    count = name.count(".") + 1
    for key in ((count, name.partition(".")[0]), (count, None)):
        for candidate in _patterns.get(key, ()):
            parameters = candidate.pattern.match(name)
            if parameters is not None:
                return candidate, parameters
    return None


def all_topics() -> list[Topic]:
    """Return every declared topic."""
    return [*_topics.values(), *(topic for topics in _patterns.values() for topic in topics)]


def _known(name: str) -> tuple[Topic, dict[str, Any]]:
    found = match_topic(name)
    if found is None:
        declared = ", ".join(repr(topic.name) for topic in all_topics())
        raise UnknownTopic(f"no topic {name!r} is declared; known are {declared}")
    return found


def publish(topic: str, data: Any, *, on_commit: bool | str = False) -> None:
    """
    Send ``data`` to every subscriber of the topic called ``topic``.

    Raises ``UnknownTopic`` when there is none, and what ``Topic.publish`` raises.
    """
    found, parameters = _known(topic)
    found.publish(data, on_commit=on_commit, **parameters)


async def apublish(topic: str, data: Any, *, on_commit: bool | str = False) -> None:
    """Do what ``publish`` does, on a running event loop."""
    found, parameters = _known(topic)
    await found.apublish(data, on_commit=on_commit, **parameters)


heartbeat = Topic(TOPIC_HEARTBEAT, public=True, latest=True)
