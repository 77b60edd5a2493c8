"""Cases of frames: pings, fragments, sizes, and bytes that no server may send."""

from __future__ import annotations

import json

from ...protocol import timestamp
from ..frames import Frame, Opcode, Write
from .stage import Stage
from .verdicts import Cases, Failed, Level, NotObserved

FRAMING = Cases()

LARGE = 512 << 10
"""Bytes of a large message: half of what most clients take if nobody tells them otherwise."""
PINGS = 20
"""Pings in a row: many, but fewer than what a careful client takes for an attack."""


def beat(**fields: object) -> bytes:
    """Return the text of a heartbeat, with further fields."""
    content = {"type": "heartbeat", "timestamp": timestamp(0), "uptime_seconds": "1", **fields}
    return json.dumps(content, separators=(",", ":")).encode()


@FRAMING.case(
    "masks-frames",
    Level.MUST,
    "A client masks every frame (RFC 6455, section 5.1), and a server has to hang up on one that does not.",
)
def _masks_frames(stage: Stage) -> str:
    connection = stage.connect()
    stage.wait_for_frame(connection, lambda entry: True)
    wrong = [entry for entry in stage.transcript.sent if entry.code == 1002 and "mask" in (entry.reason or "")]
    if wrong:
        raise Failed("it sent a frame without a mask")
    if not stage.received(connection):
        raise NotObserved("it sent nothing")
    return f"{len(stage.received(connection))} frames came, all of them masked"


@FRAMING.case(
    "ping",
    Level.MUST,
    "A ping is answered with a pong of the same payload (RFC 6455, section 5.5.3): servers drop who does not.",
)
def _ping(stage: Stage) -> str:
    connection = stage.connect()
    for payload in (b"conformance", bytes(range(125))):
        stage.answers_ping(connection, payload)
    return "it answered a ping with text and one with 125 bytes of all kinds"


@FRAMING.case("ping-empty", Level.MUST, "A ping without a payload is answered too, with a pong without a payload.")
def _ping_empty(stage: Stage) -> str:
    connection = stage.connect()
    return f"it answered after {stage.answers_ping(connection, b'') * 1000:.0f} ms"


@FRAMING.case(
    "pings-in-a-row",
    Level.SHOULD,
    "Of 21 pings in a row at least the last is answered (RFC 6455, section 5.5.3), and the connection lives on.",
)
def _pings_in_a_row(stage: Stage) -> str:
    connection = stage.connect()
    stage.send(connection, *(Frame(Opcode.PING, b"%d" % number) for number in range(PINGS)))
    stage.answers_ping(connection, b"the last")
    return f"it answered {len(stage.received(connection, Opcode.PONG))} of {PINGS + 1} pings, the last among them"


@FRAMING.case(
    "pong-unasked",
    Level.MUST,
    "A pong that nobody asked for is ignored (RFC 6455, section 5.5.3): some servers send them as heartbeats.",
)
def _pong_unasked(stage: Stage) -> str:
    connection = stage.connect()
    stage.send(connection, Frame(Opcode.PONG, b"unasked"))
    stage.answers_ping(connection)
    return "it stayed connected, and answered a ping afterwards"


@FRAMING.case(
    "fragments",
    Level.MUST,
    "A message may come in several frames (RFC 6455, section 5.4), some of them empty; the client puts it together.",
)
def _fragments(stage: Stage) -> str:
    connection = stage.connect()
    text = beat()
    parts = [text[:1], b"", text[1:30], text[30:]]
    stage.send(
        connection,
        *(
            Frame(Opcode.CONTINUATION if number else Opcode.TEXT, part, final=number == len(parts) - 1)
            for number, part in enumerate(parts)
        ),
    )
    stage.answers_ping(connection)
    return "it stayed connected, and answered a ping afterwards"


@FRAMING.case(
    "ping-in-fragments",
    Level.MUST,
    "A ping may come between the frames of one message, and is answered before the message has ended.",
)
def _ping_in_fragments(stage: Stage) -> str:
    connection, text = stage.connect(), beat()
    # Deaf, or else beats and answers would come in between.
    stage.act(connection, Write(Frame(Opcode.TEXT, text[:20], final=False).encode()), deaf=True)
    stage.answers_ping(connection, b"between")
    stage.send(connection, Frame(Opcode.CONTINUATION, text[20:]))
    stage.answers_ping(connection)
    return "it answered in the middle of the message, and after it"


@FRAMING.case(
    "binary",
    Level.SHOULD,
    "A message in a binary frame is read as JSON all the same, or ignored, or the client closes and comes back.",
)
def _binary(stage: Stage) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    stage.send(connection, Frame(Opcode.BINARY, beat()))
    return stage.lives_on(connection, before)


@FRAMING.case(
    "large-message",
    Level.SHOULD,
    "A message of 512 KiB is read, or the client closes with 1009 and comes back; it does not hang.",
)
def _large_message(stage: Stage) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    stage.text(connection, beat(padding="x" * LARGE))
    return stage.lives_on(connection, before)


def _breaks_protocol(stage: Stage, frame: Frame, *codes: int) -> str:
    connection = stage.connect()
    stage.send(connection, frame)
    return stage.fails_connection(connection, *codes)


@FRAMING.case(
    "invalid-utf8",
    Level.MUST,
    "A text that is no UTF-8 ends the connection with 1007 (RFC 6455, section 8.1), as nothing can be trusted then.",
)
def _invalid_utf8(stage: Stage) -> str:
    return _breaks_protocol(stage, Frame(Opcode.TEXT, beat(name="x").replace(b"x", b"\xff")), 1007)


@FRAMING.case(
    "returns-after-failing",
    Level.SHOULD,
    "A client that ended the connection because of the server's mistake comes back: the next one may be whole.",
)
def _returns_after_failing(stage: Stage) -> str:
    connection = stage.connect()
    before = len(stage.attempts)
    stage.send(connection, Frame(Opcode.TEXT, b'{"type":"\xff"}'))
    failed = stage.fails_connection(connection, 1002, 1007)
    return f"{failed}, and came back after {stage.comes_back(before):.2f} s"


@FRAMING.case(
    "reserved-bits",
    Level.MUST,
    "A reserved bit that no extension stands for ends the connection with 1002 (RFC 6455, section 5.2).",
)
def _reserved_bits(stage: Stage) -> str:
    return _breaks_protocol(stage, Frame(Opcode.TEXT, beat(), reserved=1), 1002)


@FRAMING.case(
    "masked-frame",
    Level.MUST,
    "A server's frame must not be masked, and one that is ends the connection with 1002 (RFC 6455, section 5.1).",
)
def _masked_frame(stage: Stage) -> str:
    return _breaks_protocol(stage, Frame(Opcode.TEXT, beat(), mask=b"mask"), 1002)


@FRAMING.case(
    "unknown-opcode",
    Level.MUST,
    "A frame with an opcode that does not exist ends the connection with 1002 (RFC 6455, section 5.2).",
)
def _unknown_opcode(stage: Stage) -> str:
    return _breaks_protocol(stage, Frame(3, b"what is this"), 1002)
