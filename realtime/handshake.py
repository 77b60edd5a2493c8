"""
The door: from which web pages a connection may come, and which user it is.

Both are judged once, before the connection is accepted, by what Django itself does for a request.
"""

from __future__ import annotations

import logging
from importlib import import_module
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings as django_settings
from django.core.exceptions import DisallowedHost, SuspiciousOperation
from django.core.handlers.asgi import ASGIRequest
from django.http import parse_cookie
from django.utils.http import is_same_domain

from .conf import get_settings
from .layers import bounded
from .threads import get_threads

logger = logging.getLogger("realtime.handshake")

USER_TIMEOUT = 2.0
"""Seconds that reading the user may take."""
_unreadable = False


def _request(scope: Any) -> ASGIRequest:
    """Return the handshake as the GET request that it is."""
    scheme = {"ws": "http", "wss": "https"}.get(scope.get("scheme", "ws"), "http")
    return ASGIRequest({**scope, "type": "http", "method": "GET", "scheme": scheme}, BytesIO())


def origin_allowed(scope: Any) -> bool:
    """
    Return whether the web page that asks for the connection may have it, as Django's CSRF check would.

    That is the site's own host, if ``ALLOWED_HOSTS`` has it, or one in ``CSRF_TRUSTED_ORIGINS``. Without an
    ``Origin`` header it is no browser, which ``REQUIRE_ORIGIN`` refuses. Raises nothing.
    """
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    if len(origins) != 1:
        return not origins and not get_settings().REQUIRE_ORIGIN
    origin = origins[0].decode("latin-1")
    try:
        request = _request(scope)
        if origin == f"{'https' if request.is_secure() else 'http'}://{request.get_host()}":
            return True
    except (DisallowedHost, SuspiciousOperation, ValueError):
        pass
    return _is_trusted(origin)


def _is_trusted(origin: str) -> bool:
    if origin in django_settings.CSRF_TRUSTED_ORIGINS:
        return "*" not in origin
    try:
        scheme, host = urlsplit(origin)[:2]
    except ValueError:
        return False
    for trusted in map(urlsplit, django_settings.CSRF_TRUSTED_ORIGINS):
        if "*" in trusted.netloc and trusted.scheme == scheme and is_same_domain(host, trusted.netloc.lstrip("*")):
            return True
    return False


async def read_user(scope: Any) -> bool:
    """
    Put the user of the session cookie into ``scope["user"]``, unless a middleware has put one there.

    Return whether it could be read. If not, because the database is down, slow or not migrated, the user is
    None, and the log says so once.
    """
    global _unreadable
    if "user" in scope:
        return True
    scope["user"] = None
    if not (apps.is_installed("django.contrib.auth") and apps.is_installed("django.contrib.sessions")):
        return True
    try:
        cookies = "; ".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie")
        key = parse_cookie(cookies).get(django_settings.SESSION_COOKIE_NAME)
        scope["user"] = await bounded(get_threads().run_queued(_load_user, key), USER_TIMEOUT) if key else _nobody()
    except Exception as error:  # noqa: BLE001 - each database raises its own kind
        if not _unreadable:
            logger.error("event=user_unreadable effect=accepted_without_user error=%r", error)
        _unreadable = True
        return False
    if key and _unreadable:
        logger.info("event=user_readable")
        _unreadable = False
    return True


def _nobody() -> Any:
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


def _load_user(session_key: str) -> Any:
    from django.contrib.auth import get_user

    request = ASGIRequest({"type": "http", "method": "GET", "path": "/", "headers": []}, BytesIO())
    session = import_module(django_settings.SESSION_ENGINE).SessionStore(session_key)
    # What get_user() may do to a session is for a response that can set a cookie: here it would sign the user out.
    session.flush = session.cycle_key = lambda: None
    request.session = session
    return get_user(request)
