"""The control API, over HTTP and with clients on real WebSockets."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import InvalidStatus

from realtime import Topic, __version__
from realtime.testing import DemoWebsocketServer
from realtime.testing.control import ControlServer
from realtime.testing.profiles import PROFILES
from realtime.testing.stepped import SteppedHub

from .control_client import JSON, Control
from .live import TIMEOUT, Client, eventually
from .raw import CLOSE, TEXT, Raw, frame

topic = Topic("control.{name}", public=True)
SESSIONS = 50
ALL = ("all", "session")


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
async def server() -> AsyncIterator[DemoWebsocketServer]:
    """A server without heartbeats of its own."""
    async with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=3600) as server:
        yield server


@pytest.fixture
async def api(server: DemoWebsocketServer) -> AsyncIterator[ControlServer]:
    api = ControlServer(server, "127.0.0.1:0")
    await asyncio.to_thread(api.start)
    yield api
    await asyncio.to_thread(api.stop)


@pytest.fixture
def control(api: ControlServer) -> Control:
    return Control(api.port)


@pytest.fixture(params=ALL)
def chosen(request: pytest.FixtureRequest, control: Control) -> Control:
    """The operations for all, and those for the session in which the client is."""
    return control if request.param == "all" else control.session("mine")


@pytest.fixture
async def client(server: DemoWebsocketServer) -> AsyncIterator[Client]:
    async with Client(server.session("mine").url, max_queue=None) as client:
        yield client


@pytest.fixture
async def other(server: DemoWebsocketServer) -> AsyncIterator[Client]:
    """A client of another session, which is to notice nothing of what is done to one."""
    async with Client(server.session("other").url, max_queue=None) as client:
        yield client


# What there is


async def test_server_is_described(server: DemoWebsocketServer, control: Control, client: Client) -> None:
    assert await control.get("server") == {
        "version": __version__,
        "url": server.url,
        "heartbeat_interval": 3600.0,
        "sessions": [{"name": "mine", "url": f"{server.url}ws/?session=mine", "connections": 1}],
    }


async def test_session_is_described_before_it_has_begun(server: DemoWebsocketServer, control: Control) -> None:
    described = await control.get("sessions/a%20b")
    assert described == {"name": "a b", "url": f"{server.url}ws/?session=a%20b", "connections": 0}
    assert (await control.get("server"))["sessions"] == []


async def test_connections_are_listed(chosen: Control, client: Client) -> None:
    await client.subscribe("heartbeat")
    [connection] = await chosen.get("connections")
    assert connection["id"] == "1"
    assert (connection["number"], connection["session"], connection["state"]) == (1, "mine", "open")
    assert (connection["path"], connection["topics"]) == ("/ws/", ["heartbeat"])
    assert await chosen.get("connections/1") == connection


async def test_session_does_not_see_the_connections_of_another(control: Control, client: Client, other: Client) -> None:
    assert [each["session"] for each in await control.session("mine").get("connections")] == ["mine"]
    assert [each["session"] for each in await control.get("connections")] == ["mine", "other"]
    error = (await control.session("mine").request("GET", "connections/2")).error
    assert error == (404, "NOT_FOUND", "there is no connection '2' any more, or never was")


async def test_bytes_of_a_client_that_are_no_text_are_escaped(server: DemoWebsocketServer, control: Control) -> None:
    async with Raw(server.port) as raw:
        await raw.send(
            b"GET /ws/?session=\xff\xfe HTTP/1.1\r\nHost: x\xff\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"User-Agent: \xff\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await raw.head()
        for path in ("connections", "server", "transcript"):
            await control.get(path)
        assert (await control.request("GET", "transcript.html")).status == 200


async def test_name_of_a_session_is_not_too_long(control: Control) -> None:
    status, _, message = (await control.session("x" * 201).request("POST", "beat")).error
    assert (status, message[:9]) == (422, "path.name")


# Waiting


async def test_wait_is_answered_when_a_client_connects(server: DemoWebsocketServer, chosen: Control) -> None:
    waiting = asyncio.create_task(chosen.post("wait", {"timeout": 20}))
    async with Client(server.session("mine").url) as client:
        await client.echo()
        assert (await waiting)["session"] == "mine"


async def test_wait_in_vain_says_what_happened_instead(chosen: Control, client: Client) -> None:
    await chosen.post("wait")
    status, code, message = (await chosen.request("POST", "wait", {"timeout": 0.01})).error
    assert (status, code) == (409, "TIMEOUT")
    assert message.startswith("0 of 1 new connections came within 0.01 s; 1 are open")


async def test_wait_for_several(server: DemoWebsocketServer, chosen: Control, client: Client) -> None:
    waiting = asyncio.create_task(chosen.post("wait", {"count": 2}))
    async with Client(server.session("mine").url):
        assert (await waiting)["number"] == 2


async def test_wait_ends_when_the_server_stops(server: DemoWebsocketServer, control: Control) -> None:
    waiting = asyncio.create_task(control.request("POST", "wait", {"timeout": 60}))
    await eventually(lambda: server.engine.arrivals._waiters)
    await server.astop()
    assert (await waiting).error[:2] == (409, "CONFLICT")


# How connections end


@pytest.mark.parametrize("path", ["close", "connections/1/close"])
async def test_close_with_code_and_reason(chosen: Control, client: Client, path: str) -> None:
    assert await chosen.post(path, {"code": 1012, "reason": "deploy"}) == {"connections": 1}
    assert await client.closed() == (1012, "deploy")


async def test_close_without_a_body_is_that_of_an_operator(chosen: Control, client: Client) -> None:
    await chosen.post("close")
    assert await client.closed() == (1001, "closed by operator")


async def test_close_of_a_session_is_not_noticed_in_another(control: Control, client: Client, other: Client) -> None:
    assert await control.session("mine").post("close") == {"connections": 1}
    await client.closed()
    await other.echo()


@pytest.mark.parametrize("path", ["close", "connections/1/close"])
async def test_close_after_a_delay_waits_for_the_clock(chosen: Control, client: Client, path: str) -> None:
    assert await chosen.post(path, {"delay": 30, "code": 4000}) == {"connections": 1}
    await chosen.post("clock/advance", {"seconds": 29})
    await client.echo()
    await chosen.post("clock/advance", {"seconds": 1})
    assert await client.closed() == (4000, "closed by operator")


async def test_close_in_the_middle_of_a_message(server: DemoWebsocketServer, control: Control) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await control.post("close", {"mid_message": True})
        opcode, part = await raw.frame()
        assert (opcode, part[:1]) == (TEXT, b"{")
        assert await raw.closed() == (1001, "closed by operator")


@pytest.mark.parametrize("path", ["interrupt", "connections/1/interrupt"])
async def test_interrupt_drops_the_connection_without_a_close_frame(chosen: Control, client: Client, path: str) -> None:
    assert await chosen.post(path) == {"connections": 1}
    assert await client.closed() == (1006, "")


@pytest.mark.parametrize("path", ["interrupt", "connections/1/interrupt"])
async def test_interrupt_by_reset(server: DemoWebsocketServer, control: Control, path: str) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await control.post(path, {"reset": True})
        with pytest.raises(ConnectionResetError):
            await raw.frame()


@pytest.mark.parametrize("action", ["close", "interrupt"])
async def test_connection_that_there_is_not_is_a_404(chosen: Control, action: str) -> None:
    assert (await chosen.request("POST", f"connections/9/{action}")).error[:2] == (404, "NOT_FOUND")


@pytest.mark.parametrize("action", ["close", "interrupt"])
async def test_connection_that_is_being_closed_is_a_409(
    server: DemoWebsocketServer, control: Control, action: str
) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await control.post("close")
        error = (await control.request("POST", f"connections/1/{action}")).error
        assert error == (409, "CONFLICT", "the connection '1' is closing, and not open")


# What is sent


async def test_publish_reaches_subscribers(chosen: Control, client: Client) -> None:
    await client.subscribe("control.news")
    assert await chosen.post("publish", {"topic": "control.news", "data": {"n": 1}}) == {"connections": 1}
    assert await client.publications(1) == [{"n": 1}]


async def test_publish_on_a_topic_that_there_is_not_names_those_there_are(chosen: Control) -> None:
    status, code, message = (await chosen.request("POST", "publish", {"topic": "nothing", "data": 1})).error
    assert (status, code) == (404, "NOT_FOUND")
    assert message.startswith("no topic 'nothing' is declared; known are 'heartbeat'")


async def test_beat_comes_at_once(chosen: Control, client: Client) -> None:
    await client.subscribe("heartbeat")
    await client.beat()
    assert await chosen.post("beat") == {"connections": 1}
    await client.beat()


async def test_beats_pause_and_resume(chosen: Control, client: Client) -> None:
    await client.subscribe("heartbeat")
    await client.beat()
    assert await chosen.get("beats") == {"beating": True}
    assert await chosen.post("beats/pause") == {"beating": False}
    assert await chosen.get("beats") == {"beating": False}
    await chosen.post("clock/advance", {"seconds": 7200})
    await client.echo()
    assert await chosen.post("beats/resume") == {"beating": True}
    await chosen.post("clock/advance", {"seconds": 3600})
    await client.beat()


# The clock


async def test_clock_is_put_forward(chosen: Control, client: Client) -> None:
    await client.subscribe("heartbeat")
    first = await client.beat()
    assert await chosen.get("clock") == {"ahead": 0.0}
    assert (await chosen.post("clock/advance", {"seconds": 3600}))["ahead"] == pytest.approx(3600, abs=0.1)
    assert await client.beat() > first
    assert (await chosen.get("clock"))["ahead"] == pytest.approx(3600, abs=0.1)


async def test_clock_of_a_session_is_its_own(control: Control) -> None:
    await control.session("mine").post("clock/advance", {"seconds": 60})
    assert await control.session("other").get("clock") == {"ahead": 0.0}
    assert await control.get("clock") == {"ahead": 0.0}


async def test_clock_has_an_end(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime.testing.control.operations.CENTURY", 10.0)
    await control.post("clock/advance", {"seconds": 8})
    status, _, message = (await control.request("POST", "clock/advance", {"seconds": 8})).error
    assert (status, message) == (422, "the clock is 8 s ahead, and can be 10 s ahead at most")


# What goes wrong


async def test_faults_are_set_and_taken_away(server: DemoWebsocketServer, chosen: Control, client: Client) -> None:
    [fault] = await chosen.put("faults", [{"fault": "refuse", "status": 429, "retry_after": 7}])
    assert (fault["fault"], fault["status"], fault["retry_after"]) == ("refuse", 429, 7)
    assert await chosen.get("faults") == [fault]
    with pytest.raises(InvalidStatus) as refused:
        async with Client(server.session("mine").url):
            pass
    assert refused.value.response.status_code == 429
    await chosen.delete("faults")
    assert await chosen.get("faults") == []
    async with Client(server.session("mine").url) as again:
        await again.echo()


async def test_faults_of_a_session_do_not_strike_another(control: Control, client: Client, other: Client) -> None:
    await control.session("mine").put("faults", [{"fault": "mute"}])
    await client.send({"type": "echo_request", "echo": "x"})
    await other.echo()
    assert await control.session("other").get("faults") == []
    await control.session("mine").delete("faults")  # or else the client's close frame would not be answered


async def test_faults_of_one_connection(server: DemoWebsocketServer, chosen: Control, client: Client) -> None:
    async with Client(server.session("mine").url) as second:
        await second.echo()
        await chosen.put("connections/1/faults", [{"fault": "duplicate"}])
        assert [each["fault"] for each in await chosen.get("connections/1/faults")] == ["duplicate"]
        assert await chosen.get("connections/2/faults") == []
        await client.echo()
        assert (await client.receive())["type"] == "echo_response"
        await second.echo("once")
        await second.echo("and once")
        await chosen.delete("connections/1/faults")
        await client.echo("once")
        await client.echo("and once")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_faults_of_a_connection_that_there_is_not_are_a_404(chosen: Control, method: str) -> None:
    body = [] if method == "PUT" else None
    assert (await chosen.request(method, "connections/9/faults", body)).error[:2] == (404, "NOT_FOUND")


async def test_profiles_are_listed(control: Control) -> None:
    listed = await control.get("profiles")
    assert [each["name"] for each in listed] == list(PROFILES)
    assert listed[1]["events"][0]["message"] == {"code": 1012, "reason": "deploy"}


async def test_profile_is_begun_and_ended(chosen: Control, client: Client) -> None:
    assert await chosen.get("profile") == {"profile": None}
    assert await chosen.put("profile", {"name": "rolling-deploy"}) == {"profile": "rolling-deploy"}
    assert await chosen.get("profile") == {"profile": "rolling-deploy"}
    assert [each["fault"] for each in await chosen.get("faults")] == ["refuse"]
    await chosen.post("clock/advance", {"seconds": 3})
    assert await client.closed() == (1012, "deploy")
    await chosen.delete("profile")
    assert (await chosen.get("profile"), await chosen.get("faults")) == ({"profile": None}, [])


async def test_profile_of_a_session_is_not_noticed_in_another(control: Control, client: Client, other: Client) -> None:
    await control.session("mine").put("profile", {"name": "rolling-deploy"})
    await control.post("clock/advance", {"seconds": 3})
    await client.closed()
    await other.echo()


async def test_profile_that_there_is_not_is_answered_with_those_there_are(chosen: Control) -> None:
    error = (await chosen.request("PUT", "profile", {"name": "zombi"})).error
    assert error == (404, "NOT_FOUND", f"there is no profile 'zombi'; there are {', '.join(PROFILES)}")


# The transcript


async def test_transcript_has_what_went_over_the_wire(chosen: Control, client: Client) -> None:
    await client.echo("hello")
    page = await chosen.get("transcript")
    kinds = [(entry["kind"], entry["direction"]) for entry in page["entries"]]
    assert kinds == [("handshake", "received"), ("handshake", "sent"), ("frame", "received"), ("frame", "sent")]
    assert json.loads(page["entries"][2]["text"])["echo"] == "hello"
    assert page["dropped"] == 0


@pytest.mark.parametrize(
    ("query", "count"),
    [("limit=1", 1), ("kind=frame", 2), ("direction=sent", 2), ("kind=frame&direction=sent", 1), ("connection=9", 0)],
)
async def test_transcript_can_be_asked_for_a_part(chosen: Control, client: Client, query: str, count: int) -> None:
    await client.echo()
    assert len((await chosen.get(f"transcript?{query}"))["entries"]) == count


async def test_transcript_has_close_codes_as_they_were_received(server: DemoWebsocketServer, control: Control) -> None:
    async with Raw(server.port) as raw:
        await raw.open()
        await raw.send(frame(CLOSE, (4999).to_bytes(2) + b"enough"))
        await raw.closed()
    entries = (await control.get("transcript?kind=frame&direction=received"))["entries"]
    assert [(entry["code"], entry["reason"]) for entry in entries] == [(4999, "enough")]


async def test_transcript_of_a_session_has_nothing_of_another(control: Control, client: Client, other: Client) -> None:
    await asyncio.gather(client.echo(), other.echo())
    entries = (await control.session("mine").get("transcript"))["entries"]
    assert {entry["session"] for entry in entries} == {"mine"}


async def test_transcript_as_a_page(chosen: Control, client: Client) -> None:
    await client.echo("<script>alert(1)</script>")
    answer = await chosen.request("GET", "transcript.html")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b"echo_request" in answer.body
    assert b"<script>" not in answer.body
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


async def test_transcript_is_cleared(chosen: Control, client: Client) -> None:
    await chosen.delete("transcript")
    assert (await chosen.get("transcript"))["entries"] == []


# Reset


async def test_reset_drops_connections_and_forgets_everything(chosen: Control, client: Client) -> None:
    await chosen.put("profile", {"name": "zombie"})
    await chosen.post("clock/advance", {"seconds": 5})
    await chosen.post("beats/pause")
    assert await chosen.post("reset") is None
    assert await client.closed() == (1006, "")
    assert await chosen.get("profile") == {"profile": None}
    assert (await chosen.get("faults"), await chosen.get("clock")) == ([], {"ahead": 0.0})
    assert await chosen.get("beats") == {"beating": True}
    assert await chosen.get("connections") == []


async def test_reset_of_a_session_is_not_noticed_in_another(control: Control, client: Client, other: Client) -> None:
    await control.session("mine").post("reset")
    await client.closed()
    await other.echo()


# Many sessions at once


async def in_a_session(server: DemoWebsocketServer, control: Control, number: int) -> None:
    """Do all there is in one session, and assert that it is this session's own."""
    name = f"session-{number}"
    mine = control.session(name)
    url = server.session(name).url
    code, reason = 4000 + number, f"for {name}"
    async with Client(url, max_queue=None) as client:
        await client.echo(name)
        assert (await mine.post("wait"))["session"] == name
        await client.subscribe("heartbeat")
        await client.beat()
        await mine.put("faults", [{"fault": "duplicate", "copies": 1 + number % 3, "what": "answers"}])
        await client.send({"type": "echo_request", "echo": name})
        for _ in range(2 + number % 3):
            assert (await client.receive())["data"] == {"echo": name}
        await mine.delete("faults")
        await mine.post("clock/advance", {"seconds": number})
        assert (await mine.get("clock"))["ahead"] == pytest.approx(number, abs=0.1)
        assert await mine.post("beat") == {"connections": 1}
        await client.beat()
        await client.echo(f"still {name}")
        assert len(await mine.get("connections")) == 1
        assert await mine.post("close", {"code": code, "reason": reason}) == {"connections": 1}
        assert await client.closed() == (code, reason)
    async with Client(url) as client:
        await client.echo()
        assert (await mine.post("wait"))["number"] == 2
        entries = (await mine.get("transcript"))["entries"]
        assert {entry["session"] for entry in entries} == {name}
        assert {entry["code"] for entry in entries if "code" in entry} == {code}


async def test_sessions_in_parallel_do_not_disturb_each_other(server: DemoWebsocketServer, control: Control) -> None:
    await asyncio.gather(*(in_a_session(server, control, number) for number in range(SESSIONS)))
    assert len((await control.get("server"))["sessions"]) == SESSIONS


async def test_many_who_wait_do_not_keep_others_from_being_answered(control: Control) -> None:
    async with AsyncExitStack() as stack:
        for number in range(100):
            waiting = socket.create_connection(("127.0.0.1", control._port))
            stack.callback(waiting.close)
            body = b'{"timeout": 60}'
            path = f"/sessions/{number}/wait"
            waiting.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
        async with asyncio.timeout(TIMEOUT):
            await control.get("server")


# Who may use it


@pytest.mark.parametrize(
    "origin", ["http://localhost", "http://localhost:3000", "https://127.0.0.1:8", "http://[::1]:5"]
)
async def test_page_of_this_machine_is_served(control: Control, origin: str) -> None:
    answer = await control.request("POST", "beat", headers={**JSON, "Origin": origin})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == origin
    asked = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}
    preflight = await control.request("OPTIONS", "faults", headers=asked)
    assert preflight.status == 200
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert "content-type" in preflight.headers["access-control-allow-headers"].lower()


@pytest.mark.parametrize(
    "origin",
    ["https://example.com", "http://localhost.example.com", "http://localhost:80.example.com", "null", "", "file://"]
    + ["http://127.0.0.1@example.com", "http://[::1", "http://localhost\u00e9"],
)
async def test_page_of_another_machine_is_refused(server: DemoWebsocketServer, control: Control, origin: str) -> None:
    async with Client(server.url) as client:
        for method, path in (("POST", "close"), ("OPTIONS", "close"), ("GET", "transcript")):
            answer = await control.request(method, path, headers={**JSON, "Origin": origin})
            assert answer.error[:2] == (403, "FORBIDDEN")
            assert "access-control-allow-origin" not in answer.headers
        await client.echo()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "127.0.0.1:8081", "[::1]:8081"])
async def test_request_for_this_machine_is_answered(control: Control, host: str) -> None:
    assert (await control.request("GET", "clock", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "host",
    ["example.com", "example.com:8081", "localhost.example.com", "127.0.0.1.nip.io", "", "[::1", "192.168.1.7"]
    + ["localhost@example.com", "example.com#localhost"],
)
async def test_request_for_another_machine_is_refused(control: Control, host: str) -> None:
    assert (await control.request("GET", "clock", headers={"Host": host})).error[:2] == (403, "FORBIDDEN")


async def test_host_that_is_allowed_is_answered(server: DemoWebsocketServer) -> None:
    with ControlServer(server, "127.0.0.1:0", allow_hosts=["demows"]) as api:
        control = Control(api.port)
        assert (await control.request("GET", "clock", headers={"Host": "demows:8081"})).status == 200
        assert (await control.request("GET", "clock", headers={"Host": "other"})).status == 403


async def test_address_is_answered_where_other_machines_are_let_in(server: DemoWebsocketServer) -> None:
    with ControlServer(server, "0.0.0.0:0") as api:
        control = Control(api.port)
        assert (await control.request("GET", "clock", headers={"Host": "192.168.1.7"})).status == 200
        assert (await control.request("GET", "clock", headers={"Host": "example.com"})).status == 403


# What is wrong


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("POST", "close", {"code": 1005}, "1005 is not a close code that may be sent"),
        ("POST", "close", {"reason": "é" * 100}, "200 bytes of UTF-8"),
        ("POST", "close", {"delay": -1}, "delay: input should be greater than or equal to 0, but it is -1"),
        ("POST", "close", {"cod": 1000}, "body.cod: extra inputs are not permitted"),
        ("POST", "close", [], "body: input should be a valid dictionary"),
        ("POST", "interrupt", {"reset": "yes"}, "body.reset: input should be a valid boolean, but it is 'yes'"),
        ("POST", "publish", {"topic": "heartbeat", "data": 1}, "the topic 'heartbeat' is the server's own"),
        ("POST", "publish", {"topic": "control.news"}, "body.data: field required"),
        ("POST", "clock/advance", {"seconds": -1}, "greater than or equal to 0"),
        ("POST", "clock/advance", {"seconds": 1e300}, "less than or equal to"),
        ("POST", "wait", {"timeout": 3600}, "less than or equal to 60"),
        ("PUT", "faults", [{"fault": "los"}], "'los' found using 'fault' does not match any of the expected tags"),
        ("PUT", "faults", [{"fault": "lose"}] * 33, "at most 32"),
        ("PUT", "faults", None, "body: field required"),
        ("GET", "transcript?limit=0", None, "query.limit: input should be greater than or equal to 1"),
        ("GET", f"connections/{'9' * 30}", None, "path.id: string should match pattern"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_a_422(chosen: Control, method: str, path: str, body: object, said: str) -> None:
    status, code, message = (await chosen.request(method, path, body)).error
    assert (status, code) == (422, "INVALID")
    assert said in message


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b"[" * 100_000, b"null", b"\x00", b'{"code": NaN}', b'{"reason": "\\ud800"}'], ids=repr
)
async def test_body_that_is_no_json_or_odd_json_is_a_422(chosen: Control, content: bytes) -> None:
    assert (await chosen.request("POST", "close", content=content)).error[:2] == (422, "INVALID")


async def test_body_of_another_type_is_not_taken_for_json(control: Control) -> None:
    answer = await control.request("POST", "close", {"code": 1012}, headers={"Content-Type": "text/plain"})
    assert answer.error[:2] == (422, "INVALID")


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_that_is_too_large_is_a_413(control: Control, chunked: bool) -> None:
    headers = {**JSON, "Transfer-Encoding": "chunked"} if chunked else JSON
    content = b'{"reason": "' + b"x" * (1 << 20) + b'"}'
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if chunked else content
    assert (await control.request("POST", "close", content=sent, headers=headers)).error[:2] == (413, "TOO_LARGE")


async def test_client_that_leaves_before_its_body_has_come_has_nothing_done(
    server: DemoWebsocketServer, api: ControlServer, control: Control, client: Client
) -> None:
    for body in (b"", b'{"code": 1012'):
        with socket.create_connection(("127.0.0.1", api.port)) as leaving:
            leaving.sendall(
                b"POST /close HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 30\r\n\r\n" + body
            )
            await control.get("clock")  # by now the head has been read
        await control.get("clock")
    await asyncio.sleep(0.2)
    await client.echo()


async def test_path_that_there_is_not_is_a_404(chosen: Control) -> None:
    status, code, message = (await chosen.request("GET", "nothing")).error
    assert (status, code) == (404, "NOT_FOUND")
    assert message.endswith("/nothing'; /openapi.json says what there is")


@pytest.mark.parametrize(
    ("path", "legal"), [("faults", "DELETE, GET, PUT"), ("connections/1/close", "POST"), ("clock", "GET")]
)
async def test_method_that_there_is_not_is_a_405_with_those_there_are(chosen: Control, path: str, legal: str) -> None:
    answer = await chosen.request("PATCH", path)
    assert answer.error[:2] == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == legal


async def test_server_that_was_stopped_is_a_409(server: DemoWebsocketServer, chosen: Control) -> None:
    await server.astop()
    for method, path in (("GET", "connections"), ("POST", "close"), ("POST", "wait"), ("POST", "reset")):
        assert (await chosen.request(method, path)).error == (409, "CONFLICT", "the server is not started")


async def test_operation_that_is_under_way_at_the_stop_is_a_409(
    server: DemoWebsocketServer, control: Control, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    async def never(self: SteppedHub, seconds: float) -> None:
        begun.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(SteppedHub, "advance", never)
    asking = asyncio.create_task(control.request("POST", "clock/advance", {"seconds": 1}))
    await asyncio.to_thread(begun.wait, TIMEOUT)
    await server.astop()
    assert (await asking).error == (409, "CONFLICT", "the server was stopped")


async def test_mistake_of_its_own_is_a_500_that_tells_nothing(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DemoWebsocketServer, "beat", lambda self: 1 // 0)
    error = (await control.request("POST", "beat")).error
    assert error == (500, "INTERNAL", "the control API failed, which is a mistake in it")
    assert (await control.request("GET", "clock")).status == 200


# Its own life, and its page


def test_second_start_and_second_stop_raise(server: DemoWebsocketServer, api: ControlServer) -> None:
    with pytest.raises(RuntimeError, match="started already"):
        api.start()
    other = ControlServer(server, "127.0.0.1:0")
    with pytest.raises(RuntimeError, match="not started"):
        other.stop()


def test_port_that_is_taken_raises(server: DemoWebsocketServer, api: ControlServer) -> None:
    with pytest.raises(OSError, match="in use"):
        ControlServer(server, f"127.0.0.1:{api.port}").start()


async def test_starting_and_stopping_leaves_nothing_behind(server: DemoWebsocketServer) -> None:
    def once() -> None:
        with ControlServer(server, "localhost:0") as api:
            assert Control(api.port).ask("GET", "clock").status == 200
            assert Control(api.port).ask("POST", "wait", {"timeout": 0}).status == 409

    await asyncio.to_thread(once)
    threads, files = {*threading.enumerate()}, descriptors()
    for _ in range(5):
        await asyncio.to_thread(once)
    # Those of before may end meanwhile; this test itself uses the event loop's own.
    more = lambda: {thread.name for thread in {*threading.enumerate()} - threads}  # noqa: E731
    await eventually(lambda: all(name.startswith("asyncio_") for name in more()))
    await eventually(lambda: descriptors() <= files)


def test_it_starts_again_on_the_same_port(server: DemoWebsocketServer) -> None:
    api = ControlServer(server, "localhost:0")
    for _ in range(2):
        with api:
            assert Control(api.port).ask("GET", "clock").status == 200
    with pytest.raises(ConnectionRefusedError):
        Control(api.port).ask("GET", "clock")


def test_address_without_a_host_raises(server: DemoWebsocketServer) -> None:
    with pytest.raises(ValueError, match="has no host: 'localhost:8081' is for this machine alone"):
        ControlServer(server, ":8081")


async def test_page_tells_of_every_operation_and_loads_nothing(control: Control) -> None:
    answer = await control.request("GET", "docs")
    paths = (await control.get("openapi.json"))["paths"]
    text = answer.body.decode()
    for path in paths:
        assert path.startswith("/sessions/{name}/") or f"{path}</code>" in text
    assert "<script" not in text
    assert "//" not in text.replace("<!doctype html>", "")
