"""
Topics: what clients can subscribe to, who may, and how a site publishes.

Declare them in any installed app's ``topics.py``, which is imported when Django starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from . import publishing
from .exceptions import UnknownTopic
from .protocol import TOPIC_HEARTBEAT
from .threads import get_threads

MAX_NAME = 255
"""The most characters a topic's name may have."""

Authorize = Callable[..., Any]


class Topic:
    """
    Declare a topic; constructing registers it.

    ``name`` is any text of 1 to 255 characters without ``{`` and ``}``, which are kept for patterns.
    ``model`` is the pydantic model of what is published, where there is one. Who may subscribe:

    - with ``public``, everybody;
    - with ``authorize``, whoever ``authorize(user)`` returns true for; it may be async, or instead
      be the name of a Django permission. ``user`` is None or anonymous where nobody signed in;
    - else every signed-in user.

    ``report_gaps`` tells subscribers when something was lost on the way.

    Raises ``ImproperlyConfigured`` for a name that cannot be, or one that is taken, and for a topic
    that is both public and guarded.
    """

    def __init__(
        self,
        name: str,
        model: type[BaseModel] | None = None,
        *,
        authorize: Authorize | str | None = None,
        public: bool = False,
        report_gaps: bool = False,
    ) -> None:
        if not 0 < len(name) <= MAX_NAME or "{" in name or "}" in name:
            raise ImproperlyConfigured(
                f"topic name {name!r}: expected 1 to {MAX_NAME} characters, without '{{' and '}}'"
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ImproperlyConfigured(f"topic name {name!r} is no text that JSON can hold") from None
        if name in _topics:
            raise ImproperlyConfigured(f"topic {name!r} is declared twice")
        if public and authorize is not None:
            raise ImproperlyConfigured(f"topic {name!r} is public, so its authorize would never be asked: drop one")
        self.name = name
        self.model = model
        self.authorize = authorize
        self.public = public
        self.report_gaps = report_gaps
        self._data: TypeAdapter[Any] | None = None if model is None else TypeAdapter(model)
        _topics[name] = self

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}>"

    async def allows(self, user: Any) -> bool:
        """
        Return whether ``user`` (None, anonymous or signed in) may subscribe.

        Raises whatever the site's ``authorize`` raises, and ``ThreadsBusy`` when it is synchronous
        and no thread is free.
        """
        if self.public:
            return True
        signed_in = user is not None and user.is_authenticated
        if self.authorize is None:
            return bool(signed_in)
        if isinstance(self.authorize, str):
            return bool(signed_in and await get_threads().run(user.has_perm, self.authorize))
        if iscoroutinefunction(self.authorize):
            return bool(await self.authorize(user))
        allowed = await get_threads().run(self.authorize, user)
        return bool(await allowed if inspect.isawaitable(allowed) else allowed)

    def publish(self, data: Any, *, on_commit: bool = False) -> None:
        """
        Send ``data`` to every subscriber, on every server; ``on_commit`` waits for the transaction's commit.

        Raises ``pydantic.ValidationError`` when ``data`` does not fit the topic's model,
        ``pydantic_core.PydanticSerializationError`` when it is not JSON, ``LayerUnavailable`` when the
        channel layer does not take it within 2 s (with ``on_commit`` that is logged instead, as the
        transaction is over by then), and ``SynchronousOnlyOperation`` on a running event loop.
        """
        publishing.refuse_running_loop("publish")
        payload = self._payload(data)
        if on_commit:
            transaction.on_commit(self._sender(payload), robust=True)
        else:
            publishing.publish_payload(self.name, payload)

    async def apublish(self, data: Any, *, on_commit: bool = False) -> None:
        """Do what ``publish`` does, on a running event loop."""
        payload = self._payload(data)
        if on_commit:
            # The transaction, if there is one, belongs to the thread that Django's synchronous code runs on.
            await sync_to_async(transaction.on_commit)(self._sender(payload), robust=True)
        else:
            await publishing.apublish_payload(self.name, payload)

    def _sender(self, payload: str) -> Callable[[], None]:
        def publish_on_commit() -> None:  # by this name Django logs what fails
            publishing.publish_payload(self.name, payload)

        return publish_on_commit

    def _payload(self, data: Any) -> str:
        if self.name == TOPIC_HEARTBEAT:
            raise ValueError("the topic 'heartbeat' is the server's own; run_heartbeats publishes on it")
        if self._data is None:
            return to_json(data, inf_nan_mode="null").decode()
        return self._data.dump_json(self._data.validate_python(data)).decode()


_topics: dict[str, Topic] = {}


def find_topic(name: str) -> Topic | None:
    """Return the topic called ``name``, or None."""
    return _topics.get(name)


def all_topics() -> list[Topic]:
    """Return every declared topic."""
    return list(_topics.values())


def _known(name: str) -> Topic:
    topic = find_topic(name)
    if topic is None:
        raise UnknownTopic(f"no topic {name!r} is declared; known are {', '.join(map(repr, _topics))}")
    return topic


def publish(topic: str, data: Any, *, on_commit: bool = False) -> None:
    """
    Send ``data`` to every subscriber of the topic called ``topic``.

    Raises ``UnknownTopic`` when there is none, and what ``Topic.publish`` raises.
    """
    _known(topic).publish(data, on_commit=on_commit)


async def apublish(topic: str, data: Any, *, on_commit: bool = False) -> None:
    """Do what ``publish`` does, on a running event loop."""
    await _known(topic).apublish(data, on_commit=on_commit)


heartbeat = Topic(TOPIC_HEARTBEAT, public=True)
