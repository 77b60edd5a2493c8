"""Limits over real connections: what a client that goes too far sees, and that nobody else notices."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from . import raw
from .live import TIMEOUT, Client, Server, eventually, running
from .raw import Raw

OUTBOX = 1 << 18
WIRES = pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        pytest.param("daphne", (), "application", id="daphne"),
        pytest.param("uvicorn", (), "application", id="uvicorn-uvloop"),
        pytest.param("uvicorn", ("--loop", "asyncio"), "application", id="uvicorn-asyncio"),
        pytest.param("daphne", (), "wrapped", id="daphne-wrapped"),
        pytest.param("uvicorn", (), "wrapped", id="uvicorn-wrapped"),
        pytest.param("uvicorn", ("--ws-per-message-deflate", "false"), "behind_auth", id="uvicorn-auth"),
    ],
)


@pytest.fixture
def own(kind: str, options: tuple[str, ...], name: str) -> Iterator[Server]:
    """A server with a small outbox, for each way in which a wire is made."""
    limits = {"REALTIME_OUTBOX_LIMIT": str(OUTBOX), "REALTIME_WRITE_TIMEOUT": "60"}
    with running(kind, *options, application=f"tests.site.asgi:{name}", **limits) as server:
        yield server


def counts(server: Server) -> dict[str, int]:
    """Return what the server has counted."""
    hub = server.get("/readyz")["parts"]["hub"]
    found: dict[str, int] = hub.get("counts", {})
    return found


async def counted(server: Server, **expected: int) -> None:
    """Wait until the server has counted just this."""

    def agrees() -> bool:
        found = counts(server)
        return {name: found.get(name, 0) for name in expected} == expected

    await eventually(agrees)


async def nobody_left(server: Server, but: int = 0) -> None:
    """Wait until no connection but so many is there, neither in the hub nor in the server."""
    await eventually(lambda: server.get("/leftovers/")["connections"] == but)

    def freed() -> bool:
        objects = server.get("/leftovers/")["objects"]
        return objects["Connection"] == objects["WebSocketProtocol"] + objects["WebSocketsSansIOProtocol"] == but

    await eventually(freed)


@asynccontextmanager
async def reader(server: Server, topic: str = "many-1") -> AsyncIterator[Raw]:
    """Connect a client that reads when told to, and subscribes to a topic."""
    async with Raw(server.port, receive_buffer=4096) as client:
        await client.open()
        await client.send_json({"type": "subscribe_request", "topic": topic})
        await client.frame()
        yield client


async def publish(server: Server, topic: str, size: int, count: int = 1) -> None:
    await server.aget(f"/publish_text/?topic={topic}&size={size}&count={count}")


# Slow consumers


@WIRES
async def test_client_that_does_not_read_is_closed_and_freed(own: Server) -> None:
    async with Client(own.url) as other, reader(own):
        await other.subscribe("news")
        for _ in range(400):
            await publish(own, "many-1", 60_000)
            if counts(own).get("slow_consumers"):
                break
        await publish(own, "news", 10)
        await other.publications(1)
        await nobody_left(own, but=1)  # though it never reads the close frame
        await counted(own, slow_consumers=1)
        own.wait_for_line("event=slow_consumer reason=full connection=[0-9a-f-]{36} ")
        own.wait_for_line("event=disconnected connection=[0-9a-f-]{36} code=3008 ")
    await own.assert_calm(0)


@WIRES
async def test_slow_consumer_that_reads_in_time_sees_why_it_is_closed(own: Server) -> None:
    async with reader(own) as slow:
        for _ in range(400):
            await publish(own, "many-1", 60_000)
            if counts(own).get("slow_consumers"):
                break
        assert await slow.closed() == (3008, "slow consumer")


@WIRES
async def test_more_at_once_than_the_outbox_takes_reaches_a_client_that_reads(
    kind: str, options: tuple[str, ...], name: str
) -> None:
    limit = 8 << 20  # on a busy machine the client needs some time
    with running(kind, *options, application=f"tests.site.asgi:{name}", REALTIME_OUTBOX_LIMIT=str(limit)) as own:
        async with Client(own.url, max_queue=None, compression=None) as client:
            await client.subscribe("news")
            await publish(own, "news", 500_000, 40)
            assert len(await client.publications(40)) == 40
            assert "slow_consumers" not in counts(own)


@WIRES
async def test_outbox_never_holds_more_than_its_limit(own: Server) -> None:
    async with reader(own, "many-9") as slow:
        held = []
        while not (found := counts(own).get("slow_consumers")):
            await publish(own, "many-9", 30_000)
            held.append((await own.aget("/wire/?topic=many-9&action=look"))["buffered"])
        assert found == 1
        assert max(held) <= OUTBOX
        slow.abort()


@WIRES
async def test_pongs_that_are_not_read_count(own: Server) -> None:
    async with reader(own) as rude:
        await press(own, rude, raw.frame(raw.PING, b"x" * 125) * 5000)
        await counted(own, slow_consumers=1)
        await nobody_left(own)


async def press(server: Server, client: Raw, frames: bytes) -> None:
    """Send frames again and again, and read nothing, until the server has had enough."""
    loop = asyncio.get_running_loop()
    end = loop.time() + TIMEOUT
    while loop.time() < end and not counts(server).get("slow_consumers"):
        try:
            async with asyncio.timeout(0.5):
                await client.send(frames)
        except OSError:
            break
        except TimeoutError:
            pass


async def test_client_that_asks_and_does_not_read_is_not_answered_on_and_closed_in_the_end(kind: str) -> None:
    with running(kind, REALTIME_OUTBOX_LIMIT=str(OUTBOX), REALTIME_WRITE_TIMEOUT="2") as own:
        async with Client(own.url) as other, reader(own, "many-9") as rude:
            asking = asyncio.create_task(press(own, rude, big_echo_request() * 20))
            most = 0
            while not asking.done():
                most = max(most, (await own.aget("/wire/?topic=many-9&action=look"))["buffered"])
                await other.echo()
            assert OUTBOX // 2 <= most <= OUTBOX
            await counted(own, slow_consumers=1)
            await asyncio.to_thread(own.wait_for_line, "event=slow_consumer reason=stalled ")
            await nobody_left(own, but=1)


async def test_client_that_asks_much_at_once_and_reads_gets_every_answer(kind: str) -> None:
    with running(kind, REALTIME_OUTBOX_LIMIT=str(OUTBOX)) as own:
        async with Raw(own.port) as client:
            await client.open()
            asking = asyncio.create_task(client.send(big_echo_request() * 200))
            for _ in range(200):
                assert len((await client.frame())[1]) > 40_000
            await asking
            assert "slow_consumers" not in counts(own)


def big_echo_request() -> bytes:
    return raw.frame(raw.TEXT, json.dumps({"type": "echo_request", "echo": "x" * 40_000}).encode())


@pytest.mark.parametrize("size", [1, 150_000], ids=["a little", "more than the server likes"])
async def test_client_for_which_nothing_can_be_written_is_closed_after_the_timeout(kind: str, size: int) -> None:
    with running(kind, REALTIME_WRITE_TIMEOUT="1") as own:
        async with reader(own):
            while not counts(own).get("slow_consumers"):  # the kernel may still take what was held for a moment
                if (await own.aget("/wire/?topic=many-1&action=look"))["buffered"] < size:
                    await publish(own, "many-1", 8192)
            own.wait_for_line("event=slow_consumer reason=stalled ")
            await nobody_left(own)


async def test_client_that_reads_slowly_but_steadily_is_not_closed(kind: str) -> None:
    with running(kind, REALTIME_WRITE_TIMEOUT="2") as own:
        async with reader(own) as slow:
            began = time.monotonic()
            while time.monotonic() < began + 5:
                while (await own.aget("/wire/?topic=many-1&action=look"))["buffered"] < 200_000:
                    await publish(own, "many-1", 10_000)
                for _ in range(8):  # the kernel takes more only when a third of its own buffer, or so, is free
                    await slow.frame()
            assert "slow_consumers" not in counts(own)
            assert (await own.aget("/census/"))["connections"] == 1


@WIRES
async def test_topic_of_which_only_the_latest_counts_closes_nobody(own: Server) -> None:
    async with reader(own, "latest") as slow:
        for number in range(200):
            await own.aget(f"/publish_number/?topic=latest&number={number}&size=30000")
        found = counts(own)
        assert "slow_consumers" not in found
        assert found["conflated"] > 50
        numbers = []
        while not numbers or numbers[-1] != 199:
            numbers.append(json.loads((await slow.frame())[1])["data"]["number"])
        assert numbers == sorted(set(numbers))
        assert len(numbers) < 150
        await slow.send_json({"type": "echo_request", "echo": "x"})
        assert json.loads((await slow.frame())[1])["type"] == "echo_response"


async def test_client_that_does_not_read_costs_a_thousand_others_nothing(kind: str) -> None:
    with running(kind, REALTIME_OUTBOX_LIMIT=str(OUTBOX), REALTIME_MAX_CONNECTIONS="2000") as own:
        async with AsyncExitStack() as stack:
            others = [await stack.enter_async_context(Raw(own.port)) for _ in range(1000)]
            for other in others:
                await other.open()
                await other.send_json({"type": "subscribe_request", "topic": "news"})
                await other.frame()
            await stack.enter_async_context(reader(own, "news"))
            for number in range(20):
                await own.aget(f"/publish_number/?topic=news&number={number}&size=60000")
                frames = await asyncio.gather(*(other.frame() for other in others))
                assert {json.loads(frame[1])["data"]["number"] for frame in frames[::100]} == {number}
            await counted(own, slow_consumers=1)


# Floods


RATE = {"REALTIME_RATE_LIMIT": "50", "REALTIME_RATE_BURST": "100", "REALTIME_FLOOD_TIMEOUT": "60"}


def echo_request(number: int) -> bytes:
    return raw.frame(raw.TEXT, json.dumps({"type": "echo_request", "reqId": str(number), "echo": "x"}).encode())


async def test_requests_over_the_limit_are_answered_in_order_and_at_the_rate(kind: str) -> None:
    with running(kind, **RATE) as own:
        async with Raw(own.port) as client:
            await client.open()
            await client.send(b"".join(map(echo_request, range(200))))
            began = time.monotonic()
            answers = [json.loads((await client.frame())[1]) for _ in range(200)]
            took = time.monotonic() - began
        assert [answer["reqId"] for answer in answers] == [str(number) for number in range(200)]
        kinds = [answer["type"] for answer in answers]
        assert kinds[:100] == ["echo_response"] * 100
        limited = [answer for answer in answers if answer["type"] == "error"]
        assert {answer["code"] for answer in limited} == {"RATE_LIMITED"}
        assert limited[0]["message"] == "at most 50 requests a second, and 100 at once"
        assert took > 100 / 50 - 0.5
        await counted(own, rate_limited=len(limited))


async def test_flooder_is_closed_and_nobody_else_is(kind: str) -> None:
    with running(kind, **{**RATE, "REALTIME_FLOOD_TIMEOUT": "2"}) as own:
        async with Client(own.url) as other, Raw(own.port) as flooder:
            await flooder.open()

            async def flood() -> None:
                frames = b"".join(map(echo_request, range(1000)))
                try:
                    while True:
                        await flooder.send(frames)
                except (OSError, TimeoutError):
                    pass

            flooding = asyncio.create_task(flood())
            closed = asyncio.create_task(flooder.closed())
            while not closed.done():
                await other.echo()
                await asyncio.wait([closed], timeout=0.1)
            flooding.cancel()
            assert closed.result() == (1008, "flooding")
            await other.echo()
            await counted(own, flooders=1)
            await nobody_left(own, but=1)
        assert own.output.count("event=rate_limited") == 1
        await own.assert_calm(0)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(raw.frame(raw.PING, b"x"), id="pings"),
        pytest.param(raw.frame(raw.PONG, b"x"), id="pongs"),
        pytest.param(raw.frame(raw.TEXT, b"", fin=False) + raw.frame(raw.CONTINUATION, fin=False) * 50, id="parts"),
    ],
)
async def test_flood_of_frames_that_are_no_messages_is_one_too(kind: str, frame: bytes) -> None:
    with running(kind, **{**RATE, "REALTIME_RATE_LIMIT": "500", "REALTIME_FLOOD_TIMEOUT": "2"}) as own:
        async with Client(own.url) as other, Raw(own.port) as flooder:
            await flooder.open()

            async def flood() -> None:
                first, rest = frame, frame[len(frame) // 51 :] if len(frame) > 100 else frame
                try:
                    await flooder.send(first)
                    while True:
                        await flooder.send(rest * 500)
                except (OSError, TimeoutError):
                    pass

            flooding = asyncio.create_task(flood())
            assert await flooder.closed() == (1008, "flooding")
            flooding.cancel()
            await other.echo()
            await counted(own, flooders=1)


async def test_client_that_pauses_when_it_is_limited_is_not_closed(kind: str) -> None:
    with running(kind, **{**RATE, "REALTIME_FLOOD_TIMEOUT": "1"}) as own:
        async with Raw(own.port) as client:
            await client.open()
            for _ in range(3):
                await client.send(b"".join(map(echo_request, range(120))))
                answers = [json.loads((await client.frame())[1]) for _ in range(120)]
                assert answers[-1]["reqId"] == "119"
                async with Client(own.url) as other:  # for two seconds it says nothing
                    await other.subscribe("heartbeat")
                    for _ in range(12):
                        await other.beat()
            assert "flooders" not in counts(own)


async def test_frames_that_wait_take_little_memory(kind: str) -> None:
    with running(kind, **RATE) as own:

        def resident() -> int:
            with open(f"/proc/{own.pid}/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

        await own.mark()
        before = resident()
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Raw(own.port)) for _ in range(20)]
            for client in clients:
                await client.open()
                await client.send(echo_request(0))
                await client.frame()
            sending = [asyncio.create_task(client.send(raw.frame(raw.TEXT) * 400_000)) for client in clients]
            for client in clients:
                for _ in range(110):  # they are limited by now
                    await client.frame()
            assert resident() - before < 20 * 2000  # KiB: neither megabytes of messages nor what was sent
            for task in sending:
                task.cancel()
            await asyncio.wait(sending)


# Connections


async def refused(server: Server, *headers: str) -> tuple[int, str]:
    """Return the status and the head of a refusal."""
    async with Raw(server.port) as client:
        head = await client.open(headers=headers)
        await client.ended()
        return int(head.split()[1]), head


async def test_connections_over_the_limit_are_refused_until_one_leaves(kind: str) -> None:
    with running(kind, REALTIME_MAX_CONNECTIONS="2") as own:
        async with Client(own.url) as first, Client(own.url):
            status, head = await refused(own)
            assert status == 503
            assert "retry-after: 10" in head.lower()
            with pytest.raises(InvalidStatus):
                async with Client(own.url):
                    pass
            await first.ws.close()
            await nobody_left(own, but=1)
            async with Client(own.url) as third:
                await third.echo()
        await counted(own, refused_full=2)
        assert own.output.count("event=refused reason=full") == 1
        await own.assert_calm(0)


async def test_connections_of_an_address_over_the_limit_are_refused(kind: str) -> None:
    limits = {"REALTIME_MAX_CONNECTIONS_PER_ADDRESS": "1", "REALTIME_TRUSTED_HOPS": "1"}
    with running(kind, **limits) as own:
        async with Client(own.url, additional_headers={"X-Forwarded-For": "192.0.2.7, 198.51.100.1"}):
            status, _ = await refused(own, "X-Forwarded-For: 192.0.2.8, 198.51.100.1")
            assert status == 429
            async with Client(own.url, additional_headers={"X-Forwarded-For": "198.51.100.2"}) as other:
                await other.echo()
        await counted(own, refused_address=1)


async def test_connections_of_a_user_over_the_limit_are_refused(kind: str) -> None:
    with running(kind, REALTIME_MAX_CONNECTIONS_PER_USER="1") as own:
        async with Client(own.url, additional_headers={"Authorization": "Bearer good-ada"}):
            status, _ = await refused(own, "Authorization: Bearer good-ada")
            assert status == 429
            async with (
                Client(own.url, additional_headers={"Authorization": "Bearer good-eve"}),
                Client(own.url) as other,
            ):
                await other.echo()
        await counted(own, refused_user=1)
        async with Client(own.url, additional_headers={"Authorization": "Bearer good-ada"}) as again:
            await again.echo()


async def test_authentication_that_does_not_finish_leaves_the_user_unknown(kind: str) -> None:
    with running(kind, REALTIME_AUTHENTICATION_TIMEOUT="0.3") as own:
        async with Client(own.url, additional_headers={"Authorization": "Bearer hang"}) as client:
            answer = await client.ask({"type": "subscribe_request", "topic": "members"})
            assert answer["error"]["code"] == "INTERNAL_ERROR"
            await client.echo()
        await counted(own, unidentified=1)


async def test_what_is_sent_before_the_connection_is_accepted_is_not_read(kind: str) -> None:
    with running(kind, REALTIME_AUTHENTICATION_TIMEOUT="2") as own:
        async with Raw(own.port) as eager:
            await eager.send(raw.handshake(headers=["Authorization: Bearer hang"]))
            # What comes in one piece with the handshake servers may lose: no client may send it.
            await asyncio.to_thread(own.wait_for_line, "mark hanging")
            sending = asyncio.create_task(eager.send(echo_request(1) * 300_000))
            assert "101" in await eager.head()
            assert not sending.done()  # the kernel's buffers took some of it, and nobody else did
            assert json.loads((await eager.frame())[1])["type"] == "echo_response"
            sending.cancel()
            await asyncio.wait([sending])


async def test_client_that_never_says_anything_is_closed(kind: str) -> None:
    with running(kind, REALTIME_FIRST_MESSAGE_TIMEOUT="0.5") as own:
        async with Client(own.url) as silent, Client(own.url) as other:
            await other.echo()
            assert await silent.closed() == (1008, "no message")
            await other.echo()
        await counted(own, silent=1)


async def test_old_connection_is_closed_so_that_it_comes_back(kind: str) -> None:
    with running(kind, REALTIME_MAX_CONNECTION_AGE="2") as own:
        async with Client(own.url) as client:
            began = time.monotonic()
            assert await client.closed() == (1001, "maximum age")
            assert 1.5 < time.monotonic() - began < 10
        await counted(own, aged=1)


async def test_too_big_messages_and_too_many_subscriptions_are_counted(kind: str) -> None:
    with running(kind, REALTIME_MAX_SUBSCRIPTIONS="1", REALTIME_MAX_MESSAGE_SIZE="2000") as own:
        async with Client(own.url, compression=None) as client:
            await client.subscribe("news")
            answer = await client.ask({"type": "subscribe_request", "topic": "many-1"})
            assert answer["error"]["code"] == "TOO_MANY_SUBSCRIPTIONS"
            await client.send("x" * 2001)
            code, _ = await client.closed()
            assert code == 1009
        await counted(own, too_many_subscriptions=1, too_big=1)


# Liveness


PINGS = {
    "daphne": ("--ping-interval", "1", "--ping-timeout", "1"),
    "uvicorn": ("--ws-ping-interval", "1", "--ws-ping-timeout", "1"),
}


@pytest.mark.parametrize("talks", [False, True], ids=["silent", "sends but never reads"])
async def test_peer_that_answers_no_ping_is_given_up(kind: str, talks: bool) -> None:
    with running(kind, *PINGS[kind], REALTIME_WRITE_TIMEOUT="60") as own:
        async with Client(own.url) as other, reader(own) as gone:
            while (await own.aget("/census/"))["connections"] == 2:
                await other.echo()
                if talks:
                    try:
                        await gone.send_json({"type": "echo_request", "echo": "still here"})
                    except OSError:
                        break
            await nobody_left(own, but=1)
            await eventually(lambda: own.get("/leftovers/")["members"] == 2)  # the hub's own
            await other.echo()


# Handlers


async def test_full_pool_of_hung_threads_does_not_stop_the_rest(kind: str) -> None:
    with running(kind, REALTIME_SYNC_THREADS="2", REALTIME_HANDLER_TIMEOUT="2") as own:
        async with AsyncExitStack() as stack:
            hung = [await stack.enter_async_context(Client(own.url)) for _ in range(2)]
            asked = [client.ask({"type": "subscribe_request", "topic": "stuck-thread"}) for client in hung]
            for answer in await asyncio.gather(*asked):
                assert answer["error"]["code"] == "INTERNAL_ERROR"
            other = await stack.enter_async_context(Client(own.url))
            began = time.monotonic()
            answer = await other.ask({"type": "subscribe_request", "topic": "forbidden"})
            assert answer["error"]["code"] == "INTERNAL_ERROR"
            assert time.monotonic() - began < 1.5  # at once
            await other.subscribe("news")
            await publish(own, "news", 10)
            await other.publications(1)
            for client in hung:
                await client.echo()
            await counted(own, handler_faults=3)


# Logs


async def test_repeated_complaints_are_counted_and_not_repeated(kind: str) -> None:
    with running(kind) as own:
        async with Client(own.url) as client:
            for _ in range(50):
                answer = await client.ask({"type": "subscribe_request", "topic": "raising"})
                assert answer["error"]["code"] == "INTERNAL_ERROR"
        for _ in range(20):
            async with Raw(own.port) as stranger:
                await stranger.open("/elsewhere/%1b%5b31m%0aERROR%20forged")
                await stranger.ended()
        await own.mark()
        assert own.output.count("event=handler_failed") == 1
        assert own.output.count("Traceback") == 1
        assert own.output.count("event=refused reason=path") == 1


async def test_control_characters_and_payloads_reach_no_log(kind: str) -> None:
    secret = "s3cret-payload"
    forged = "\x1b[31m\r\n2026-11-24 ERROR forged \x00\u202e"
    messages: list[Any] = [
        {"type": "echo_request", "echo": secret + forged, "reqId": secret + forged},
        {"type": forged + secret},
        {"type": "subscribe_request", "topic": forged + secret},
        {"type": "complain_request", "what": secret + forged},
        secret + forged,
        (secret + forged).encode(),
    ]
    with running(kind) as own:
        headers = {"User-Agent": secret, "Origin": f"http://{secret}"}
        with pytest.raises(InvalidStatus):
            async with Client(own.url + "ws/", additional_headers=headers):
                pass
        async with Client(own.url + "ws/") as client:
            for message in messages:
                await client.ask(message)
        async with Raw(own.port) as broken:
            await broken.open("/%1b%5b31m%0d%0aERROR%20forged")
            await broken.ended()
        async with Raw(own.port) as broken:
            await broken.open()
            await broken.send(raw.frame(raw.TEXT, secret.encode() + b"\xff\x1b"))
            assert (await broken.closed())[0] == 1007
        await own.mark()
        assert secret not in own.output
        own.wait_for_line("event=handler_failed request=complain_request")
        for line in own.lines:
            assert line.isprintable(), line
            assert not line.startswith("2026-11-24 ERROR forged")
