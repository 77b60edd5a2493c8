"""The end of a session: which connections each thing that Django tells closes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.models import User
from django.db import transaction
from django.test import AsyncClient, Client, RequestFactory

from realtime import close_connections, sessions
from realtime.consumers import RealtimeConsumer
from realtime.events import CloseEvent, session_digest
from realtime.hub import Connection, Hub, Peer, get_hub
from realtime.routing import with_realtime

from .memory import ListWire, clean_process, connected, started_hub, the_layer, until, use_layer  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)
ENDED = (1008, "session ended")


class Browser:
    """Have a session of a user, and a connection that it let in."""

    def __init__(self, hub: Hub, user: User, client: Client) -> None:
        self.client = client
        self.key = client.cookies["sessionid"].value
        self.wire = ListWire()
        self.connection = Connection(self.wire, Peer(user_id=str(user.pk), session=session_digest(self.key)))
        hub.connected(self.connection)

    @property
    def closed_with(self) -> Any:
        return self.wire.closed_with


async def browser(user: User) -> Browser:
    client = Client()
    await sync_to_async(client.force_login)(user)
    return Browser(await started_hub(), user, client)


@pytest.fixture
async def ada() -> User:
    user: User = await sync_to_async(User.objects.create_user)("ada", password="first")
    return user


async def settle() -> None:
    """Wait until every close that was sent before has been acted on."""
    done = ListWire()
    get_hub().connected(Connection(done, Peer(user_id="nobody")))
    sessions.send_close(CloseEvent(code=4000, reason="settled", user="nobody"), 0)
    await until(lambda: done.closed)


async def test_logging_out_closes_the_connections_of_that_session(ada: User) -> None:
    here, there = await browser(ada), await browser(ada)
    await sync_to_async(here.client.logout)()
    await settle()
    assert (here.closed_with, there.closed_with) == (ENDED, None)


async def test_logging_out_asynchronously_closes_them_as_well(ada: User) -> None:
    here = await browser(ada)
    client = AsyncClient()
    client.cookies = here.client.cookies
    await client.alogout()
    await settle()
    assert here.closed_with == ENDED


async def test_logging_out_leaves_a_token_s_connections_alone(ada: User) -> None:
    here = await browser(ada)
    wire = ListWire()
    get_hub().connected(Connection(wire, Peer(user_id=str(ada.pk))))
    await sync_to_async(here.client.logout)()
    await settle()
    assert wire.closed_with is None


async def test_signing_in_anew_ends_the_session_before(ada: User) -> None:
    here, there = await browser(ada), await browser(ada)
    await sync_to_async(here.client.post)("/admin/login/", {"username": "ada", "password": "first"})
    request = RequestFactory().get("/")
    request.COOKIES["sessionid"] = here.key
    sessions._logged_in(request=request)
    await settle()
    assert (here.closed_with, there.closed_with) == (ENDED, None)


async def change_password(user: User) -> None:
    user.set_password("second")
    await user.asave()


async def disable_password(user: User) -> None:
    user.set_unusable_password()
    await user.asave(update_fields=["password"])


async def deactivate(user: User) -> None:
    user.is_active = False
    await user.asave()


async def deactivate_alone(user: User) -> None:
    user.is_active = False
    await user.asave(update_fields=["is_active"])


async def delete(user: User) -> None:
    await user.adelete()


async def delete_by_query(user: User) -> None:
    await User.objects.filter(pk=user.pk).adelete()


Change = Callable[[User], Awaitable[None]]


@pytest.mark.parametrize(
    "change", [change_password, disable_password, deactivate, deactivate_alone, delete, delete_by_query]
)
async def test_change_of_a_user_closes_all_that_users_connections(ada: User, change: Change) -> None:
    bob = await User.objects.acreate(username="bob")
    browsers = [await browser(ada), await browser(ada)]
    other = await browser(bob)
    await change(ada)
    await settle()
    assert [one.closed_with for one in browsers] == [ENDED, ENDED]
    assert other.closed_with is None


async def rename(user: User) -> None:
    user.first_name = "Ada"
    await user.asave()


async def save_another_field(user: User) -> None:
    user.set_password("not saved")
    user.is_active = False
    await user.asave(update_fields=["last_login"])


async def update_by_query(user: User) -> None:
    await User.objects.filter(pk=user.pk).aupdate(is_active=False)


async def activate(user: User) -> None:
    await User.objects.filter(pk=user.pk).aupdate(is_active=False)
    user.is_active = True
    await user.asave()


async def create_another(user: User) -> None:
    await sync_to_async(User.objects.create_user)("carol", password="hers", is_active=False)


@pytest.mark.parametrize("change", [rename, save_another_field, update_by_query, activate, create_another])
async def test_other_change_closes_nothing(ada: User, change: Change) -> None:
    here = await browser(ada)
    await change(ada)
    await settle()
    assert here.closed_with is None


async def test_session_that_changes_the_password_stays(ada: User) -> None:
    here, there = await browser(ada), await browser(ada)

    async def view(scope: Any, receive: Any, send: Any) -> None:
        await sync_to_async(ada.set_password)("second")
        await ada.asave()

    cookie = f"sessionid={here.key}".encode()
    await with_realtime(view)({"type": "http", "headers": [(b"cookie", cookie)]}, None, None)
    await settle()
    assert (here.closed_with, there.closed_with) == (None, ENDED)


async def test_session_that_changed_the_password_ends_with_its_new_key(ada: User) -> None:
    here = await browser(ada)
    sessions.note_request({"headers": [(b"cookie", f"sessionid={here.key}".encode())]})
    await change_password(ada)
    await settle()
    request = RequestFactory().get("/")
    request.user, request.session = ada, await sync_to_async(lambda: here.client.session)()
    await sync_to_async(update_session_auth_hash)(request, ada)
    assert request.session.session_key != here.key
    sessions._logged_out(request=request, user=ada)
    await settle()
    assert here.closed_with == ENDED


def test_request_of_a_wsgi_server_is_noted_while_it_lasts() -> None:
    sessions._request_started(environ={"HTTP_COOKIE": "sessionid=abc"})
    assert sessions._session_of_request() == session_digest("abc")
    sessions._request_finished()
    assert sessions._session_of_request() is None


async def test_save_in_a_transaction_closes_on_commit(ada: User) -> None:
    here = await browser(ada)

    def change() -> None:
        with transaction.atomic():
            ada.set_password("second")
            ada.save()
            time.sleep(0.05)  # what was sent too early would have arrived
            assert here.closed_with is None

    await sync_to_async(change)()
    await settle()
    assert here.closed_with == ENDED


async def test_save_that_is_rolled_back_closes_nothing(ada: User) -> None:
    here = await browser(ada)

    def change() -> None:
        with transaction.atomic():
            ada.set_password("second")
            ada.save()
            transaction.set_rollback(True)

    await sync_to_async(change)()
    await settle()
    assert here.closed_with is None


async def test_setting_turns_it_off(ada: User, settings: Any) -> None:
    settings.REALTIME = {"CLOSE_ON_SESSION_END": False, "CONNECTION_REGISTRY": False}
    here = await browser(ada)
    await change_password(ada)
    await sync_to_async(here.client.logout)()
    await settle()
    assert here.closed_with is None


async def test_logging_out_does_not_wait_for_a_layer_that_hangs(ada: User) -> None:
    here = await browser(ada)
    the_layer().only, the_layer().hanging = "group_send", True
    began = time.monotonic()
    await sync_to_async(here.client.logout)()
    assert time.monotonic() - began < 1
    the_layer().hanging = False
    await until(lambda: here.closed_with == ENDED)


async def test_logging_out_works_while_the_layer_fails_and_is_made_up_for(ada: User) -> None:
    here = await browser(ada)
    the_layer().only, the_layer().failing = "group_send", True
    await sync_to_async(here.client.logout)()
    assert "sessionid" not in here.client.cookies
    await until(lambda: the_layer().calls.count("group_send") >= 3)
    assert here.closed_with is None
    the_layer().failing = False
    await until(lambda: here.closed_with == ENDED)


async def test_saving_does_not_fail_for_what_cannot_be_sent(
    ada: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no layer")

    monkeypatch.setattr(sessions, "send_close", fail)
    await started_hub()
    await change_password(ada)
    assert "event=session_end_not_sent" in caplog.text


@pytest.mark.parametrize("before", [True, False])
async def test_handshake_under_way_when_the_user_ends_is_closed(before: bool) -> None:
    hub, wire = await started_hub(), ListWire()
    began = time.monotonic()
    hub.act(CloseEvent(code=1008, reason="session ended", user="7"))
    hub.connected(Connection(wire, Peer(user_id="7")), since=began if before else time.monotonic() + 0.001)
    assert wire.closed_with == (ENDED if before else None)


async def test_handshake_that_read_a_session_just_before_it_was_flushed_is_closed() -> None:
    hub, wire, other = await started_hub(), ListWire(), ListWire()
    hub.act(CloseEvent(code=1008, reason="session ended", session="digest", user="7"))
    hub.connected(Connection(wire, Peer(user_id="7", session="digest")), since=time.monotonic() + 0.5)
    hub.connected(Connection(other, Peer(user_id="7", session="another")), since=time.monotonic())
    assert (wire.closed_with, other.closed_with) == (ENDED, None)


async def test_connections_are_closed_by_user_and_by_session(ada: User) -> None:
    here, there = await browser(ada), await browser(ada)
    outcome = await asyncio.to_thread(close_connections, session=here.key)
    assert (outcome.connections, there.closed_with) == (1, None)
    assert here.closed_with == (1001, "closed by operator")
    for user in (ada, str(ada.pk)):
        outcome = await asyncio.to_thread(close_connections, user=user)
    assert (outcome.connections, there.closed_with) == (0, (1001, "closed by operator"))


async def test_logging_out_closes_a_real_connection(ada: User) -> None:
    client = AsyncClient()
    await client.aforce_login(ada)
    cookie = f"sessionid={client.cookies['sessionid'].value}".encode()
    async with connected(RealtimeConsumer.as_asgi(), headers=[(b"cookie", cookie)]) as connection:
        await connection.assert_nothing_waits()
        await client.alogout()
        assert await connection.closed() == ENDED
