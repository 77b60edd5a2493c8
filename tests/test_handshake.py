"""The door: origins as a table, and users read from the session's cookie."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import DatabaseError
from django.test import AsyncClient

from realtime import Topic, handshake
from realtime.consumers import RealtimeConsumer
from realtime.handshake import origin_allowed, read_user

from .memory import clean_process, connected  # noqa: F401

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


# Users


async def cookie_of(user: User) -> tuple[str, str]:
    client = AsyncClient()
    await client.aforce_login(user)
    return "cookie", f"sessionid={client.cookies['sessionid'].value}"


@pytest.mark.django_db(transaction=True)
async def test_user_is_read_from_the_sessions_cookie() -> None:
    user = await User.objects.acreate(username="somebody")
    scope = scope_of(await cookie_of(user))
    assert await read_user(scope)
    assert scope["user"] == user


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("cookies", [[], [("cookie", "sessionid=unknown")], [("cookie", "sessionid=")]])
async def test_user_without_a_session_is_anonymous(cookies: list[tuple[str, str]]) -> None:
    scope = scope_of(*cookies)
    assert await read_user(scope)
    assert scope["user"].is_anonymous


@pytest.mark.django_db(transaction=True)
async def test_session_of_an_old_password_is_anonymous_and_kept() -> None:
    user = await User.objects.acreate(username="somebody")
    name, value = await cookie_of(user)
    user.set_password("another")
    await user.asave()
    scope = scope_of((name, value))
    assert await read_user(scope)
    assert scope["user"].is_anonymous
    assert await SessionStore(value.partition("=")[2]).aexists(value.partition("=")[2])


async def test_user_of_a_middleware_is_kept() -> None:
    scope = scope_of(("cookie", "sessionid=whatever"), user="somebody")
    assert await read_user(scope)
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
    assert not await read_user(dict(scope))
    assert not await read_user(scope)
    assert scope["user"] is None
    assert caplog.text.count("event=user_unreadable") == 1


@pytest.mark.usefixtures("no_database")
async def test_user_that_can_be_read_again_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert not await read_user(scope_of(("cookie", "sessionid=whatever")))
    monkeypatch.setattr(handshake, "_load_user", lambda session_key: "somebody")
    scope = scope_of(("cookie", "sessionid=whatever"))
    assert await read_user(scope)
    assert scope["user"] == "somebody"
    assert "event=user_readable" in caplog.text


@pytest.mark.usefixtures("no_database")
async def test_topic_for_the_signed_in_is_an_internal_error_while_the_user_is_unknown() -> None:
    Topic("members")
    headers = [(b"cookie", b"sessionid=whatever")]
    async with connected(RealtimeConsumer.as_asgi(), headers=headers) as client:
        assert (await client.subscribe("members"))["error"]["code"] == "INTERNAL_ERROR"
        assert (await client.subscribe("heartbeat"))["status"] == "OK"


async def test_user_that_takes_too_long_to_read_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(handshake, "_load_user", lambda session_key: release.wait())
    monkeypatch.setattr(handshake, "_unreadable", False)
    monkeypatch.setattr(handshake, "USER_TIMEOUT", 0.05)
    assert not await read_user(scope_of(("cookie", "sessionid=whatever")))
    release.set()


async def test_more_users_than_threads_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_load_user", lambda session_key: session_key)
    scopes = [scope_of(("cookie", f"sessionid={number}")) for number in range(100)]
    assert all(await asyncio.gather(*map(read_user, scopes)))
    assert [scope["user"] for scope in scopes] == [str(number) for number in range(100)]
