"""What went over the wire, as it is kept, asserted and shown."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from realtime.protocol import EchoRequest
from realtime.testing.frames import Frame, Opcode, close_frame
from realtime.testing.transcript import Entry, Log, Transcript, decode_frames


def entry(frame: Frame | None = None, **fields: Any) -> Entry:
    given = {"connection": "1", "session": "", "direction": "received", "kind": "frame", "seconds": 0.5, "at": 0.0}
    data = b"" if frame is None else frame.payload
    return Entry(**{**given, "data": data, "frame": frame, **fields})


def text(payload: str, **fields: Any) -> Entry:
    return entry(Frame(Opcode.TEXT, payload.encode()), **fields)


ECHO = text('{"type":"echo_request","reqId":"1","echo":"x"}')


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def transcript(log: Log) -> Transcript:
    return Transcript(log)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("mask", [None, b"mask"])
def test_frames_are_decoded_as_they_were_encoded(size: int, mask: bytes | None) -> None:
    frames = [Frame(Opcode.BINARY, b"x" * size, mask=mask), Frame(3, b"", False, 5, mask)]
    data = b"".join(frame.encode() for frame in frames)
    assert decode_frames(data) == (frames, b"")
    assert decode_frames(data[:-1])[0] == frames[:1]


@pytest.mark.parametrize("data", [b"", b"x", b"\x81\x05abc", b"\x81\xff\x00"])
def test_what_is_no_whole_frame_is_the_rest(data: bytes) -> None:
    assert decode_frames(data) == ([], data)


def test_what_there_is_no_room_for_is_dropped_and_counted() -> None:
    log = Log(entries=3)
    for number in range(5):
        log.add(text(str(number)))
    assert [kept.text for kept in Transcript(log).entries] == ["2", "3", "4"]
    assert Transcript(log).dropped == 2
    assert json.loads(Transcript(log).to_json())["dropped"] == 2
    assert "2 older entries were dropped" in Transcript(log).to_html()


def test_bytes_are_limited_too_but_for_the_newest_entry() -> None:
    log = Log(size=10)
    for payload in ("a" * 6, "b" * 4, "c" * 5, "d" * 100):
        log.add(text(payload))
    assert [len(kept.data) for kept in Transcript(log).entries] == [100]


def test_session_sees_its_own_entries(log: Log, transcript: Transcript) -> None:
    log.add(text("a", session="a"))
    log.add(text("b", session="b"))
    assert [kept.text for kept in Transcript(log, "a").received] == ["a"]
    Transcript(log, "a").clear()
    assert [kept.text for kept in transcript.received] == ["b"]
    transcript.clear()
    assert transcript.entries == []


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        ("echo_request", {}),
        ("echo_request", {"echo": "x", "reqId": "1"}),
        (EchoRequest, {"echo": "x"}),
        (lambda entry: entry.opcode == Opcode.TEXT, {}),
        (lambda entry: True, {"echo": "x"}),
    ],
)
def test_what_was_received_is_found(log: Log, transcript: Transcript, expected: Any, fields: Any) -> None:
    log.add(ECHO)
    assert transcript.assert_received(expected, timeout=0, **fields) is ECHO


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ("subscribe_request", {}),
        ("echo_request", {"echo": "y"}),
        ("echo_request", {"missing": None}),
        ("echo_request", {"count": 2}),
        ("echo_request", {"connection": "2"}),
        (lambda entry: False, {}),
    ],
)
def test_what_was_not_received_raises(log: Log, transcript: Transcript, expected: Any, options: Any) -> None:
    log.add(ECHO)
    with pytest.raises(AssertionError, match="not received"):
        transcript.assert_received(expected, timeout=0, **options)
    with pytest.raises(AssertionError, match="nothing was sent"):
        transcript.assert_sent("echo_request", timeout=0)


def test_failed_assertion_shows_what_came_instead(log: Log, transcript: Transcript) -> None:
    log.add(ECHO)
    with pytest.raises(AssertionError) as caught:
        transcript.assert_received("subscribe_request", topic="news", timeout=0)
    assert str(caught.value) == (
        "not received within 0 s: subscribe_request topic='news'\n"
        "1 frames were received, the last of them:\n"
        '   0.5000 #1 < text {"type":"echo_request","reqId":"1","echo":"x"}'
    )


def test_assertion_waits_for_what_comes_later(log: Log, transcript: Transcript) -> None:
    timer = threading.Timer(0.05, log.add, [ECHO])
    timer.start()
    assert transcript.assert_received("echo_request", timeout=10) is ECHO
    timer.join()


def test_close_frame_is_found_by_its_code(log: Log, transcript: Transcript) -> None:
    log.add(entry(close_frame(4000, "bye")))
    log.add(entry(Frame(Opcode.CLOSE)))
    assert transcript.assert_close_received(4000, timeout=0).reason == "bye"
    assert transcript.assert_close_received(1005, timeout=0).reason == ""
    with pytest.raises(AssertionError, match="a close frame with 1000"):
        transcript.assert_close_received(1000, timeout=0)


def test_json_has_text_bytes_and_codes(log: Log, transcript: Transcript) -> None:
    log.add(ECHO)
    log.add(entry(close_frame(1012, "deploy"), direction="sent"))
    log.add(entry(kind="bytes", direction="sent", data=b"\xff\x00"))
    log.add(entry(Frame(Opcode.TEXT, b"x", False, 4, b"mask"), direction="sent"))
    first, close, odd, masked = json.loads(transcript.to_json(indent=1))["entries"]
    assert (first["opcode"], first["name"], first["text"], first["final"]) == (1, "text", ECHO.text, True)
    assert first["at"] == "1970-01-01T00:00:00.000000Z"
    assert (close["code"], close["reason"]) == (1012, "deploy")
    assert odd["hex"] == "ff00"
    assert (masked["masked"], masked["reserved"], masked["final"]) == (True, 4, False)


def test_page_holds_nothing_that_a_browser_would_take_for_markup(log: Log, transcript: Transcript) -> None:
    log.add(text("<script>alert(1)</script>", session="<b>", note="<i>"))
    page = transcript.to_html("<title>")
    for markup in ("<script>", "<b>", "<i>", "<title><"):
        assert markup not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_page_shows_every_kind(log: Log, transcript: Transcript) -> None:
    log.add(entry(kind="handshake", data=b"GET / HTTP/1.1"))
    log.add(entry(Frame(Opcode.PING, b"\xff")))
    log.add(entry(Frame(11, b"", False)))
    log.add(entry(kind="end", note="reset"))
    page = transcript.to_html()
    for shown in ("GET / HTTP/1.1", "<td>ff</td>", "opcode 11 (not final)", "<td>reset</td>"):
        assert shown in page
