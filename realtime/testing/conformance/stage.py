"""Where a case is played: one session of a server, the client in it, and how long is waited for what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from ...protocol import CloseMessage
from ..connection import ServerConnection
from ..faults import Fault
from ..frames import Action, Frame, Handshake, Opcode, Write
from ..server import Session
from ..transcript import Entry
from .clients import Client
from .verdicts import Failed, NotObserved

if TYPE_CHECKING:
    from ..server import DemoWebsocketServer

T = TypeVar("T")

SLICE = 0.1
"""Seconds between two looks at whether the client has ended by itself, which the transcript does not tell."""


@dataclass(frozen=True, slots=True)
class Times:
    """
    Say how long is waited for what, in seconds.

    ``patience`` is how long the client has to come back, to answer, and how long it is watched for staying away.
    ``scale`` is by how much the client's own delays and timeouts are shortened, as far as its author can set them;
    the protocol's own times, such as the 10 s after 1013, are taken times ``scale``.
    """

    patience: float = 8.0
    scale: float = 1.0
    start: float = 30.0
    """How long the client has to connect for the first time."""

    @property
    def busy(self) -> float:
        """The least that a client stays away from a server that is full."""
        return 10.0 * self.scale

    @property
    def busy_most(self) -> float:
        return 2 * self.busy + self.patience

    @property
    def timeout(self) -> float:
        """How long a client may wait for a server that does not answer, before it gives up."""
        return 30.0 * self.scale + self.patience

    @property
    def silence(self) -> float:
        """How long a client may take a silent server for alive."""
        return 60.0 * self.scale + self.patience


class Deaf:
    """Stand between the server and a connection on which the case alone sends, and nothing is answered."""

    def handshake(self) -> Handshake | None:
        return None

    def opened(self) -> Sequence[Action]:
        return ()

    def outgoing(self, frame: Frame) -> Sequence[Action]:
        return ()

    def incoming(self, frame: Frame) -> Sequence[Action] | None:
        return ()

    def tick(self) -> tuple[float, Sequence[Action]] | None:
        return None


class Stage(Session):
    """Play a case. Methods named after what a client does raise ``Failed`` when it does not."""

    def __init__(self, server: DemoWebsocketServer, name: str, client: Client, times: Times) -> None:
        super().__init__(server, name)
        self.client = client
        self.times = times
        self._provoked: float | None = None
        """When something was done to the client that it may answer by ending the connection."""
        self._abandoned = False

    @property
    def url(self) -> str:
        query = f"?session={quote(self.name, safe='')}" if self.name else ""
        return f"{self._server.url}conformance/{query}"

    # What is seen

    def wait(self, find: Callable[[list[Entry]], T | None], seconds: float, *, to_the_end: bool = False) -> T | None:
        """
        Return what ``find`` finds in the transcript, as soon as it does; None when it has not in so many seconds.

        It is not waited for longer than the client runs, unless ``to_the_end``.
        """
        end = time.monotonic() + seconds
        changed = self._server.log.changed
        with changed:
            while True:
                if self._abandoned:
                    raise NotObserved("the run was interrupted")
                over = time.monotonic() >= end or (self.client.ended is not None and not to_the_end)
                found = find(self.transcript.entries)
                if found is not None or over:
                    return found
                changed.wait(max(0.0, min(end - time.monotonic(), SLICE)))

    def abandon(self) -> None:
        """Have the case end as soon as it waits for anything. May be called from any thread."""
        self._abandoned = True

    @property
    def attempts(self) -> list[Entry]:
        """The requests for a WebSocket until now."""
        return _attempts(self.transcript.entries)

    def received(self, connection: str, opcode: int | None = None) -> list[Entry]:
        """Return the frames that came on a connection."""
        return [
            each for each in self.transcript.received if each.connection == connection and opcode in (None, each.opcode)
        ]

    def wait_for_frame(
        self, connection: str, wanted: Callable[[Entry], bool], seconds: float | None = None
    ) -> Entry | None:
        """Return the first frame of the client that is ``wanted``."""

        def find(entries: list[Entry]) -> Entry | None:
            frames = (each for each in entries if each.connection == connection and each.direction == "received")
            return next((each for each in frames if each.kind == "frame" and wanted(each)), None)

        return self.wait(find, self.times.patience if seconds is None else seconds)

    def wait_for_request(self, connection: str, kind: str) -> Entry | None:
        """Return the first request of a type that the client sends."""
        return self.wait_for_frame(connection, lambda entry: (entry.message or {}).get("type") == kind)

    def end_of(self, connection: str, seconds: float | None = None) -> Entry | None:
        """Return how the TCP connection ended, or None when it has not in so many seconds."""

        def find(entries: list[Entry]) -> Entry | None:
            return next((each for each in entries if each.kind == "end" and each.connection == connection), None)

        return self.wait(find, self.times.patience if seconds is None else seconds, to_the_end=True)

    def asked_for(self, connection: str) -> list[str]:
        """Return the topics that a client has asked for on a connection, in order."""
        messages = [entry.message or {} for entry in self.received(connection)]
        return [str(each.get("topic")) for each in messages if each.get("type") == "subscribe_request"]

    def all_answered(self, connection: str) -> bool:
        """Return whether every subscribe request of a connection has been answered."""
        sent = [entry.message or {} for entry in self.transcript.sent if entry.connection == connection]
        answers = [message for message in sent if message.get("type") == "subscribe_response"]
        return len(answers) >= len(self.asked_for(connection))

    def subscriptions(self, connection: str) -> set[str]:
        """Return the topics that a client was subscribed to on a connection, as the answers have it."""
        topics: set[str] = set()
        for entry in self.transcript.sent:
            message = entry.message or {}
            if entry.connection != connection or message.get("status") != "OK":
                continue
            if message.get("type") == "subscribe_response":
                topics.add(message["data"]["topic"])
            elif message.get("type") == "unsubscribe_response":
                topics.discard(message["data"]["topic"])
        return topics

    # What a client does

    def connect(self, *, silent: bool = False) -> str:
        """
        Start the client, and return its connection once it has sent something; with ``silent`` that is not waited for.

        Raises ``NotObserved`` if there is none.
        """
        self.client.start(self.url)
        connection = self.opened(0, self.times.start)
        if connection is None:
            raise NotObserved(self._with_end(f"no client connected within {self.times.start:g} s"))
        if not silent:
            self.settle(connection)
        return connection

    def settle(self, connection: str) -> None:
        """Wait until a client has sent its first message, so that what happens next does not hit its very start."""
        self.wait_for_frame(connection, lambda entry: True, min(1.0, self.times.patience))

    def opened(self, before: int, seconds: float | None = None) -> str | None:
        """Return the first connection that was opened by an attempt after the first ``before`` ones."""

        def find(entries: list[Entry]) -> str | None:
            later = {each.connection for each in _attempts(entries)[before:]}
            opened = (each for each in entries if each.kind == "handshake" and each.data.startswith(b"HTTP/1.1 101"))
            return next((each.connection for each in opened if each.connection in later), None)

        return self.wait(find, self.times.patience if seconds is None else seconds)

    def comes_back(self, before: int, seconds: float | None = None, *, since: float | None = None) -> float:
        """Return after how many seconds the client tried to connect again, which it has not done before."""
        since = since or self._provoked or time.time()
        seconds = self.times.patience if seconds is None else seconds
        attempt = self.wait(lambda entries: next(iter(_attempts(entries)[before:]), None), seconds)
        if attempt is None:
            raise Failed(self._with_end(f"it did not come back within {time.time() - since:.1f} s"))
        return max(0.0, attempt.at - since)

    def is_back(self, before: int, seconds: float | None = None) -> str:
        """Return the connection by which the client has come back."""
        self.comes_back(before, seconds)
        connection = self.opened(before)
        if connection is None:
            raise Failed("it tried to come back, but opened no connection")
        return connection

    def stays_away(self, before: int) -> str:
        """Watch whether the client tries to connect again, and return in words that it did not."""
        began = time.time()
        attempt = self.wait(lambda entries: next(iter(_attempts(entries)[before:]), None), self.times.patience)
        if attempt is not None:
            raise Failed(f"it came back after {max(0.0, attempt.at - began):.2f} s")
        waited = f"it stayed away for the {self.times.patience:g} s that were waited"
        return f"it stayed away: {self.client.ended}" if self.client.ended else waited

    def answers_ping(self, connection: str, payload: bytes = b"still there?") -> float:
        """Return after how many seconds a ping was answered with its payload."""
        began, pongs = time.time(), len(self.received(connection, Opcode.PONG))
        self._perform(connection, Write(Frame(Opcode.PING, payload).encode()))
        last = self._pong_or_end(connection, payload, pongs)
        if last is None or last.kind == "end":
            instead = self._instead(connection, pongs, last)
            raise Failed(self._with_end(f"it did not answer a ping of {len(payload)} bytes{instead}"))
        return time.time() - began

    def _pong_or_end(self, connection: str, payload: bytes, before: int) -> Entry | None:
        def find(entries: list[Entry]) -> Entry | None:
            own = [each for each in entries if each.connection == connection]
            pongs = [each for each in own if each.direction == "received" and each.opcode == Opcode.PONG]
            ends = [each for each in own if each.kind == "end"]
            return next((each for each in pongs[before:] if each.data == payload), ends[0] if ends else None)

        return self.wait(find, self.times.patience, to_the_end=True)

    def _instead(self, connection: str, before: int, last: Entry | None) -> str:
        closes = self.received(connection, Opcode.CLOSE)
        if last is not None:
            return f", but ended the connection{f' with {closes[0].code}' if closes else ''}"
        pongs = self.received(connection, Opcode.PONG)[before:]
        return f", but sent a pong with {pongs[0].data[:20]!r}" if pongs else ""

    def lives_on(self, connection: str, before: int) -> str:
        """Return how the client coped: it is still connected and answers, or has closed and come back."""
        try:
            self.answers_ping(connection)
        except (Failed, NotObserved):
            if self.end_of(connection, 0) is None and not self.received(connection, Opcode.CLOSE):
                raise
            self.comes_back(before)
            closes = self.received(connection, Opcode.CLOSE)
            return f"it closed the connection{f' with {closes[0].code}' if closes else ''}, and came back"
        return "it stayed connected, and answered a ping afterwards"

    def fails_connection(self, connection: str, *codes: int) -> str:
        """Return how the client has failed the connection, as it must on what breaks the protocol."""
        close = self.wait_for_frame(connection, lambda entry: entry.code is not None)
        if close is None:
            end = self.end_of(connection, 0)
            if end is None or end.direction != "received":
                raise Failed("it did not end the connection")
            return "it dropped the TCP connection without a close frame"
        if close.code not in codes:
            raise Failed(f"it closed with {close.code}, where {' or '.join(map(str, codes))} says what was wrong")
        return f"it closed with {close.code}"

    def _with_end(self, text: str) -> str:
        return f"{text}: {self.client.ended}" if self.client.ended else text

    # What is done to it

    def act(self, connection: str, *actions: Action, deaf: bool = False) -> None:
        """Do these things on a connection, whatever its state; from then on nothing else if ``deaf``."""
        self._perform(connection, *actions, deaf=deaf)
        self._provoked = time.time()

    def _perform(self, connection: str, *actions: Action, deaf: bool = False) -> None:
        def do() -> None:
            chosen = self._one(connection)
            if deaf:
                chosen.interpose(Deaf())
            chosen.perform(actions)

        self._call(do)

    def _one(self, connection: str) -> ServerConnection:
        """Return an open connection. Raises ``Failed`` if the client has ended it because of what was done to it."""
        for each in self._connections():
            if each.id == connection and each.state == "open":
                return each
        if self._provoked is None:
            raise NotObserved(self._with_end("the client left before anything could be done to it"))
        closes = self.received(connection, Opcode.CLOSE)
        raise Failed(self._with_end(f"it ended the connection{f' with {closes[0].code}' if closes else ''}"))

    def strike(self, *faults: Fault) -> None:
        """Have the client meet with faults from now on."""
        self.set_faults(faults)
        self._provoked = time.time()

    def send(self, connection: str, *frames: Frame) -> None:
        """Send frames as they are, past all faults."""
        self.act(connection, *(Write(frame.encode()) for frame in frames))

    def hang_up(self, connection: str, code: int, reason: str = "conformance") -> int:
        """Close a connection with ``code`` (1006 drops it), and return how many attempts there had been."""
        before = len(self.attempts)
        self._provoked = time.time()
        try:
            self.close(CloseMessage(code=code, reason=reason), connection=connection)
        except LookupError:
            raise NotObserved(self._with_end("the client left before it could be closed")) from None
        return before

    def text(self, connection: str, payload: bytes, **fields: Any) -> None:
        """Send one text frame."""
        self.send(connection, Frame(Opcode.TEXT, payload, **fields))


def _attempts(entries: list[Entry]) -> list[Entry]:
    return [each for each in entries if each.kind == "handshake" and each.direction == "received"]
