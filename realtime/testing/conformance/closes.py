"""Cases of how connections end: the table of close codes, and the close handshake itself."""

from __future__ import annotations

from functools import partial

from ...protocol import Reconnect, client_reconnect
from ..frames import Drop, Frame, HalfClose, Opcode, Write, close_frame
from .stage import Stage
from .verdicts import Cases, Failed, Level, NotObserved

CLOSES = Cases()

CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3008, 3500, 4000, 4500)
"""Every code of the table, and one of each range."""
_WHY = {
    1000: "all is done",
    1001: "the server is going away, and another takes over",
    1002: "the client breaks the protocol, and would do so again",
    1003: "the client sends what the server cannot take, and would do so again",
    1007: "the client sends invalid UTF-8, and would do so again",
    1008: "the server does not want this client",
    1009: "the client sends what is too big, and would do so again",
    1010: "the client needs an extension that the server does not have",
    1011: "the server met with an error, which may be gone with the next connection",
    1012: "the server restarts, and is there again soon",
    1013: "the server is full, and more attempts make that worse",
    1014: "what is behind the server is broken",
    3000: "codes of 3000-3499 ask to come back",
    3008: "the client was too slow, which is not for ever",
    3500: "codes of 3500-3999 ask to stay away",
    4000: "codes of 4000-4499 ask to come back",
    4500: "codes of 4500-4999 ask to stay away",
}


def _comes_back(stage: Stage, code: int) -> str:
    connection = stage.connect()
    seconds = stage.comes_back(stage.hang_up(connection, code))
    return f"it came back after {seconds:.2f} s"


def _stays_away(stage: Stage, code: int) -> str:
    connection = stage.connect()
    return stage.stays_away(stage.hang_up(connection, code))


def _comes_back_later(stage: Stage, code: int) -> str:
    connection = stage.connect()
    before, least = stage.hang_up(connection, code), stage.times.busy
    seconds = stage.comes_back(before, stage.times.busy_most)
    if seconds < least:
        raise Failed(f"it came back after {seconds:.2f} s, where at least {least:g} s were asked for")
    return f"it came back after {seconds:.2f} s, of at least {least:g} s"


_SCRIPTS = {
    Reconnect.BACKOFF: _comes_back,
    Reconnect.STAY_AWAY: _stays_away,
    Reconnect.BACKOFF_10S: _comes_back_later,
}
for _code in CODES:
    _client = client_reconnect(_code)
    _rule = f"After a close with {_code} the client {_client}, as {_WHY[_code]}."
    CLOSES.add(f"close-{_code}", Level.MUST, _rule, partial(_SCRIPTS[_client], code=_code))


@CLOSES.case(
    "drop-fin",
    Level.MUST,
    "When the TCP connection ends without a close frame (1006), the client comes back: networks do that every day.",
)
def _drop_fin(stage: Stage) -> str:
    return _comes_back(stage, 1006)


@CLOSES.case(
    "drop-rst",
    Level.MUST,
    "When the TCP connection is reset, the client comes back, as it does after any other loss of the connection.",
)
def _drop_rst(stage: Stage) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    stage.act(connection, Drop(reset=True))
    return f"it came back after {stage.comes_back(before):.2f} s"


@CLOSES.case(
    "drop-mid-frame",
    Level.MUST,
    "When the TCP connection ends in the middle of a frame, the client throws that half away and comes back.",
)
def _drop_mid_frame(stage: Stage) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    half = Frame(Opcode.TEXT, b'{"type":"publication","topic":"demo.half","data":1}').encode()[:20]
    stage.act(connection, Write(half), Drop())
    return f"it came back after {stage.comes_back(before):.2f} s"


@CLOSES.case(
    "half-close",
    Level.SHOULD,
    "When the server ends only its sending side, nothing can come any more: the client closes its side and comes back.",
)
def _half_close(stage: Stage) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    stage.act(connection, HalfClose(), deaf=True)
    seconds = stage.comes_back(before)
    _ends_tcp(stage, connection)
    return f"it closed its side, and came back after {seconds:.2f} s"


@CLOSES.case(
    "close-echo",
    Level.MUST,
    "A close frame is answered with a close frame of the same code (RFC 6455, section 5.5.1), so that both know.",
)
def _close_echo(stage: Stage) -> str:
    connection = stage.connect()
    stage.act(connection, Write(close_frame(1012, "conformance").encode()), deaf=True)
    close = stage.wait_for_frame(connection, lambda entry: entry.code is not None)
    if close is None:
        raise Failed("it did not answer the close frame")
    if close.code != 1012:
        raise Failed(f"it answered 1012 with {close.code}")
    return "it answered 1012 with 1012"


@CLOSES.case(
    "close-tcp",
    Level.MUST,
    "After the close handshake, when the server has ended its side, the client ends the TCP connection and leaks none.",
)
def _close_tcp(stage: Stage) -> str:
    connection = stage.connect()
    stage.act(connection, Write(close_frame(1012, "conformance").encode()), HalfClose(), deaf=True)
    _ends_tcp(stage, connection)
    return "it ended the TCP connection"


def _ends_tcp(stage: Stage, connection: str) -> None:
    if stage.end_of(connection) is None:
        raise Failed(f"its side of the TCP connection was open for {stage.times.patience:g} s more")


@CLOSES.case(
    "close-then-quiet",
    Level.MUST,
    "After its close frame a client sends nothing more on that connection (RFC 6455, section 5.5.1).",
)
def _close_then_quiet(stage: Stage) -> str:
    connection = stage.connect()
    stage.act(connection, Write(close_frame(1012, "conformance").encode()), deaf=True)
    if stage.wait_for_frame(connection, lambda entry: entry.code is not None) is None:
        raise NotObserved("it sent no close frame")
    stage.end_of(connection, min(2.0, stage.times.patience))
    frames = stage.received(connection)
    codes = [entry.code for entry in frames]
    last = next(number for number, code in enumerate(codes) if code is not None)
    if len(frames) > last + 1:
        raise Failed(f"it sent {len(frames) - last - 1} more frames after its close frame")
    return "its close frame was the last that it sent"


@CLOSES.case(
    "close-without-end",
    Level.SHOULD,
    "When the server sends a close frame and never ends the TCP connection, the client does not wait for ever: "
    "it comes back.",
)
def _close_without_end(stage: Stage) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    stage.act(connection, Write(close_frame(1012, "conformance").encode()), deaf=True)
    return f"it came back after {stage.comes_back(before, stage.times.timeout):.2f} s"


@CLOSES.case(
    "close-on-stop",
    Level.SHOULD,
    "A client that is stopped says goodbye with a close frame (1000 or 1001), so that the server need not guess.",
)
def _close_on_stop(stage: Stage) -> str:
    connection = stage.connect()
    stage.client.ask_to_stop()
    if stage.end_of(connection, stage.times.patience) is None:
        raise NotObserved("it was asked to stop, and did not end its connection")
    closes = [entry.code for entry in stage.received(connection, Opcode.CLOSE)]
    if not closes:
        raise Failed("it ended without a close frame")
    if closes[0] not in (1000, 1001):
        raise Failed(f"it closed with {closes[0]}")
    return f"it closed with {closes[0]}"
