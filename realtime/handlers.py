"""
Requests of the site's own: what a client may ask beside the protocol's requests.

Declare them in any installed app's ``topics.py``, which is imported when Django starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_type_hints

from django.core.exceptions import ImproperlyConfigured
from pydantic import BaseModel, TypeAdapter

from .connection import Connection
from .guards import Authorize, allows
from .protocol import SiteRequest, add_request
from .threads import call

F = TypeVar("F", bound=Callable[..., Any])


class Caller(NamedTuple):
    """Be who asks: the user (None or anonymous where nobody signed in), the hub's connection, the ASGI scope."""

    user: Any
    connection: Connection
    scope: Any


class Handler:
    """Answer one type of request."""

    def __init__(
        self, kind: str, function: Callable[..., Any], authorize: Authorize | str | None, public: bool
    ) -> None:
        if public and authorize is not None:
            raise ImproperlyConfigured(f"request {kind!r} is public, so its authorize would never be asked: drop one")
        hints = get_type_hints(function, include_extras=True)
        first = next(iter(inspect.signature(function).parameters), "")
        model = hints.get(first)
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or "return" not in hints:
            raise ImproperlyConfigured(
                f"request {kind!r}: annotate its handler as in "
                f"'def {function.__name__}(request: Model, caller: Caller) -> Answer', where Model is a pydantic model"
            )
        try:
            self.request = add_request(kind, model)
        except ValueError as error:
            raise ImproperlyConfigured(str(error)) from None
        self.kind = kind
        self.authorize = authorize
        self.public = public
        self._function = function
        self.answer: TypeAdapter[Any] = TypeAdapter(hints["return"])
        handlers[kind] = self

    async def allows(self, user: Any) -> bool:
        """Return whether ``user`` may ask. Raises what the site's ``authorize`` raises, and ``ThreadsBusy``."""
        return await allows(user, self.authorize, self.public, {})

    async def handle(self, request: SiteRequest, caller: Caller) -> bytes:
        """Return the answer as JSON. Raises what the handler raises, and ``ValidationError`` if it answers nonsense."""
        answer = await call(self._function, request, caller)
        return self.answer.dump_json(self.answer.validate_python(answer), by_alias=True)


handlers: dict[str, Handler] = {}
"""The handlers by the types of their requests."""


def request_handler(kind: str, *, authorize: Authorize | str | None = None, public: bool = False) -> Callable[[F], F]:
    """
    Declare the function that answers requests of the type ``kind``, which ends in ``_request``.

    It is called with the request, an instance of the pydantic model that its first parameter is annotated with, and
    a ``Caller``; what it returns, as annotated, is the answer's ``data``. It may be async. ``authorize`` and ``public``
    are those of a ``Topic``. To answer with an error it raises ``RequestRefused``.

    Raises ``ImproperlyConfigured`` for a type that is taken, and for annotations that are missing.
    """

    def declare(function: F) -> F:
        Handler(kind, function, authorize, public)
        return function

    return declare
