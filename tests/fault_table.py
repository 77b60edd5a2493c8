"""
What each fault does, byte by byte: a table for tests without a server and for tests of the server on a socket.

``play`` runs a row against a server that is a few lines here; its answers are those of the real one.
"""

from __future__ import annotations

from dataclasses import dataclass

from realtime.testing import faults
from realtime.testing.faults import Fault
from realtime.testing.frames import (
    Action,
    Drop,
    Frame,
    HalfClose,
    Handshake,
    Opcode,
    ReadOn,
    StopReading,
    Wait,
    Write,
    close_frame,
)


def text(payload: bytes, first: int = 0x81) -> bytes:
    """Return a short frame, unmasked."""
    assert len(payload) < 126
    return bytes([first, len(payload)]) + payload


def masked(payload: bytes, mask: bytes) -> bytes:
    """Return ``payload`` under a mask of four bytes."""
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(len(payload))


ECHO = Frame(Opcode.TEXT, b'{"type":"echo_request","reqId":"1","echo":"Hello"}')
ECHO_2 = Frame(Opcode.TEXT, b'{"type":"echo_request","reqId":"2","echo":"Hello"}')
SUBSCRIBE = Frame(Opcode.TEXT, b'{"type":"subscribe_request","reqId":"2","topic":"heartbeat"}')
PING = Frame(Opcode.PING, b"hey")
CLOSE = close_frame(1000)

ANSWER = b'{"type":"echo_response","reqId":"1","status":"OK","data":{"echo":"Hello"}}'
ANSWER_2 = b'{"type":"echo_response","reqId":"2","status":"OK","data":{"echo":"Hello"}}'
SUBSCRIBED = b'{"type":"subscribe_response","reqId":"2","status":"OK","data":{"topic":"heartbeat"}}'
BEAT = b'{"type":"heartbeat","timestamp":"2026-11-22T17:08:01.670383Z","uptime_seconds":"0"}'
PUBLICATION = b'{"type":"publication","topic":"orders.42","data":1,"timestamp":"2026-11-22T17:08:01.670383Z"}'

SENT = Write(text(ANSWER))
SENT_2 = Write(text(ANSWER_2))
SENT_SUBSCRIBED = Write(text(SUBSCRIBED))
SENT_BEAT = Write(text(BEAT))
PONGED = Write(b"\x8a\x03hey")
CLOSED = Write(b"\x88\x02\x03\xe8")

_ANSWERS: dict[Frame, tuple[Frame, ...]] = {
    ECHO: (Frame(Opcode.TEXT, ANSWER),),
    ECHO_2: (Frame(Opcode.TEXT, ANSWER_2),),
    SUBSCRIBE: (Frame(Opcode.TEXT, SUBSCRIBED), Frame(Opcode.TEXT, BEAT)),
    PING: (Frame(Opcode.PONG, PING.payload),),
    CLOSE: (close_frame(1000),),
}
"""What the server answers to each frame. A beat has another timestamp each time, and nothing else differs."""


@dataclass(frozen=True)
class Row:
    """
    Be what one fault does, on the first connection.

    The client sends ``sends``, in masked frames; ``does`` is what the server does then, and ``by_itself`` what it
    does later, each after so many seconds.
    """

    fault: Fault
    sends: tuple[Frame, ...] = ()
    does: tuple[Action, ...] = ()
    by_itself: tuple[tuple[float, tuple[Action, ...]], ...] = ()
    handshake: Handshake | None = None
    case: str = ""

    @property
    def name(self) -> str:
        return f"{self.fault.name()}{self.case and '-'}{self.case}"

    @property
    def wire(self) -> bytes:
        """What comes on the wire after the 101."""
        actions = [*self.does, *(action for _, later in self.by_itself for action in later)]
        return b"".join(action.data for action in actions if isinstance(action, Write))


def play(row: Row) -> tuple[tuple[Action, ...], tuple[tuple[float, tuple[Action, ...]], ...]]:
    """Return what a server does in the course of ``row``, and what it does by itself later."""
    interposer = faults.interposer_for([row.fault], 1)
    assert interposer is not None
    actions = [*interposer.opened()]
    for sent in row.sends:
        instead = interposer.incoming(sent)
        if instead is not None:
            actions += instead
            continue
        for frame in _ANSWERS[sent]:
            actions += interposer.outgoing(frame)
    ticks = []
    for _ in row.by_itself:
        tick = interposer.tick()
        assert tick is not None
        ticks.append((tick[0], tuple(tick[1])))
    return tuple(actions), tuple(ticks)


def _refusal(case: str, fault: Fault, *headers: tuple[str, str], status: int, body: bytes = b"") -> Row:
    return Row(fault, handshake=Handshake(status=status, headers=headers, body=body), case=case)


def _changed(fault: Fault, *wire: bytes, case: str = "") -> Row:
    """Return a row in which an answer comes otherwise and all else as ever: the next answer shows it."""
    return Row(
        fault.model_copy(update={"times": 1}),
        (PING, ECHO, ECHO_2),
        (PONGED, *(Write(each) for each in wire), SENT_2),
        case=case,
    )


def _closed(code: int, payload: bytes) -> Row:
    return Row(
        faults.CloseFrame(code=code, after=1),
        (ECHO, ECHO_2, PING),
        (SENT, Write(text(payload, 0x88))),
        case=str(code),
    )


ROWS = (
    _refusal(
        "401",
        faults.Refuse(status=401, body="who are you?"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("WWW-Authenticate", "Bearer"),
        status=401,
        body=b"who are you?",
    ),
    _refusal("403", faults.Refuse(status=403), status=403),
    _refusal("429", faults.Refuse(status=429, retry_after=7), ("Retry-After", "7"), status=429),
    _refusal("503", faults.Refuse(), status=503),
    Row(faults.WrongSubprotocol(), handshake=Handshake(subprotocol="other.v1")),
    Row(faults.SlowAccept(seconds=0.5), (ECHO,), (SENT,), handshake=Handshake(delay=0.5)),
    Row(faults.NeverAnswer(), handshake=Handshake(never=True)),
    Row(faults.NoBeats(), (SUBSCRIBE, ECHO), (SENT_SUBSCRIBED, SENT)),
    Row(faults.NoPongs(), (PING, ECHO), (SENT,)),
    Row(faults.StopReading(after=1), (ECHO,), (SENT, StopReading()), case="after-one"),
    Row(
        faults.StopReading(seconds=0.25),
        (),
        (StopReading(),),
        ((0.1, ()), (0.1, ()), (0.05, (ReadOn(),))),
        case="for-a-while",
    ),
    Row(faults.Mute(after=1), (ECHO, ECHO_2, PING, CLOSE), (SENT,)),
    Row(faults.Mute(), (ECHO, PING), (), case="at-once"),
    _changed(faults.Lose()),
    Row(faults.Lose(what="beats"), (SUBSCRIBE, ECHO), (SENT_SUBSCRIBED, SENT), case="beats"),
    Row(faults.Delay(seconds=0.25, times=1), (PING, ECHO, ECHO_2), (PONGED, Wait(0.25), SENT, SENT_2)),
    Row(faults.Delay(seconds=0.25, what="everything"), (PING,), (Wait(0.25), PONGED), case="everything"),
    Row(
        faults.Delay(seconds=0, jitter=1.0, seed=1),
        (ECHO, ECHO_2),
        (Wait(0.9428193815096133), SENT, Wait(0.0277058068270567), SENT_2),
        case="jitter",
    ),
    _changed(faults.Duplicate(copies=2), text(ANSWER), text(ANSWER), text(ANSWER)),
    Row(faults.Reorder(), (ECHO, PING, ECHO_2), (PONGED, SENT_2, SENT)),
    Row(faults.Reorder(hold=0.1), (ECHO,), (), ((0.1, ()), (0.0, (SENT,))), case="too-few"),
    Row(faults.Reorder(), (ECHO, CLOSE), (SENT, CLOSED), case="closed"),
    _changed(faults.Truncate(), text(b'{"type":"echo_response","reqId":"1","')),
    _changed(faults.Truncate(keep=1), text(b"{"), case="keep"),
    _changed(faults.MissingReqId(), text(b'{"type":"echo_response","status":"OK","data":{"echo":"Hello"}}')),
    _changed(
        faults.WrongReqId(), text(b'{"type":"echo_response","reqId":"wrong","status":"OK","data":{"echo":"Hello"}}')
    ),
    _changed(faults.UnknownType(), text(b'{"type":"surprise","reqId":"1","status":"OK","data":{"echo":"Hello"}}')),
    _changed(faults.InvalidJson(), text(b'{"type":oops}')),
    _changed(faults.Binary(), text(ANSWER, 0x82)),
    _changed(faults.HugeFrame(size=70_000), b"\x81\x7f" + (70_000).to_bytes(8) + ANSWER + b" " * (70_000 - 74)),
    _changed(faults.HugeClaim(), b"\x81\x7f\x00\x00\x01\x00\x00\x00\x00\x00", text(ANSWER)),
    _changed(
        faults.Fragment(),
        text(ANSWER[:24], 0x01),
        b"\x89\x07between",
        text(ANSWER[24:49], 0x00),
        text(ANSWER[49:], 0x80),
    ),
    _changed(
        faults.Fragment(pieces=2, ping_between=False), text(ANSWER[:37], 0x01), text(ANSWER[37:], 0x80), case="plain"
    ),
    Row(
        faults.Fragment(pieces=2, ping_between=False, pause=0.1),
        (ECHO,),
        (Write(text(ANSWER[:37], 0x01)), Wait(0.1), Write(text(ANSWER[37:], 0x80))),
        case="slow",
    ),
    _changed(faults.InvalidUtf8(), text(ANSWER[:-1] + b"\xff}")),
    _changed(faults.ReservedBits(), text(ANSWER, 0xC1)),
    _changed(faults.ReservedBits(bits=3), text(ANSWER, 0xB1), case="others"),
    _changed(faults.Masked(), b"\x81\xcar`K4" + masked(ANSWER, b"r`K4")),
    Row(
        faults.PingFlood(count=3, rate=4.0),
        (ECHO,),
        (SENT,),
        tuple((0.25, (Write(b"\x89\x01%d" % n),)) for n in (1, 2, 3)),
    ),
    Row(
        faults.DemandPongs(interval=0.1, timeout=0.2),
        (),
        (),
        (*((0.1, (Write(b"\x89\x01%d" % n),)) for n in (1, 2, 3)), (0.0, (Drop(),))),
    ),
    Row(
        faults.Burst(seconds=0.1),
        (SUBSCRIBE, PING, ECHO),
        (PONGED,),
        ((0.1, ()), (0.0, (SENT_SUBSCRIBED, SENT_BEAT, SENT)), (0.1, ()), (0.0, ())),
    ),
    Row(
        faults.Bandwidth(bytes_per_second=400),
        (ECHO,),
        (Write(text(ANSWER)[:40]), Wait(0.1), Write(text(ANSWER)[40:]), Wait(0.09)),
    ),
    _closed(1005, b"\x03\xed"),
    _closed(1006, b"\x03\xee"),
    _closed(1015, b"\x03\xf7"),
    _closed(999, b"\x03\xe7"),
    _closed(65_535, b"\xff\xff"),
    Row(faults.CloseFrame(code=None), (ECHO,), (Write(b"\x88\x01\x03"),), case="one-byte"),
    Row(faults.CloseFrame(code=1013, reason="full"), (CLOSE,), (Write(b"\x88\x06\x03\xf5full"),), case="legal"),
    Row(faults.NoCloseHandshake(), (ECHO, CLOSE), (SENT,)),
    Row(faults.HalfClose(after=1), (ECHO, ECHO_2, PING), (SENT, HalfClose())),
    Row(faults.Drop(), (), (Drop(),), case="at-once"),
    Row(faults.Drop(after=2), (ECHO, PING, ECHO_2), (SENT, PONGED, SENT_2, Drop()), case="fin"),
    Row(faults.Drop(after=1, reset=True), (ECHO, ECHO_2), (SENT, Drop(reset=True)), case="rst"),
    Row(
        faults.Drop(after=1, mid_frame=True),
        (ECHO, ECHO_2),
        (SENT, Write(text(ANSWER_2)[:38]), Drop()),
        case="mid-frame",
    ),
)
