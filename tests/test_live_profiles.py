"""Profiles on a server: what a client sees of their settings, their faults and their closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.exceptions import InvalidStatus

from realtime import Topic
from realtime.protocol import CloseMessage
from realtime.testing import DemoWebsocketServer, faults
from realtime.testing.profiles import CloseEvent, Profile, by_name

from .live import Client

topic = Topic("profiles", public=True)
DEPLOY = by_name("rolling-deploy")


@pytest.fixture
async def server() -> AsyncIterator[DemoWebsocketServer]:
    """A server without heartbeats of its own."""
    async with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=3600) as server:
        yield server


def moment(**fields: object) -> Profile:
    """Return a profile that closes connections once."""
    event = CloseEvent.model_validate({"message": CloseMessage(code=4001, reason="now"), **fields})
    return Profile(name="once", summary="", good_client="", events=(event,))


async def test_connections_are_closed_at_the_moments_after_the_start(server: DemoWebsocketServer) -> None:
    server.use_profile("rolling-deploy")
    async with Client(server.url) as client:
        server.advance(1.9)
        await client.echo()
        server.advance(1.1)
        assert await client.closed() == (1012, "deploy")


async def test_second_connection_of_a_deploy_is_refused_and_the_third_closed_in_the_second_round(
    server: DemoWebsocketServer,
) -> None:
    server.use_profile("rolling-deploy")
    async with Client(server.url) as client:
        server.advance(3)
        assert await client.closed() == (1012, "deploy")
    with pytest.raises(InvalidStatus) as refused:
        async with Client(server.url):
            pass
    assert (refused.value.response.status_code, refused.value.response.headers["Retry-After"]) == (503, "1")
    async with Client(server.url) as client:
        server.advance(4.9)
        await client.echo()
        server.advance(1.1)
        assert await client.closed() == (1012, "deploy")


async def test_connection_is_closed_so_long_after_it_was_opened(server: DemoWebsocketServer) -> None:
    server.use_profile(moment(since="connected", after=24.0))
    async with Client(server.url) as first:
        server.advance(12)
        async with Client(server.url) as second:
            server.advance(12)
            assert await first.closed() == (4001, "now")
            await second.echo()
            server.advance(12)
            assert await second.closed() == (4001, "now")


async def test_connection_that_was_there_before_is_closed_too(server: DemoWebsocketServer) -> None:
    async with Client(server.url) as client:
        await client.echo()
        server.use_profile(moment(since="connected", after=5.0))
        server.advance(5)
        assert await client.closed() == (4001, "now")


async def test_spread_closes_one_after_the_other_and_in_the_same_way_each_time(server: DemoWebsocketServer) -> None:
    orders = []
    for name in ("a", "b"):
        session = server.session(name)
        session.use_profile(moment(since="started", after=1.0, spread=10.0))
        clients = [await Client(session.url).__aenter__() for _ in range(4)]
        session.advance(1.0)
        order = []
        for _ in range(100):
            session.advance(0.1)
            order.append(tuple(each.number for each in session.connections if each.state == "open"))
        orders.append(list(dict.fromkeys(order)))
        for client in clients:
            assert await client.closed() == (4001, "now")
    assert orders[0] == orders[1]
    assert len(orders[0]) >= 4


async def test_1006_drops_the_connection(server: DemoWebsocketServer) -> None:
    server.use_profile(moment(message=CloseMessage(code=1006), since="started", after=1.0))
    async with Client(server.url) as client:
        server.advance(1)
        assert await client.closed() == (1006, "")


async def test_settings_hold_for_new_connections(server: DemoWebsocketServer) -> None:
    server.use_profile(Profile(name="few", summary="", good_client="", settings={"MAX_SUBSCRIPTIONS": 1}))
    async with Client(server.url) as client:
        await client.subscribe("profiles")
        answer = await client.ask({"type": "subscribe_request", "topic": "heartbeat"})
        assert answer["status"] == "ERROR"
    assert server.settings.MAX_SUBSCRIPTIONS > 1


async def test_exchange_closes_who_sends_too_much(server: DemoWebsocketServer) -> None:
    server.use_profile("exchange-24h")
    async with Client(server.url, max_queue=None) as client:
        for _ in range(50):
            await client.send({"type": "echo_request", "echo": "x"})
        assert (await client.closed())[0] == 1008


async def test_interval_of_heartbeats_holds_at_once(server: DemoWebsocketServer) -> None:
    async with Client(server.url) as client:
        await client.subscribe("heartbeat")
        await client.beat()
        server.use_profile("zombie")
        server.advance(1.5)
        await client.beat()


async def test_end_of_a_profile_ends_all_of_it(server: DemoWebsocketServer) -> None:
    server.use_profile("rolling-deploy")
    server.use_profile(None)
    assert (server.profile, server.faults()) == (None, [])
    async with Client(server.url) as client:
        server.advance(20)
        await client.echo()


async def test_profile_of_a_session_is_no_other_sessions(server: DemoWebsocketServer) -> None:
    one, other = server.session("one"), server.session("other")
    one.use_profile("rolling-deploy")
    assert (one.profile, other.profile, server.profile) == (DEPLOY, None, None)
    async with Client(one.url) as first, Client(other.url) as second:
        server.advance(3)
        assert await first.closed() == (1012, "deploy")
        await second.echo()


async def test_session_that_begins_later_begins_the_profile_of_all_then(server: DemoWebsocketServer) -> None:
    server.use_profile("rolling-deploy")
    server.advance(10)
    session = server.session("late")
    async with Client(session.url) as client:
        session.advance(1.9)
        await client.echo()
        session.advance(1.1)
        assert await client.closed() == (1012, "deploy")
    assert session.profile == DEPLOY


async def test_server_begins_with_a_profile_and_faults_and_does_so_again_after_a_reset() -> None:
    refuse = faults.Refuse(after=4, status=429)
    async with DemoWebsocketServer("127.0.0.1:0", profile="rolling-deploy", faults=[refuse]) as server:
        expected = [*DEPLOY.faults, refuse]
        assert (server.profile, server.faults()) == (DEPLOY, expected)
        server.use_profile("zombie")
        server.reset()
        assert (server.profile, server.faults()) == (DEPLOY, expected)
        async with Client(server.url) as client:
            server.advance(3)
            assert await client.closed() == (1012, "deploy")


async def test_reset_of_a_session_ends_its_profile(server: DemoWebsocketServer) -> None:
    session = server.session("a")
    session.use_profile("rolling-deploy")
    session.reset()
    async with Client(session.url) as client:
        session.advance(20)
        await client.echo()


def test_profile_that_there_is_not_raises() -> None:
    with pytest.raises(ValueError, match="there is no profile 'nothing'"):
        DemoWebsocketServer("127.0.0.1:0", profile="nothing")


# Faults, as they are asked for


async def test_faults_of_one_connection_are_its_own(server: DemoWebsocketServer) -> None:
    lose, binary = faults.Lose(), faults.Binary()
    async with Client(server.url) as client, Client(server.url) as other:
        await asyncio.gather(client.echo(), other.echo())
        first, second = (connection.id for connection in server.connections)
        server.set_faults([binary])
        server.set_faults([lose], first)
        assert (server.faults(), server.faults(first), server.faults(second)) == ([binary], [lose], [binary])
        server.set_faults([])
        assert server.faults(first) == []
        await client.echo()


async def test_session_with_no_faults_has_none_of_all_the_others(server: DemoWebsocketServer) -> None:
    session = server.session("calm")
    server.set_faults([faults.Refuse()])
    assert session.faults() == [faults.Refuse()]
    session.set_faults([])
    assert (session.faults(), server.faults()) == ([], [faults.Refuse()])
    async with Client(session.url) as client:
        await client.echo()


def test_faults_of_a_connection_that_there_is_not_raise(server: DemoWebsocketServer) -> None:
    with pytest.raises(LookupError, match="no connection '99'"):
        server.faults("99")


async def test_limits_of_connections_hold_at_once_and_count_those_that_are_there(server: DemoWebsocketServer) -> None:
    def one(setting: str) -> Profile:
        return Profile(name="one", summary="", good_client="", settings={setting: 1})

    for setting, status in (("MAX_CONNECTIONS", 503), ("MAX_CONNECTIONS_PER_ADDRESS", 429)):
        server.reset()
        async with Client(server.url):
            server.use_profile(one(setting))
            with pytest.raises(InvalidStatus) as refused:
                async with Client(server.url):
                    pass
            assert refused.value.response.status_code == status
        async with Client(server.url) as client:
            await client.echo()
            server.use_profile(None)
            async with Client(server.url) as second:
                await second.echo()


def test_profile_with_a_setting_that_would_do_nothing_raises(server: DemoWebsocketServer) -> None:
    with pytest.raises(ValueError, match="no CHANNEL_LAYER, REQUIRE_ORIGIN of its own"):
        server.use_profile(
            Profile(name="x", summary="", good_client="", settings={"REQUIRE_ORIGIN": True, "CHANNEL_LAYER": "default"})
        )


@pytest.mark.parametrize("since", ["connected", "started"])
async def test_connection_that_a_profile_closes_is_not_waited_for(server: DemoWebsocketServer, since: str) -> None:
    server.use_profile(moment(since=since, after=5.0))
    async with Client(server.url) as client:
        await client.echo()
        server.advance(5)
        assert await client.closed() == (4001, "now")
        for chosen in (server, server.session("")):
            with pytest.raises(TimeoutError):
                await chosen.await_for_connection(timeout=0.01)
        async with Client(server.url):
            assert (await server.await_for_connection()).number == 2
