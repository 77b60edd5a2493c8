"""What a test can do to a server, or to one session of it, from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..events import PublicationEvent
from ..exceptions import UnknownTopic
from ..protocol import CloseMessage
from ..topics import Topic, all_topics, match_topic
from .connection import Interposer, ServerConnection
from .engine import Engine
from .faults import interposer_for
from .frames import Frame, Opcode
from .namespace import Arrivals, ConnectionInfo, MakeInterposer, Namespace, close_connection, describe
from .profiles import Profile, by_name
from .transcript import Transcript

if TYPE_CHECKING:
    from .server import DemoWebsocketServer

T = TypeVar("T")

TIMEOUT = 10.0
"""Seconds that the engine has to do what it is asked for."""
HALF_A_MESSAGE = Frame(Opcode.TEXT, b'{"type":"publication","topic":"demo.ha', final=False)
"""What is sent before a close in the middle of a message."""


@dataclass(frozen=True, slots=True)
class Suffering:
    """Be the faults that connections meet with; called with a connection's number, make what does them to it."""

    faults: tuple[Any, ...] = ()

    def __call__(self, number: int) -> Interposer | None:
        return interposer_for(self.faults, number) if self.faults else None


class Controls:
    """
    Look at connections, and have them meet with what a client must be able to cope with.

    Every method may be called from any thread, and from asynchronous code; what waits has an asynchronous twin.
    """

    def __init__(self, server: DemoWebsocketServer, session: str | None) -> None:
        self._server = server
        self._session = session

    @property
    def url(self) -> str:
        """Where clients connect to."""
        raise NotImplementedError

    @property
    def transcript(self) -> Transcript:
        """What went over the wire."""
        return Transcript(self._server.log, self._session)

    # What there is

    @property
    def connections(self) -> list[ConnectionInfo]:
        """The connections, the oldest first: those that are open, on their way in, or on their way out."""
        return self._call(lambda: [describe(connection) for connection in self._connections()])

    def wait_for_connection(self, timeout: float = 5.0, count: int = 1) -> ConnectionInfo:
        """
        Wait until a client has connected, or ``count`` times, and return the last of these connections.

        Each connection is returned once. Those of before the last close or interrupt do not count, so that this waits
        for a client that comes back. Raises ``TimeoutError``, which tells what happened instead.
        """
        __tracebackhide__ = True
        return self._result(self._arrival(timeout, count), timeout + TIMEOUT)

    async def await_for_connection(self, timeout: float = 5.0, count: int = 1) -> ConnectionInfo:
        """Do what ``wait_for_connection`` does, on a running event loop."""
        return await asyncio.wrap_future(self._arrival(timeout, count))

    def _arrival(self, timeout: float, count: int) -> Future[ConnectionInfo]:
        async def wait() -> ConnectionInfo:
            arrivals = self._arrivals()
            try:
                async with asyncio.timeout(timeout):
                    info = await arrivals.wait(count)
            except TimeoutError:
                open_now = sum(connection.state == "open" for connection in self._connections())
                raise TimeoutError(
                    f"{arrivals.count} of {count} new connections came within {timeout:g} s; {open_now} are open. "
                    f"The last that happened:\n{self._recently()}"
                ) from None
            alive = [connection for connection in self._connections() if connection.id == info.id]
            return describe(alive[0]) if alive else info

        return self._submit(wait)

    def _recently(self) -> str:
        entries = [entry for entry in self.transcript.entries if entry.kind in ("handshake", "end") or entry.code]
        return "\n".join(map(str, entries[-6:])) or "nobody has connected"

    # What is sent

    def publish(self, topic: str, data: Any) -> int:
        """
        Publish ``data`` on a topic, and return how many connections it was sent to.

        Raises ``UnknownTopic``, and what ``Topic.publish`` raises for data that does not fit.
        """
        found = match_topic(topic)
        if found is None:
            declared = ", ".join(repr(known.name) for known in all_topics())
            raise UnknownTopic(f"no topic {topic!r} is declared; known are {declared}")
        payload = Topic.encode(found[0], data)

        def publish_now() -> int:
            sent = 0
            for namespace in self._namespaces():
                hub = namespace.hub
                hub.act(PublicationEvent(topic=topic, payload=payload, sent_at=hub.now()))
                sent += len(tuple(hub.subscribers(topic)))
            return sent

        return self._call(publish_now)

    def beat(self) -> int:
        """Send a heartbeat now, and return to how many connections."""
        return self._call(lambda: sum(namespace.hub.beat() for namespace in self._namespaces()))

    def pause_beats(self) -> None:
        """Send no heartbeats by itself until ``resume_beats``; ``beat`` sends one all the same."""
        self._call(partial(self._set_beating, False))

    def resume_beats(self) -> None:
        """Send heartbeats by itself again."""
        self._call(partial(self._set_beating, True))

    def _set_beating(self, beating: bool) -> None:
        if self._session is None:
            self._engine.beating = beating
        for namespace in self._namespaces(begin=True):
            if beating:
                namespace.hub.resume_beats()
            else:
                namespace.hub.pause_beats()

    def advance(self, seconds: float) -> None:
        """
        Put the clock forward by ``seconds``, without waiting.

        What would happen in that time happens at once: heartbeats, delayed closes, what faults delay. Connections
        become older, and those that become too old, have been silent or have not read for too long in it are closed.
        What a client may ask for in a second stays a matter of real time. Raises ``ValueError`` for a time that is
        negative, or has over 100,000 heartbeats in it; and where over 200,000 things happen, when those have happened.
        """

        async def advance_all() -> None:
            namespaces = self._namespaces(begin=True)
            for namespace in namespaces:  # or else some would be put forward, and others not
                namespace.hub.check(seconds)
            for namespace in namespaces:
                await namespace.hub.advance(seconds)
            if self._session is None:
                self._engine.offset += seconds

        self._result(self._submit(advance_all), TIMEOUT + 60)

    @property
    def ahead(self) -> float:
        """By how many seconds the clock was put forward."""
        return self._call(lambda: next((each.hub.offset for each in self._own()), self._engine.offset))

    @property
    def beating(self) -> bool:
        """Whether heartbeats are sent by itself."""
        return self._call(lambda: next((each.hub.beating for each in self._own()), self._engine.beating))

    # How connections end

    def close_client_connections(self, message: CloseMessage | None = None) -> None:
        """Close every connection with a code and a reason; 1006 interrupts. Does nothing before ``start``."""
        if self._server.running:
            self.close(message)

    def close(
        self,
        message: CloseMessage | None = None,
        *,
        connection: str | None = None,
        delay: float = 0.0,
        mid_message: bool = False,
    ) -> int:
        """
        Close every connection, or the one whose id is ``connection``, and return how many that are.

        That is done in ``delay`` seconds of the clock that ``advance`` puts forward, and with ``mid_message`` after
        the first part of a message whose rest never comes. Raises ``LookupError`` where there is no open connection
        of that id.
        """
        message = message or CloseMessage()

        def close_one(chosen: ServerConnection) -> None:
            if mid_message and not chosen.closed:
                chosen.send_frame(HALF_A_MESSAGE)
            close_connection(chosen, message)

        def close_in(namespace: Namespace, chosen: list[ServerConnection]) -> None:
            for each in chosen:
                close_one(each)
            namespace.forget_arrivals()

        def close_chosen() -> int:
            chosen = self._chosen(connection)
            if delay:
                for namespace in self._namespaces():
                    if its_own := [each for each in chosen if each.namespace is namespace]:
                        namespace.hub.call_later(delay, partial(close_in, namespace, its_own))
                return len(chosen)
            for each in chosen:
                close_one(each)
            self._forget_arrivals()
            return len(chosen)

        return self._call(close_chosen)

    def interrupt(self, connection: str | None = None, *, reset: bool = False) -> int:
        """
        Drop the TCP connection of every client, or of the one with this id, and return how many that are.

        That is done without a close frame, and with ``reset`` by RST instead of FIN. Raises ``LookupError`` where
        there is no open connection of that id.
        """

        def drop() -> int:
            chosen = self._chosen(connection)
            for each in chosen:
                each.drop(reset=reset)
            self._forget_arrivals()
            return len(chosen)

        return self._call(drop)

    # What goes wrong

    def set_faults(self, faults: Iterable[Any], connection: str | None = None) -> None:
        """
        Have connections meet with ``faults`` from now on, in place of those of before: none with an empty list.

        Those are what ``realtime.testing.faults`` has. They hold for the connections that are there and for all that
        come, or with an id for the one connection that has it. Raises ``LookupError`` where there is none, and
        ``ValueError`` for faults that cannot be.
        """
        make = Suffering(tuple(faults))
        make(1)  # so that whoever asks for what cannot be is told
        self._call(partial(self._interpose, make, connection))

    def faults(self, connection: str | None = None) -> list[Any]:
        """
        Return the faults that new connections meet with, or those of the connection with this id.

        Raises ``LookupError`` where there is none.
        """

        def find() -> list[Any]:
            make: MakeInterposer | None = self._engine.make_interposer
            if connection is not None:
                [found] = self._existing(connection)
                assert found.namespace is not None
                namespace = found.namespace
                make = namespace.own_interposers.get(found.id) or namespace.make_interposer or make
            elif self._session is not None:
                make = next((each.make_interposer for each in self._own()), None) or make
            return list(make.faults) if isinstance(make, Suffering) else []

        return self._call(find)

    def interpose(self, make: MakeInterposer | None, connection: str | None = None) -> None:
        """
        Have what ``make(number)`` returns stand between the server and each connection, instead of faults.

        It is called on the engine's event loop, with which of its session's connections it is, counted from 1.
        Raises ``LookupError`` where there is no ``connection`` of this id.
        """
        self._call(partial(self._interpose, make or Suffering(()), connection))

    def _interpose(self, make: MakeInterposer, connection: str | None) -> None:
        if connection is not None:
            for each in (chosen := self._existing(connection)):
                assert each.namespace is not None
                each.namespace.own_interposers[each.id] = make
        else:
            chosen = list(self._connections())
            if self._session is None:
                self._engine.make_interposer = make
            for namespace in self._namespaces(begin=True):
                namespace.make_interposer = make
                namespace.own_interposers.clear()
        for each in chosen:
            each.interpose(make(each.number))

    def use_profile(self, profile: str | Profile | None) -> None:
        """
        Begin a profile, by its name: its faults, its settings and the moments at which it closes connections.

        It takes the place of another, and of all faults. Settings hold for connections that come from now on, and
        the heartbeats' interval for all. None ends the one that was begun. For all sessions, a session that begins
        later begins the profile then. Raises ``ValueError``, which lists the names, where there is none of that name.
        """
        chosen = by_name(profile) if isinstance(profile, str) else profile
        settings = self._server.settings_with({} if chosen is None else chosen.settings)

        def use() -> None:
            if self._session is None:
                self._engine.profile, self._engine.profile_settings = chosen, settings
            for namespace in self._namespaces(begin=True):
                namespace.use_profile(chosen, settings)
            self._interpose(Suffering(() if chosen is None else chosen.faults), None)

        self._call(use)

    @property
    def profile(self) -> Profile | None:
        """The profile that was begun last, or None."""

        def find() -> Profile | None:
            found = self._own()
            return found[0].profile if found else self._engine.profile

        return self._call(find)

    def reset(self) -> None:
        """Drop every connection, and forget all that was set, sent and counted: as if it had just begun."""

        def reset_now() -> None:
            if self._session is None:
                self._server.set_up(self._engine)
                self._engine.arrivals.forget()
            for namespace in self._namespaces():
                self._engine.reset(namespace.name)
            self._server.log.clear(self._session)

        self._call(reset_now)

    # On the engine's event loop

    @property
    def _engine(self) -> Engine:
        return self._server.engine

    def _namespaces(self, *, begin: bool = False) -> list[Namespace]:
        if self._session is None:
            return list(self._engine.namespaces.values())
        if begin:
            return [self._engine.namespace(self._session)]
        namespace = self._engine.namespaces.get(self._session)
        return [] if namespace is None else [namespace]

    def _own(self) -> list[Namespace]:
        """Return the session, if this controls one and it has begun."""
        return [] if self._session is None else self._namespaces()

    def _connections(self) -> Iterable[ServerConnection]:
        found = [connection for namespace in self._namespaces() for connection in namespace.connections.values()]
        return sorted(found, key=lambda connection: int(connection.id))

    def _chosen(self, connection: str | None) -> list[ServerConnection]:
        found = [each for namespace in self._namespaces() for each in namespace.open_connections(connection)]
        if connection is not None and not found:
            raise LookupError(f"there is no open connection {connection!r}")
        return found

    def _existing(self, connection: str) -> list[ServerConnection]:
        if found := [each for each in self._connections() if each.id == connection]:
            return found
        raise LookupError(f"there is no connection {connection!r}")

    def _arrivals(self) -> Arrivals:
        return self._engine.arrivals if self._session is None else self._engine.namespace(self._session).arrivals

    def _forget_arrivals(self) -> None:
        if self._session is None:
            self._engine.arrivals.forget()
        for namespace in self._namespaces():
            namespace.arrivals.forget()

    def _submit(self, work: Callable[[], Any]) -> Future[Any]:
        loop = self._server.loop  # before there is a coroutine, which nobody would await if there is no loop
        return asyncio.run_coroutine_threadsafe(work(), loop)

    def _call(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns on the engine's event loop."""
        if self._server.on_loop:
            return work()

        async def call() -> T:
            return work()

        future: Future[T] = self._submit(call)
        return self._result(future, TIMEOUT)

    def _result(self, future: Future[T], timeout: float) -> T:
        __tracebackhide__ = True  # pytest shows the test's own line
        try:
            return future.result(timeout)
        except TimeoutError as error:
            if not future.done():
                future.cancel()
                raise TimeoutError(f"the server did not answer within {timeout:g} s") from None
            raise error.with_traceback(None) from None
