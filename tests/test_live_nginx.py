"""nginx as docs/operate.md sets it up, in front of real servers: what passes through it, and what it keeps out."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from . import raw
from .live import ROOT, Client, Process, Server, eventually, free_port, running
from .raw import Raw
from .shop.walkthrough import blocks_of

PATH = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"
NGINX = shutil.which("nginx", path=PATH)
PINGS = {
    "daphne": ["--ping-interval", "1", "--ping-timeout", "15"],
    "uvicorn": ["--ws-ping-interval", "1", "--ws-ping-timeout", "15"],
}
NO_PINGS = {"daphne": ["--ping-interval", "3600"], "uvicorn": ["--ws-ping-interval", "3600"]}
HALF_A_HEADER = raw.handshake("/ws/")[:-20]

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx is installed")


class Nginx(Process):
    """Run an nginx with the configuration from the docs, in which ``changes`` are made."""

    def __init__(self, directory: Path, ports: list[int], changes: dict[str, str]) -> None:
        assert NGINX is not None
        self.port = free_port()
        changes = {
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "server 127.0.0.1:8000 ": f"server 127.0.0.1:{ports[0]} ",
            "server 127.0.0.1:8001 ": f"server 127.0.0.1:{ports[-1]} ",
            "/var/log/nginx/access.log": "/dev/stdout",
            "http {": "\n".join(["http {", *temporary_paths(NGINX, directory)]),
            **changes,
        }
        [text] = [block.text for block in blocks_of(ROOT / "docs" / "operate.md") if block.language == "nginx"]
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        configuration = directory / "nginx.conf"
        configuration.write_text(
            f"daemon off;\nworker_processes 1;\nuser {getpass.getuser()};\npid {directory}/nginx.pid;\n"
            f"error_log stderr notice;\nevents {{}}\n{text}"
        )
        super().__init__(NGINX, "-e", "stderr", "-p", str(directory), "-c", str(configuration))

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/"


def temporary_paths(nginx: str, directory: Path) -> list[str]:
    """Return the directives that put the files of each module which this nginx has into ``directory``."""
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    modules = re.findall(r"--http-(\S+)-temp-path=", built)
    there = [name for name in modules if f"--without-http_{name}_module" not in built]
    return [f"    {name.replace('-', '_')}_temp_path {directory}/{name};" for name in there]


@contextmanager
def in_front_of(*servers: Server, directory: Path, **changes: str) -> Iterator[Nginx]:
    """Run an nginx in front of ``servers``; ``changes`` gives directives of the docs other numbers."""
    page = {
        "header_timeout": "client_header_timeout 10s",
        "read_timeout": "proxy_read_timeout 75s",
        "sockets": "limit_conn sockets 100",
        "rate": "rate=10r/s",
        "burst": "burst=50",
    }
    ports = [server.port for server in servers] or [free_port()]
    nginx = Nginx(directory, ports, {page[name]: new for name, new in changes.items()})
    try:
        nginx.wait_for_line("start worker process ")
        yield nginx
    finally:
        nginx.stop()


async def refusal(url: str, **options: Any) -> Response:
    """Return the response to a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with Client(url, **options):
            pass
    return caught.value.response


async def admitted(url: str) -> None:
    """Connect as soon as that is allowed, and leave."""
    while True:
        try:
            async with Client(url) as client:
                await client.echo()
                return
        except InvalidStatus:
            await asyncio.sleep(0.05)


# What passes through


async def test_echo_and_heartbeats_pass(server: Server, tmp_path: Path) -> None:
    with in_front_of(server, directory=tmp_path) as nginx:
        async with Client(nginx.url) as client:
            await client.echo()
            await client.subscribe("heartbeat")
            beats = [await client.beat() for _ in range(4)]
        assert beats == sorted(set(beats))


async def test_code_and_reason_pass(server: Server, tmp_path: Path) -> None:
    with in_front_of(server, directory=tmp_path) as nginx:
        async with Client(nginx.url) as client:
            await client.echo()
            await server.aget("/close/?code=4000&reason=%C3%A0%20bient%C3%B4t")
            assert await client.closed() == (4000, "à bientôt")


async def test_client_of_a_dropped_connection_sees_1006(server: Server, tmp_path: Path) -> None:
    with in_front_of(server, directory=tmp_path) as nginx:
        async with Client(nginx.url) as client:
            await client.echo()
            await server.aget("/close/?code=1006")
            assert await client.closed() == (1006, "")


async def test_pages_pass_on_connections_that_are_kept(server: Server, tmp_path: Path) -> None:
    with in_front_of(server, directory=tmp_path) as nginx:
        async with Raw(nginx.port) as client:
            for _ in range(3):
                await client.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                head = await client.head()
                assert head.startswith("HTTP/1.1 200"), head
                size = re.search(r"(?i)content-length: (\d+)", head)
                assert size is not None
                assert json.loads(await client.take(int(size[1]))) == {"status": "ok"}


# Time


async def test_idle_connection_is_kept_alive_by_pings(kind: str, tmp_path: Path) -> None:
    with (
        running(kind, *PINGS[kind]) as server,
        in_front_of(server, directory=tmp_path, read_timeout="proxy_read_timeout 5s") as nginx,
    ):
        async with Raw(nginx.port) as client:
            assert (await client.open("/ws/")).startswith("HTTP/1.1 101")
            began = time.monotonic()
            while time.monotonic() - began < 7.5:
                opcode, payload = await client.frame()
                assert opcode == raw.PING
                await client.send(raw.frame(raw.PONG, payload))
            await client.send_json({"type": "echo_request", "echo": "still here"})
            while (answer := await client.frame())[0] == raw.PING:
                pass
            assert json.loads(answer[1])["data"] == {"echo": "still here"}


async def test_idle_connection_without_pings_is_ended(kind: str, tmp_path: Path) -> None:
    with (
        running(kind, *NO_PINGS[kind]) as server,
        in_front_of(server, directory=tmp_path, read_timeout="proxy_read_timeout 1s") as nginx,
    ):
        async with Client(nginx.url, ping_interval=None) as client:
            await client.echo()
            assert await client.closed() == (1006, "")
        await eventually(lambda: server.get("/census/")["connections"] == 0)


@pytest.mark.parametrize("sent", [b"", b"GET", HALF_A_HEADER], ids=["nothing", "a word", "half a header"])
async def test_header_that_does_not_come_is_not_waited_for(tmp_path: Path, sent: bytes) -> None:
    with in_front_of(directory=tmp_path, header_timeout="client_header_timeout 1s") as nginx:
        async with Raw(nginx.port) as client:
            await client.send(sent)
            await client.ended()


# Limits


async def test_connections_of_one_address_are_limited(server: Server, tmp_path: Path) -> None:
    with in_front_of(server, directory=tmp_path, sockets="limit_conn sockets 2") as nginx:
        async with Client(nginx.url) as first:
            async with Client(nginx.url) as second, Client(nginx.url, local_addr=("127.0.0.2", 0)) as other:
                assert (await refusal(nginx.url)).status_code == 429
                for client in (first, second, other):
                    await client.echo()
            await asyncio.wait_for(admitted(nginx.url), 10)


async def test_handshakes_of_one_address_are_limited(server: Server, tmp_path: Path) -> None:
    with in_front_of(server, directory=tmp_path, rate="rate=1r/m", burst="burst=2") as nginx:
        for _ in range(3):
            async with Client(nginx.url) as client:
                await client.echo()
        assert (await refusal(nginx.url)).status_code == 429
        async with Client(nginx.url, local_addr=("127.0.0.2", 0)) as client:
            await client.echo()


async def test_servers_limit_counts_the_address_that_nginx_saw(kind: str, tmp_path: Path) -> None:
    limits = {"REALTIME_TRUSTED_HOPS": "1", "REALTIME_MAX_CONNECTIONS_PER_ADDRESS": "2"}
    with running(kind, **limits) as server, in_front_of(server, directory=tmp_path) as nginx:

        def inventing(address: str) -> dict[str, Any]:
            return {"additional_headers": {"X-Forwarded-For": address}}

        async with Client(nginx.url, **inventing("203.0.113.1")) as first, Client(nginx.url) as second:
            response = await refusal(nginx.url, **inventing("203.0.113.2"))
            assert (response.status_code, response.headers["Retry-After"]) == (429, "10")
            assert (await refusal(nginx.url, **inventing("203.0.113.3, 203.0.113.4"))).status_code == 429
            async with Client(nginx.url, local_addr=("127.0.0.2", 0), **inventing("127.0.0.1")) as other:
                for client in (first, second, other):
                    await client.echo()
        hub = (await server.aget("/readyz"))["parts"]["hub"]
        assert hub["counts"]["refused_address"] == 2


# Several servers


async def test_full_server_hands_on_to_the_next_and_the_last_refuses(kind: str, tmp_path: Path) -> None:
    with (
        running(kind, REALTIME_MAX_CONNECTIONS="1") as one,
        running(kind, REALTIME_MAX_CONNECTIONS="1") as two,
        in_front_of(one, two, directory=tmp_path) as nginx,
    ):
        async with Client(nginx.url) as first, Client(nginx.url) as second:
            response = await refusal(nginx.url)
            assert (response.status_code, response.headers["Retry-After"]) == (503, "10")
            for client in (first, second):
                await client.echo()
        assert {(await server.aget("/readyz"))["parts"]["hub"]["counts"]["refused_full"] for server in (one, two)} >= {
            1
        }


async def test_server_that_drains_says_goodbye_and_the_other_takes_over(kind: str, tmp_path: Path) -> None:
    with (
        running(kind, REALTIME_DRAIN_TIMEOUT="15", REALTIME_HANDLER_TIMEOUT="8") as leaving,
        running(kind) as staying,
        in_front_of(leaving, staying, directory=tmp_path) as nginx,
    ):
        async with Client(leaving.url) as busy, AsyncExitStack() as stack:
            await busy.send({"type": "subscribe_request", "topic": "hanging"})  # keeps the server draining
            clients = [await stack.enter_async_context(Client(nginx.url)) for _ in range(4)]
            count = leaving.get("/census/")["connections"] - 1
            assert 0 < count < 4
            leaving.signal(signal.SIGTERM)
            tasks = [asyncio.create_task(client.closed()) for client in clients]
            await eventually(lambda: sum(task.done() for task in tasks) >= count)
            assert [task.result() for task in tasks if task.done()] == [(1001, "server shutdown")] * count
            for _ in range(4):
                newcomer = await stack.enter_async_context(Client(nginx.url))
                await newcomer.echo()
            await asyncio.to_thread(leaving.wait_for_line, "event=refused reason=draining")
            assert staying.get("/census/")["connections"] == 4 - count + 4
            for task in tasks:
                task.cancel()


# Logs


async def test_access_log_has_no_token(server: Server, tmp_path: Path) -> None:
    with in_front_of(server, directory=tmp_path) as nginx:
        async with Client(f"{nginx.url}?token=sesame-of-mine") as client:
            await client.closed()
        await asyncio.to_thread(nginx.wait_for_line, r'^127\.0\.0\.1 \[\S+\] "GET /ws/" 101 ')
        assert not [line for line in nginx.lines if line.startswith("127.") and "sesame" in line]
