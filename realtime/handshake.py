"""
The door: from which web pages a connection may come, and which user it is.

Both are judged once, before the connection is accepted: the page and the session's cookie by what Django itself
does for a request, a token by the site's ``AUTHENTICATE``.
"""

from __future__ import annotations

import functools
import inspect
import logging
from importlib import import_module
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from asgiref.sync import iscoroutinefunction
from django.apps import apps
from django.conf import settings as django_settings
from django.core.exceptions import DisallowedHost, SuspiciousOperation
from django.core.handlers.asgi import ASGIRequest
from django.http import parse_cookie
from django.utils.functional import empty
from django.utils.http import is_same_domain

from .conf import get_settings
from .connection import Peer
from .events import session_digest
from .layers import bounded
from .threads import get_threads

logger = logging.getLogger("realtime.handshake")

TOKEN_OFFER = "token."
"""What a subprotocol that a client offers begins with when the rest is its token: a browser can set no header."""
_unreadable = False


class Identity(NamedTuple):
    """
    Say what came of asking who connects; the user is in ``scope["user"]``.

    ``known`` is false where that could not be read, ``refused`` true where a token was no good. ``session`` is the
    digest of the session that signed the user in, None where it was something else.
    """

    known: bool = True
    refused: bool = False
    session: str | None = None


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


async def identify(scope: Any) -> Identity:
    """
    Put the user into ``scope["user"]``: that of a token, of a middleware in front, or of the session's cookie.

    If the user cannot be read, because the database is down, slow or not migrated, it is None, and the log says so
    once. Raises nothing.
    """
    token = token_of(scope) if get_settings().AUTHENTICATE is not None else None
    try:
        if token is not None:
            scope["user"] = await bounded(_authenticate(token), get_settings().AUTHENTICATION_TIMEOUT)
            identity = Identity(refused=scope["user"] is None)
            _say_readable()
        elif "user" in scope:
            identity = _identity_in_front(scope)
        else:
            identity = await _identity_of_session(scope)
    except Exception as error:  # noqa: BLE001 - each database raises its own kind
        _say_unreadable(error, token)
        identity = Identity(known=False)
    if not identity.known:
        scope["user"] = None
    return identity


def _say_unreadable(error: Exception, token: str | None = None) -> None:
    global _unreadable
    if not _unreadable:
        text = repr(error) if not token else repr(error).replace(token, "...")
        logger.error("event=user_unreadable effect=accepted_without_user error=%s", text)
    _unreadable = True


def _say_readable() -> None:
    global _unreadable
    if _unreadable:
        logger.info("event=user_readable")
    _unreadable = False


def token_of(scope: Any) -> str | None:
    """
    Return the token that the client sends, or None.

    As ``Authorization: Bearer ...``, as an offered subprotocol ``token....``, or as ``?token=...``.
    """
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return str(value[7:].strip().decode("latin-1")) or None
    for offer in scope.get("subprotocols") or ():
        if offer.startswith(TOKEN_OFFER):
            return str(offer[len(TOKEN_OFFER) :]) or None
    values = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
    return values[0] if values else None


async def _authenticate(token: str) -> Any:
    authenticate = get_settings().AUTHENTICATE
    assert authenticate is not None
    if iscoroutinefunction(authenticate):
        return await authenticate(token)
    user = await get_threads().run_queued(authenticate, token)
    return await user if inspect.isawaitable(user) else user


def _identity_in_front(scope: Any) -> Identity:
    """Return the identity that a middleware in front has found."""
    if getattr(scope["user"], "_wrapped", None) is empty:  # Channels' own, which could not read it
        return Identity(known=False)
    key = getattr(scope.get("session"), "session_key", None)
    if key:
        _say_readable()
    return Identity(session=session_digest(key) if key and is_signed_in(scope["user"]) else None)


async def _identity_of_session(scope: Any) -> Identity:
    """Read the user that the session's cookie signs in, and return its identity."""
    scope["user"] = None
    if not (apps.is_installed("django.contrib.auth") and apps.is_installed("django.contrib.sessions")):
        return Identity()
    key = session_key_in(cookies_of(scope))
    if not key:
        scope["user"] = _nobody()
        return Identity()
    timeout = get_settings().AUTHENTICATION_TIMEOUT
    scope["user"] = await bounded(get_threads().run_queued(_load_user, key), timeout)
    _say_readable()
    return Identity(session=session_digest(key) if is_signed_in(scope["user"]) else None)


def cookies_of(scope: Any) -> str:
    """Return the cookies that a request carries, as one header would."""
    return "; ".join(value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"cookie")


def session_key_in(cookies: str) -> str | None:
    """Return the key of the session that ``cookies`` name, or None."""
    return parse_cookie(cookies).get(django_settings.SESSION_COOKIE_NAME)


def is_signed_in(user: Any) -> bool:
    """Return whether ``user`` is one, and not None or anonymous."""
    return user is not None and bool(getattr(user, "is_authenticated", False))


def user_id_of(user: Any) -> str:
    """Return the primary key of ``user`` as text, empty where nobody signed in."""
    return str(getattr(user, "pk", "")) if is_signed_in(user) else ""


def peer_of(scope: Any, identity: Identity, address: str) -> Peer:
    """Return what the hub is to know of who connects."""
    user = scope["user"]
    named = is_signed_in(user) and hasattr(user, "get_username")
    agents = [value.decode("latin-1") for name, value in scope["headers"] if name == b"user-agent"]
    return Peer(
        user_id=user_id_of(user),
        username=str(user.get_username()) if named else "",
        session=identity.session,
        address=address,
        path=str(scope["path"])[:255],
        user_agent=agents[0][:255] if agents else "",
    )


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


def install() -> None:
    """
    Let Channels' ``AuthMiddleware`` pass a WebSocket on when the user cannot be read, or not in time.

    By itself it ends the handshake with an exception, which servers answer with 500. Whoever looks at the user all
    the same gets the exception that Channels raises for a user that is not there yet.
    """
    from channels.auth import AuthMiddleware

    resolve_scope = AuthMiddleware.resolve_scope
    if hasattr(resolve_scope, "__wrapped__") or str(inspect.signature(resolve_scope)) != "(self, scope)":
        return

    @functools.wraps(resolve_scope)
    async def resolve_if_possible(self: Any, scope: Any) -> None:
        if scope["type"] != "websocket":
            await resolve_scope(self, scope)
            return
        try:
            await bounded(resolve_scope(self, scope), get_settings().AUTHENTICATION_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - each database raises its own kind
            _say_unreadable(error)

    AuthMiddleware.resolve_scope = resolve_if_possible
