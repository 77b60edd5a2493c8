"""The control API on a port of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import Future

import uvicorn

from ..engine import BACKLOG, listen
from ..server import DemoWebsocketServer, parse_address
from .app import create_app
from .guard import is_loopback

START_TIMEOUT = 10.0
STOP_TIMEOUT = 10.0


class ControlServer:
    """
    Serve the control API of a test server, which is started and stopped by whoever made it.

    ``address`` is a host and a port; port 0 is one that is free. A host that other machines reach has to be said: they
    then may do all there is. ``allow_hosts`` are names by which clients reach it besides. Raises ``ValueError`` for an
    address that cannot be.
    """

    def __init__(
        self, server: DemoWebsocketServer, address: str = "localhost:8081", *, allow_hosts: Iterable[str] = ()
    ) -> None:
        self._host, self._port = parse_address(address)
        if not self._host:
            raise ValueError(
                f"the address {address!r} has no host: 'localhost{address}' is for this machine alone, "
                f"'0.0.0.0{address}' for others too"
            )
        self.app = create_app(server, allow_hosts=allow_hosts, allow_addresses=not is_loopback(self._host))
        self._running: _Thread | None = None

    def start(self) -> None:
        """Listen. Raises ``RuntimeError`` when it is started already, and ``OSError`` when it cannot listen."""
        if self._running is not None:
            raise RuntimeError(f"the control API is started already, and listens on {self.url}")
        sockets = listen(self._host, self._port)
        try:
            for sock in sockets:
                sock.listen(BACKLOG)  # two may have bound the same port until one of them listens
        except OSError:
            close_all(sockets)
            raise
        self._port = int(sockets[0].getsockname()[1])
        thread = _Thread(self.app, sockets)
        thread.start()
        thread.started.result(START_TIMEOUT)
        self._running = thread

    def stop(self) -> None:
        """End. Raises ``RuntimeError`` when it is not started."""
        thread, self._running = self._running, None
        if thread is None:
            raise RuntimeError("the control API is not started")
        thread.server.should_exit = True
        thread.join(STOP_TIMEOUT)

    def __enter__(self) -> ControlServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self.stop()

    @property
    def port(self) -> int:
        """The port that it listens on; 0 while that is not known."""
        return self._port

    @property
    def url(self) -> str:
        """Where it is."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/"


def close_all(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Future[None]) -> None:
        super().__init__(config)
        self._has_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._has_started.set_result(None)


class _Thread(threading.Thread):
    def __init__(self, app: object, sockets: list[socket.socket]) -> None:
        super().__init__(name="demows-control", daemon=True)
        self.started: Future[None] = Future()
        self._sockets = sockets
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self.server = _Server(config, self.started)

    def run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self.server.serve(self._sockets))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            if not self.started.done():
                self.started.set_exception(error)
        finally:
            close_all(self._sockets)
