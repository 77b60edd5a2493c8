"""The door: origins as a table, and users read from the session's cookie."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.db import SessionStore
from django.db import DatabaseError
from django.test import AsyncClient

from realtime import Topic, handshake
from realtime.connection import Peer
from realtime.consumers import RealtimeConsumer
from realtime.events import session_digest
from realtime.handshake import Identity, identify, origin_allowed, peer_of, token_of
from realtime.hub import get_hub
from realtime.limits import Count

from .memory import TIMEOUT, Client, clean_process, connected  # noqa: F401

SITE = {
    "ALLOWED_HOSTS": ["example.org", "localhost"],
    "CSRF_TRUSTED_ORIGINS": ["https://app.example.com", "https://*.partner.example", "http://plain.example:8000"],
    "SECURE_PROXY_SSL_HEADER": None,
    "USE_X_FORWARDED_HOST": False,
    "REALTIME": {},
}


def scope_of(*headers: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {
        "type": "websocket",
        "path": "/ws/",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "server": ["127.0.0.1", 80],
        **more,
    }


@pytest.fixture
def site(settings: Any) -> Any:
    for name, value in SITE.items():
        setattr(settings, name, value)
    return settings


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("example.org", "http://example.org", True),
        ("example.org:8080", "http://example.org:8080", True),
        ("example.org", "https://example.org", False),  # the connection itself is not secure
        ("example.org:8080", "http://example.org", False),
        ("example.org", "http://example.org:8080", False),
        ("example.org", "http://evil.example", False),
        ("evil.example", "http://evil.example", False),  # not one of ALLOWED_HOSTS
        ("example.org", "https://app.example.com", True),
        ("example.org", "http://app.example.com", False),
        ("example.org", "https://app.example.com.evil.example", False),
        ("example.org", "https://a.partner.example", True),
        ("example.org", "https://partner.example", True),
        ("example.org", "http://a.partner.example", False),
        ("example.org", "https://evilpartner.example", False),
        ("example.org", "https://*.partner.example", False),
        ("example.org", "http://plain.example:8000", True),
        ("example.org", "http://plain.example", False),
        ("example.org", "null", False),
        ("example.org", "", False),
        ("example.org", "http://[", False),
        ("example.org", "http://[::1", False),
        ("example.org", "\xff\xfe", False),
        ("[", "http://[", False),
        ("", "http://", False),
    ],
)
def test_origin_is_judged_as_by_the_csrf_check(site: Any, host: str, origin: str, allowed: bool) -> None:
    assert origin_allowed(scope_of(("host", host), ("origin", origin))) is allowed


@pytest.mark.parametrize(("required", "allowed"), [(False, True), (True, False)])
def test_connection_without_an_origin_is_allowed_unless_one_is_required(
    site: Any, required: bool, allowed: bool
) -> None:
    site.REALTIME = {"REQUIRE_ORIGIN": required}
    assert origin_allowed(scope_of(("host", "example.org"))) is allowed


def test_doubled_origin_is_refused(site: Any) -> None:
    origin = ("origin", "http://example.org")
    assert not origin_allowed(scope_of(("host", "example.org"), origin, origin))


def test_origin_of_a_secure_connection(site: Any) -> None:
    assert origin_allowed(scope_of(("host", "example.org"), ("origin", "https://example.org"), scheme="wss"))
    assert not origin_allowed(scope_of(("host", "example.org"), ("origin", "http://example.org"), scheme="wss"))


def test_origin_behind_a_proxy_that_ends_tls(site: Any) -> None:
    site.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    headers = ("host", "example.org"), ("origin", "https://example.org")
    assert origin_allowed(scope_of(*headers, ("x-forwarded-proto", "https")))
    assert not origin_allowed(scope_of(*headers, ("x-forwarded-proto", "http")))
    assert not origin_allowed(scope_of(*headers))


async def test_connection_from_another_page_is_refused() -> None:
    headers = [(b"host", b"localhost"), (b"origin", b"http://evil.example")]
    with pytest.raises(AssertionError):  # it is not accepted
        async with connected(RealtimeConsumer.as_asgi(), headers=headers):
            pass
    assert get_hub().counts == {Count.REFUSED_ORIGIN: 1}


# Users


async def cookie_of(user: User) -> tuple[str, str]:
    client = AsyncClient()
    await client.aforce_login(user)
    return "cookie", f"sessionid={client.cookies['sessionid'].value}"


@pytest.mark.django_db(transaction=True)
async def test_user_is_read_from_the_sessions_cookie() -> None:
    user = await User.objects.acreate(username="somebody")
    name, cookie = await cookie_of(user)
    scope = scope_of((name, cookie))
    assert await identify(scope) == Identity(session=session_digest(cookie.partition("=")[2]))
    assert scope["user"] == user


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("cookies", [[], [("cookie", "sessionid=unknown")], [("cookie", "sessionid=")]])
async def test_user_without_a_session_is_anonymous(cookies: list[tuple[str, str]]) -> None:
    scope = scope_of(*cookies)
    assert (await identify(scope)).known
    assert scope["user"].is_anonymous


@pytest.mark.django_db(transaction=True)
async def test_session_of_an_old_password_is_anonymous_and_kept() -> None:
    user = await User.objects.acreate(username="somebody")
    name, value = await cookie_of(user)
    user.set_password("another")
    await user.asave()
    scope = scope_of((name, value))
    assert (await identify(scope)).known
    assert scope["user"].is_anonymous
    assert await SessionStore(value.partition("=")[2]).aexists(value.partition("=")[2])


async def test_user_of_a_middleware_is_kept() -> None:
    scope = scope_of(("cookie", "sessionid=whatever"), user="somebody")
    assert (await identify(scope)).known
    assert scope["user"] == "somebody"


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(session_key: str) -> None:
        raise DatabaseError("no such table: django_session")

    monkeypatch.setattr(handshake, "_load_user", fail)
    monkeypatch.setattr(handshake, "_unreadable", False)


@pytest.mark.usefixtures("no_database")
async def test_user_that_cannot_be_read_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    scope = scope_of(("cookie", "sessionid=whatever"))
    assert not (await identify(dict(scope))).known
    assert not (await identify(scope)).known
    assert scope["user"] is None
    assert caplog.text.count("event=user_unreadable") == 1


@pytest.mark.usefixtures("no_database")
async def test_user_that_can_be_read_again_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert not (await identify(scope_of(("cookie", "sessionid=whatever")))).known
    monkeypatch.setattr(handshake, "_load_user", lambda session_key: "somebody")
    scope = scope_of(("cookie", "sessionid=whatever"))
    assert (await identify(scope)).known
    assert scope["user"] == "somebody"
    assert "event=user_readable" in caplog.text


@pytest.mark.usefixtures("no_database")
async def test_topic_for_the_signed_in_is_an_internal_error_while_the_user_is_unknown() -> None:
    Topic("members")
    headers = [(b"cookie", b"sessionid=whatever")]
    async with connected(RealtimeConsumer.as_asgi(), headers=headers) as client:
        assert (await client.subscribe("members"))["error"]["code"] == "INTERNAL_ERROR"
        assert (await client.subscribe("heartbeat"))["status"] == "OK"
        assert get_hub().counts == {Count.UNIDENTIFIED: 1}


async def test_user_that_takes_too_long_to_read_is_unknown(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REALTIME = {"AUTHENTICATION_TIMEOUT": 0.05}
    release = threading.Event()
    monkeypatch.setattr(handshake, "_load_user", lambda session_key: release.wait())
    monkeypatch.setattr(handshake, "_unreadable", False)
    assert not (await identify(scope_of(("cookie", "sessionid=whatever")))).known
    release.set()


async def test_more_users_than_threads_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_load_user", lambda session_key: session_key)
    scopes = [scope_of(("cookie", f"sessionid={number}")) for number in range(100)]
    assert all(identity.known for identity in await asyncio.gather(*map(identify, scopes)))
    assert [scope["user"] for scope in scopes] == [str(number) for number in range(100)]


# Behind Channels' own authentication


@pytest.mark.django_db(transaction=True)
async def test_user_and_session_of_channels_middleware_are_taken() -> None:
    user = await User.objects.acreate(username="somebody")
    _, cookie = await cookie_of(user)
    async with connected(
        AuthMiddlewareStack(RealtimeConsumer.as_asgi()), headers=[(b"cookie", cookie.encode())]
    ) as client:
        await client.assert_nothing_waits()
        [connection] = get_hub().connections.values()
        assert connection.peer.username == "somebody"
        assert connection.peer.session == session_digest(cookie.partition("=")[2])


@pytest.fixture
def no_database_for_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(scope: Any) -> None:
        raise DatabaseError("no such table: django_session")

    monkeypatch.setattr("channels.auth.get_user", fail)
    monkeypatch.setattr(handshake, "_unreadable", False)


@pytest.mark.usefixtures("no_database_for_channels")
async def test_user_that_channels_middleware_cannot_read_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    Topic("members")
    for _ in range(2):
        async with connected(AuthMiddlewareStack(RealtimeConsumer.as_asgi())) as client:
            assert (await client.subscribe("members"))["error"]["code"] == "INTERNAL_ERROR"
            assert (await client.subscribe("heartbeat"))["status"] == "OK"
    assert caplog.text.count("event=user_unreadable") == 1


@pytest.mark.usefixtures("no_database_for_channels")
async def test_another_consumer_that_looks_at_the_unreadable_user_fails_as_ever() -> None:
    async def consumer(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ValueError, match="before it is ready"):
            _ = scope["user"].is_authenticated

    await AuthMiddlewareStack(consumer)(scope_of(), None, None)


@pytest.mark.usefixtures("no_database_for_channels")
async def test_channels_middleware_still_fails_for_http() -> None:
    with pytest.raises(DatabaseError):
        await AuthMiddlewareStack(RealtimeConsumer.as_asgi())({**scope_of(), "type": "http"}, None, None)


def test_mending_channels_middleware_twice_changes_nothing() -> None:
    from channels.auth import AuthMiddleware

    mended = AuthMiddleware.resolve_scope
    handshake.install()
    assert AuthMiddleware.resolve_scope is mended


def test_channels_middleware_is_still_what_the_repair_expects() -> None:
    from channels.auth import AuthMiddleware

    assert hasattr(AuthMiddleware.resolve_scope, "__wrapped__")


# Tokens

BEARER = ("authorization", "Bearer abc.def")


@pytest.mark.parametrize(
    ("headers", "more", "token"),
    [
        ([], {}, None),
        ([], {"query_string": b"token=abc.def"}, "abc.def"),
        ([], {"query_string": b"a=b&token=a%2Bb&token=c"}, "a+b"),
        ([], {"query_string": b"token="}, None),
        ([], {"query_string": b"tokens=abc"}, None),
        ([], {"query_string": b"\xff=%ff&token=%00"}, "\0"),
        ([], {"subprotocols": ["demows.v1", "token.abc.def"]}, "abc.def"),
        ([], {"subprotocols": ["demows.v1", "token."]}, None),
        ([], {"subprotocols": ["demows.v1", "mqtt"]}, None),
        ([BEARER], {}, "abc.def"),
        ([("authorization", "bearer  abc ")], {}, "abc"),
        ([("authorization", "Basic abc")], {}, None),
        ([("authorization", "Bearer ")], {}, None),
        ([BEARER], {"query_string": b"token=other", "subprotocols": ["token.another"]}, "abc.def"),
        ([], {"query_string": b"token=other", "subprotocols": ["token.another"]}, "another"),
    ],
)
def test_token_is_found(headers: list[tuple[str, str]], more: dict[str, Any], token: str | None) -> None:
    assert token_of(scope_of(*headers, **more)) == token


def ada(token: str) -> Any:
    return SimpleNamespace(pk=7, is_authenticated=True, get_username=lambda: "ada") if token == "abc.def" else None


async def ada_later(token: str) -> Any:
    return ada(token)


@pytest.mark.parametrize("authenticate", [ada, ada_later, f"{__name__}.ada", lambda token: ada_later(token)])
async def test_token_says_who_connects(settings: Any, authenticate: Any) -> None:
    settings.REALTIME = {"AUTHENTICATE": authenticate, "CONNECTION_REGISTRY": False}
    Topic("members")
    async with connected(headers=[(b"authorization", b"Bearer abc.def")]) as client:
        assert (await client.subscribe("members"))["status"] == "OK"
        [connection] = get_hub().connections.values()
        assert connection.peer[:3] == ("7", "ada", None)


async def test_token_comes_before_the_user_of_a_middleware(settings: Any) -> None:
    settings.REALTIME = {"AUTHENTICATE": ada}
    scope = scope_of(BEARER, user=AnonymousUser())
    assert await identify(scope) == Identity()
    assert scope["user"].pk == 7


async def test_without_a_token_the_session_says_who_connects(settings: Any) -> None:
    settings.REALTIME = {"AUTHENTICATE": ada}
    scope = scope_of(user="somebody")
    assert await identify(scope) == Identity()
    assert scope["user"] == "somebody"


async def test_token_is_nothing_where_nobody_asks_for_one() -> None:
    scope = scope_of(BEARER)
    assert await identify(scope) == Identity()
    assert scope["user"].is_anonymous


async def test_bad_token_is_told_by_a_close_code(settings: Any) -> None:
    settings.REALTIME = {"AUTHENTICATE": ada, "CONNECTION_REGISTRY": False}
    client = Client(RealtimeConsumer.as_asgi(), "/ws/?token=expired", subprotocols=["demows.v1"])
    assert await client.connect(TIMEOUT) == (True, "demows.v1")
    assert await client.closed() == (1008, "token refused")
    assert get_hub().counts == {Count.REFUSED_TOKEN: 1}
    await client.disconnect()


@pytest.mark.parametrize("effect", [RuntimeError("no key abc.def"), None])
async def test_token_that_cannot_be_judged_leaves_the_user_unknown_and_unlogged(
    settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, effect: Exception | None
) -> None:
    async def fail(token: str) -> None:
        if effect is not None:
            raise effect
        await asyncio.Event().wait()

    settings.REALTIME = {"AUTHENTICATE": fail, "AUTHENTICATION_TIMEOUT": 0.05}
    monkeypatch.setattr(handshake, "_unreadable", False)
    scope = scope_of(BEARER)
    assert not (await identify(scope)).known
    assert scope["user"] is None
    assert "event=user_unreadable" in caplog.text
    assert "abc.def" not in caplog.text


# What the hub is told


def test_peer_of_nobody_in_particular() -> None:
    scope = scope_of(user=None, client=None)
    assert peer_of(scope, Identity(), "") == Peer(path="/ws/")


def test_peer_says_who_and_whence() -> None:
    user = ada("abc.def")
    scope = scope_of(("user-agent", "Browser/1"), user=user, client=["10.0.0.1", 4242])
    peer = peer_of(scope, Identity(session="digest"), "192.0.2.1")  # the address that is believed, whoever it came by
    assert peer == Peer("7", "ada", "digest", "192.0.2.1", "/ws/", "Browser/1")


def test_peer_is_cut_to_size() -> None:
    scope = scope_of(("user-agent", "x" * 5000), user=object(), path="/" * 5000)
    peer = peer_of(scope, Identity(), "192.0.2.1")
    assert (len(peer.user_agent), len(peer.path), peer.user_id) == (255, 255, "")
