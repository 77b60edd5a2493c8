"""The test server: the engine in a thread of its own, which a test starts, stops and controls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any
from urllib.parse import quote, urlsplit

from ..conf import Settings, get_settings
from ..consumers import RealtimeConsumer
from ..routing import refuse
from .controls import Controls, Suffering
from .django_setup import has_site, prepare_django
from .engine import Engine
from .profiles import Profile, by_name
from .transcript import ENTRIES, SIZE, Log

PATHS = frozenset({"/", "/ws/", "/conformance/"})
"""Where WebSockets are served; elsewhere they are refused with 403."""
START_TIMEOUT = 10.0
"""Seconds that the engine has to listen."""
STOP_TIMEOUT = 20.0
"""Seconds that it has to end."""
DEFAULTS = {"DRAIN_SECONDS": 0.0, "DRAIN_TIMEOUT": 0.5}
"""Settings of a test server that differ from a site's: nobody wants to wait long for it to stop."""
NOT_ITS_OWN = {
    *("AUTHENTICATE", "AUTHENTICATION_TIMEOUT", "CHANNEL_LAYER", "CLOSE_ON_SESSION_END", "CONNECTION_REGISTRY"),
    *("REQUIRE_ORIGIN", "SYNC_THREADS"),
}
"""Settings that a test server cannot have otherwise than its process, or not at all."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Session(Controls):
    """Be one session of a server: what is done to it is not noticed in any other."""

    @property
    def name(self) -> str:
        return self._session or ""

    @property
    def url(self) -> str:
        """Where the clients of this session connect to."""
        return f"{self._server.url}ws/?session={quote(self.name, safe='')}"


class DemoWebsocketServer(Controls):
    """
    A WebSocket server to test clients against, which can be started and stopped again and again.

    ``address`` is a host and a port; port 0 is one that is free, and stays the same from then on. Providers of
    OpenTelemetry default to the global ones. ``profile`` is the name of a profile that it begins with, and ``faults``
    are faults besides. Settings are those of ``REALTIME``, in lower case, such as ``heartbeat_interval=0.1``, but for
    those that hold for the whole process, such as ``AUTHENTICATE``. WebSockets are served on ``paths``. Raises
    ``ValueError`` for an address, a profile, faults or a setting that cannot be.

    Start and stop it, or use it as a context manager, in synchronous and in asynchronous code.
    """

    def __init__(
        self,
        address: str = "localhost:8080",
        tracer_provider: Any = None,
        meter_provider: Any = None,
        *,
        profile: str | Profile | None = None,
        faults: Iterable[Any] = (),
        paths: Iterable[str] = PATHS,
        transcript_entries: int = ENTRIES,
        transcript_bytes: int = SIZE,
        **settings: Any,
    ) -> None:
        super().__init__(self, None)
        prepare_django()
        self._host, self._port = parse_address(address)
        providers = {"TRACER_PROVIDER": tracer_provider, "METER_PROVIDER": meter_provider}
        given = {name: provider for name, provider in providers.items() if provider is not None}
        own = {name.upper(): value for name, value in settings.items()}
        refuse_others(own)
        self.settings = Settings.model_validate({**dict(get_settings()), **DEFAULTS, **own, **given})
        self._begin_with = by_name(profile) if isinstance(profile, str) else profile
        self._faults = Suffering((*(() if self._begin_with is None else self._begin_with.faults), *faults))
        self._faults(1)  # so that whoever asks for what cannot be is told
        self.log = Log(transcript_entries, transcript_bytes)
        self._paths = frozenset(paths)
        self._consumer = RealtimeConsumer.as_asgi()
        self._running: _EngineThread | None = None
        self._lock = threading.Lock()

    # Life

    def start(self) -> None:
        """Listen. Raises ``RuntimeError`` when it is started already, and ``OSError`` when it cannot listen."""
        thread = self._launch()
        try:
            self._port = thread.started.result(START_TIMEOUT)
        except BaseException:
            self._give_up(thread)
            raise

    async def astart(self) -> None:
        """Do what ``start`` does, on a running event loop."""
        thread = self._launch()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                # Whoever is no longer waiting must not cancel what the thread is to say.
                self._port = await asyncio.shield(asyncio.wrap_future(thread.started))
        except BaseException:
            self._give_up(thread)
            raise

    def _launch(self) -> _EngineThread:
        with self._lock:
            if self._running is not None:
                raise RuntimeError(f"the server is started already, and listens on {self.url}")
            self._running = _EngineThread(self, self._host, self._port)
        self._running.start()
        return self._running

    def _give_up(self, thread: _EngineThread) -> None:
        self._running = None
        if thread.started.done() and thread.started.exception() is not None:
            thread.join(STOP_TIMEOUT)  # it has nothing left to do
        else:
            thread.started.add_done_callback(thread.stop)  # it may still be about to listen

    def stop(self) -> None:
        """Close every connection with 1001, and end. Raises ``RuntimeError`` when it is not started."""
        thread = self._leave()
        thread.ended.result(STOP_TIMEOUT)
        thread.join(STOP_TIMEOUT)

    async def astop(self) -> None:
        """Do what ``stop`` does, on a running event loop."""
        thread = self._leave()
        async with asyncio.timeout(STOP_TIMEOUT):
            await asyncio.shield(asyncio.wrap_future(thread.ended))  # it ends, whether or not anybody waits
        thread.join(STOP_TIMEOUT)  # it has nothing left to do

    def _leave(self) -> _EngineThread:
        with self._lock:
            thread = self._running
            if thread is None or not thread.started.done():
                raise RuntimeError("the server is not started")
            self._running = None
        thread.stop()
        return thread

    def __enter__(self) -> DemoWebsocketServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.stop()

    async def __aenter__(self) -> DemoWebsocketServer:
        await self.astart()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.running:
            await self.astop()

    # What it is

    @property
    def running(self) -> bool:
        """Whether it is started."""
        thread = self._running
        return thread is not None and thread.started.done()

    @property
    def port(self) -> int:
        """The port that it listens on; 0 while that is not known."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients connect to."""
        host = f"[{self._host}]" if ":" in self._host else self._host or "localhost"
        return f"ws://{host}:{self._port}/"

    def session(self, name: str) -> Session:
        """Return what controls one session: the clients that connect to its own ``url``."""
        return Session(self, name)

    @property
    def session_names(self) -> list[str]:
        """The names of the sessions that have begun, the one that was used last at the end; "" is that of no name."""
        return self._call(lambda: list(self.engine.namespaces))

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        """
        Be the ASGI application that is served, for whoever serves it otherwise.

        On another server it is on its own: only connections of the engine are controlled by this object.
        """
        if scope["type"] == "websocket":
            if not has_site():
                scope = {**scope, "headers": [header for header in scope["headers"] if not _from_loopback(*header)]}
            await (self._consumer if scope["path"] in self._paths else refuse)(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"upgrade", b"websocket"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 426, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            raise ValueError(f"the application serves WebSockets, and no {scope['type']!r}")

    # For what controls it

    def settings_with(self, changes: dict[str, Any]) -> Settings:
        """Return the settings with these changes. Raises ``ValueError`` for some that cannot be."""
        refuse_others(changes)
        return Settings.model_validate({**dict(self.settings), **changes}) if changes else self.settings

    def set_up(self, engine: Engine) -> None:
        """Have the engine begin with what this server was made to begin with."""
        profile = self._begin_with
        engine.make_interposer = self._faults if self._faults.faults else None
        engine.profile = profile
        engine.profile_settings = self.settings_with({} if profile is None else profile.settings)
        engine.offset, engine.beating = 0.0, True

    @property
    def engine(self) -> Engine:
        """The engine. Raises ``RuntimeError`` when it is not started."""
        thread = self._running
        if thread is None or not thread.started.done():
            raise RuntimeError("the server is not started")
        return thread.engine

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The engine's event loop. Raises ``RuntimeError`` when it is not started."""
        thread = self._running
        if thread is None or not thread.started.done():
            raise RuntimeError("the server is not started")
        return thread.loop

    @property
    def on_loop(self) -> bool:
        """Whether the caller runs on the engine's event loop."""
        thread = self._running
        return thread is not None and thread.ident == threading.get_ident()


class _EngineThread(threading.Thread):
    """Run an engine, from the start of a server to its stop."""

    engine: Engine
    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event

    def __init__(self, server: DemoWebsocketServer, host: str, port: int) -> None:
        super().__init__(name="demows-engine", daemon=True)
        self._server = server
        self._address = host, port
        self.started: Future[int] = Future()
        """The port that the engine listens on."""
        self.ended: Future[None] = Future()

    def stop(self, _: object = None) -> None:
        """Have the engine, if it has started, stop."""
        if self.started.exception() is None:
            self.loop.call_soon_threadsafe(self.stopping.set)

    def run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # the same on every system
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            (self.ended if self.started.done() else self.started).set_exception(error)
        else:
            self.ended.set_result(None)

    async def _serve(self) -> None:
        self.loop, self.stopping = asyncio.get_running_loop(), asyncio.Event()
        self.engine = Engine(self._server.application, self._server.settings, self._server.log)
        self._server.set_up(self.engine)
        port = await self.engine.start(*self._address)
        self.started.set_result(port)
        await self.stopping.wait()
        await self.engine.stop()


def refuse_others(names: Iterable[str]) -> None:
    """Raise ``ValueError`` for names of settings that would do nothing."""
    if others := sorted(NOT_ITS_OWN.intersection(names)):
        raise ValueError(f"a test server has no {', '.join(others)} of its own: they hold for the whole process")


def parse_address(address: str) -> tuple[str, int]:
    """Return the host and the port of an address. Raises ``ValueError`` where it has none."""
    try:
        parts = urlsplit(f"//{address}")
        port = parts.port
    except ValueError:
        port = None
    if port is None or parts.path or parts.username is not None:
        raise ValueError(f"the address {address!r} is no host and port, such as 'localhost:8080' or '127.0.0.1:0'")
    return parts.hostname or "", port


def _from_loopback(name: bytes, value: bytes) -> bool:
    """Return whether a header is the ``Origin`` of a page that this machine serves itself, on whatever port."""
    if name != b"origin":
        return False
    try:
        return urlsplit(value.decode("latin-1")).hostname in LOOPBACK
    except ValueError:
        return False
