"""
The end of a session: whoever logs out, is deactivated or gets another password loses connections.

They were let in by a session or a user that is no longer good, and are asked for neither again. Django tells by its
signals, which ``QuerySet.update()`` does not send. What is sent here is never waited for longer than a second, and
raises nothing: logging out must work whatever becomes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.signals import request_finished, request_started
from django.db import transaction
from django.db.models.signals import post_delete, post_save, pre_save

from .conf import get_settings
from .events import CloseEvent, session_digest
from .handshake import cookies_of, session_key_in
from .hub import find_hub
from .layers import configured_layer, is_local
from .logs import complain
from .protocol import CloseCode
from .publishing import send_close

logger = logging.getLogger("realtime.sessions")

REASON = "session ended"
LONGEST_WAIT = 0.9
"""Seconds that saving a user waits for the channel layer at most."""
WATCHED = frozenset({"password", "is_active"})
"""The fields of a user on which the right to stay connected depends."""

_cookies: ContextVar[Callable[[], str]] = ContextVar("realtime_cookies", default=str)
"""Returns the cookies of the HTTP request that is being handled: few requests need them read."""


def connect_signals() -> None:
    """Listen to Django's signals, where the site has users and sessions."""
    if not apps.is_installed("django.contrib.auth"):
        return
    from django.contrib.auth import get_user_model
    from django.contrib.auth.signals import user_logged_in, user_logged_out

    user_logged_in.connect(_logged_in, dispatch_uid="realtime")
    user_logged_out.connect(_logged_out, dispatch_uid="realtime")
    user_model = get_user_model()
    for model in apps.get_models():
        if issubclass(model, user_model):  # Django sends the signals of proxies and children under their own name
            pre_save.connect(_before_save, sender=model, dispatch_uid="realtime")
            post_save.connect(_saved, sender=model, dispatch_uid="realtime")
            post_delete.connect(_deleted, sender=model, dispatch_uid="realtime")
    request_started.connect(_request_started, dispatch_uid="realtime")
    request_finished.connect(_request_finished, dispatch_uid="realtime")


# Which session makes a change


def note_request(scope: Any) -> None:
    """Remember whose request is being handled in this context: an ASGI request's."""
    _cookies.set(partial(cookies_of, scope))


def _request_started(*, environ: dict[str, Any] | None = None, **_: Any) -> None:
    if environ is not None:  # WSGI's; what an ASGI handler sends this in is a context of its own
        _cookies.set(lambda: str(environ.get("HTTP_COOKIE", "")))


def _request_finished(**_: Any) -> None:
    _cookies.set(str)


def _session_of_request() -> str | None:
    key = session_key_in(_cookies.get()())
    return session_digest(key) if key else None


# What Django tells


def _logged_out(*, request: Any, user: Any, **_: Any) -> None:
    key = getattr(getattr(request, "session", None), "session_key", None)
    if key:
        # The session is flushed after this signal: nothing is waited for, so that it is gone when clients come back.
        close = partial(_close, user, wait=0, session=session_digest(key))
        _on_commit(close)


def _logged_in(*, request: Any, **_: Any) -> None:
    """End the session that signing in replaces, which Django sends no signal for."""
    key = getattr(request, "COOKIES", {}).get(django_settings.SESSION_COOKIE_NAME)
    if key and key != getattr(getattr(request, "session", None), "session_key", None):
        _on_commit(partial(_close, None, wait=0, session=session_digest(key)))


def _before_save(
    *, sender: Any, instance: Any, raw: bool, using: str, update_fields: frozenset[str] | None, **_: Any
) -> None:
    """Remember what the user was before."""
    instance._realtime_before = None
    changing = update_fields is None or update_fields & WATCHED
    if instance.pk is None or raw or not changing or not get_settings().CLOSE_ON_SESSION_END:
        return
    try:
        instance._realtime_before = sender._base_manager.using(using).filter(pk=instance.pk).first()
    except Exception as error:  # noqa: BLE001 - saving will say what is wrong with the database
        complain(logger, logging.WARNING, "event=user_unreadable effect=connections_stay", "error=%r", error)


def _saved(*, instance: Any, update_fields: frozenset[str] | None, using: str, **_: Any) -> None:
    before = instance.__dict__.pop("_realtime_before", None)
    if before is None:
        return
    changed = {name for name in WATCHED if getattr(before, name, None) != getattr(instance, name, None)}
    if update_fields is not None:
        changed &= update_fields
    if "is_active" in changed and not instance.is_active:
        _on_commit(partial(_close, instance), using)
    elif "password" in changed:
        keep = _session_of_request()
        _on_commit(partial(_close, instance, keep_session=keep), using)


def _deleted(*, instance: Any, using: str, **_: Any) -> None:
    _on_commit(partial(_close, instance.pk), using)


def _on_commit(close: Callable[[], None], using: str | None = None) -> None:
    try:
        transaction.on_commit(close, using=using, robust=True)
    except Exception:  # noqa: BLE001 - no database, or a running event loop: there is no transaction to wait for
        close()


def _close(user: Any, wait: float = LONGEST_WAIT, **target: str | None) -> None:
    try:
        if not get_settings().CLOSE_ON_SESSION_END or (is_local(configured_layer()) and find_hub() is None):
            return
        user_id = None if user is None else str(getattr(user, "pk", user))
        send_close(CloseEvent(code=CloseCode.POLICY_VIOLATION, reason=REASON, user=user_id, **target), wait)
    except Exception as error:  # noqa: BLE001 - whatever it is, the user is to be logged out
        complain(logger, logging.ERROR, "event=session_end_not_sent", "error=%r", error)
