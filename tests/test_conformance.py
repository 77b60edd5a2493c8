"""The conformance report: each case passes for a good client and fails for one that is bad in exactly one way."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from realtime import Topic
from realtime.protocol import CLOSE_CODES, Reconnect, client_reconnect
from realtime.testing import DemoWebsocketServer
from realtime.testing.conformance import CASES, Level, Report, Result, Verdict, run
from realtime.testing.conformance.clients import Command
from realtime.testing.conformance.closes import CODES
from realtime.testing.conformance.command import add_arguments, run_command
from realtime.testing.conformance.messages import answered
from realtime.testing.conformance.returns import regular

from .conformance_clients.scripted import SCALE, Broken, Good, bad
from .conformance_docs import PAGE, case_rows, node_command
from .raw import BINARY, CONTINUATION, PONG, TEXT, frame

topic = Topic("conformance.{name}", public=True)
PATIENCE = 0.8
JOBS = 6
PRECISE = ("backoff-grows", "backoff-jitter", "returns-spread")
"""Cases in which a bad client is known by delays that are alike, for which the machine must not be too busy."""
TRIES = 5
"""How often a case is played again, by itself, that went otherwise: time is real here, and some machines are busy."""
PYTHON_CLIENT = [sys.executable, "-m", "tests.conformance_clients.realtime_client", "{url}"]


def crash(*_: object) -> None:
    raise RuntimeError("on purpose")


class TiresOfPings(Good):
    pings = 0

    def pinged(self, payload: bytes, within: bool) -> None:
        self.pings += 1
        if self.pings < 10:
            super().pinged(payload, within)


class ByOrder(Good):
    """Take an answer for that of the oldest request."""

    def answered(self, message: dict[str, Any]) -> None:
        waiting = next((each for each in self.waiting.values() if not each.done()), None)
        if waiting is not None:
            waiting.set_result(message.get("data"))


class Hasty(ByOrder):
    def timeout(self) -> float:
        return 1.5 * SCALE


class Strict(Good):
    """Know only what there was when it was written."""

    def message(self, text: str) -> None:
        message = json.loads(text)
        known = {"type", "reqId", "status", "data", "error", "timestamp", "uptime_seconds"}
        if message["type"] not in ("heartbeat", "echo_response", "subscribe_response") or message.keys() - known:
            raise RuntimeError("what is this?")
        super().message(text)

    def answered(self, message: dict[str, Any]) -> None:
        self.waiting.pop(message["reqId"]).set_result(message["data"])


def talks_after_close(self: Good, code: int) -> None:
    Good.send_close(self, code)
    self.writer.write(frame(TEXT, b"one more thing"))


def takes_no(*opcodes: int) -> Any:
    def received(self: Good, opcode: int, payload: bytes) -> None:
        if opcode in opcodes:
            raise RuntimeError(f"opcode {opcode}")

    return received


def takes_little(self: Good, opcode: int, payload: bytes) -> None:
    if len(payload) > 1 << 16:
        raise RuntimeError("too much")


def unmasked(self: Good, message: Any) -> bytes:
    text = json.dumps(message).encode()
    return bytes([0x81, len(text)]) + text


def piles_up(self: Good) -> list[Any]:
    return [ask for _ in range(self.connections) for ask in Good.subscribe(self)]


def objects_to_pongs(self: Good) -> None:
    raise Broken(1002)


never_back = bad(comes_back=lambda self, code: False)
always_back = bad(comes_back=lambda self, code: True)
leaky = bad(drop=lambda self: None)
careless = bad(check_head=lambda self, first, second: None)
without_pause = bad(delay=lambda self, code: 0.001)
BAD: dict[str, type[Good]] = {
    **{f"close-{code}": never_back if client_reconnect(code) is Reconnect.BACKOFF else always_back for code in CODES},
    "close-1013": bad(delay=lambda self, code: SCALE * self.backoff()),
    "drop-fin": never_back,
    "drop-rst": never_back,
    "drop-mid-frame": never_back,
    "half-close": leaky,
    "close-echo": bad(send_close=lambda self, code: Good.send_close(self, 1000)),
    "close-tcp": leaky,
    "close-then-quiet": bad(send_close=talks_after_close),
    "close-without-end": bad(goodbye=lambda self: 3600.0),
    "close-on-stop": bad(stop=lambda self: self.drop()),
    "backoff-grows": bad(backoff=lambda self: 4.0),
    "backoff-jitter": bad(backoff=lambda self: 2.0 * 2**self.failures),
    "no-hammering": without_pause,
    "no-hammering-closed": without_pause,
    "returns-spread": bad(backoff=lambda self: 25.0),
    "retry-after-503": bad(retry_after=lambda self, status, seconds: 0.0),
    "retry-after-429": bad(retry_after=lambda self, status, seconds: 0.0),
    "resubscribes": bad(subscribe=lambda self: Good.subscribe(self) if self.connections == 1 else []),
    "resubscribes-once": bad(
        subscribe=lambda self: [ask for _ in range(self.connections) for ask in Good.subscribe(self)]
    ),
    "slow-accept": bad(timeout=lambda self: 0.5 * SCALE if self.connections else 10 * SCALE),
    "never-answered": bad(timeout=lambda self: 3600.0),
    "wrong-subprotocol": bad(check_subprotocol=lambda self, subprotocol: None),
    "masks-frames": bad(encode=unmasked),
    "ping": bad(pinged=lambda self, payload, within: self.write(frame(PONG, b"pong"))),
    "ping-empty": bad(pinged=lambda self, payload, within: payload and self.write(frame(PONG, payload))),
    "pings-in-a-row": TiresOfPings,
    "pong-unasked": bad(ponged=objects_to_pongs),
    "fragments": bad(received=takes_no(CONTINUATION)),
    "ping-in-fragments": bad(pinged=lambda self, payload, within: within or self.write(frame(PONG, payload))),
    "binary": bad(received=takes_no(BINARY)),
    "large-message": bad(received=takes_little),
    "invalid-utf8": bad(decode=lambda self, payload: payload.decode(errors="replace")),
    "returns-after-failing": never_back,
    "reserved-bits": careless,
    "masked-frame": careless,
    "unknown-opcode": careless,
    "unknown-type": Strict,
    "unknown-fields": Strict,
    "invalid-json": Strict,
    "no-object": Strict,
    "req-ids": bad(next_id=lambda self: "1"),
    "answers-late": Hasty,
    "answers-reordered": ByOrder,
    "answers-twice": Strict,
    "answers-of-others": Strict,
    "answer-missing": bad(timeout=lambda self: 3600.0),
    "zombie": bad(silence=lambda self: 3600.0),
}
"""For each case the client that fails it."""


@pytest.fixture(scope="module")
def server() -> Iterator[DemoWebsocketServer]:
    with DemoWebsocketServer("127.0.0.1:0", heartbeat_interval=0.1) as server:
        yield server


def play(server: DemoWebsocketServer, client: type[Good], *cases: str, **options: Any) -> Report:
    return run(server, command=client, patience=PATIENCE, scale=SCALE, cases=cases, jobs=1, **options)


Outcomes = dict[tuple[str, bool], Future[Report]]


@pytest.fixture(scope="module")
def outcomes(server: DemoWebsocketServer) -> Iterator[Outcomes]:
    """Play every case to a good client and to its bad one, several at a time: most of it is waiting."""
    futures: Outcomes = {}
    with ThreadPoolExecutor(JOBS) as pool:
        for name in PRECISE:
            futures[name, False] = pool.submit(play, server, BAD[name], name)
            futures[name, False].exception()  # waits for it
        for name in CASES:
            futures[name, True] = pool.submit(play, server, Good, name)
            if name not in PRECISE:
                futures[name, False] = pool.submit(play, server, BAD[name], name)
        yield futures
        for future in futures.values():
            future.cancel()


def outcome(server: DemoWebsocketServer, outcomes: Outcomes, name: str, good: bool, expected: Verdict) -> Result:
    """Return what came of a case, of the first time that it was as expected if there is any."""
    [result] = outcomes[name, good].result(60).results
    for _ in range(TRIES):
        if result.verdict is expected:
            break
        result = only(play(server, Good if good else BAD[name], name))
    return result


@pytest.mark.parametrize("name", CASES)
def test_case_passes_for_a_good_client(server: DemoWebsocketServer, outcomes: Outcomes, name: str) -> None:
    result = outcome(server, outcomes, name, True, Verdict.PASSED)
    assert (result.verdict, result.name) == (Verdict.PASSED, name), (result.text, result.output, result.evidence)
    assert result.text
    assert result.evidence


@pytest.mark.parametrize("name", CASES)
def test_case_fails_for_a_client_that_is_bad_at_it(server: DemoWebsocketServer, outcomes: Outcomes, name: str) -> None:
    result = outcome(server, outcomes, name, False, Verdict.FAILED)
    assert result.verdict is Verdict.FAILED, (result.text, result.output, result.evidence)
    assert result.evidence


def test_table_of_close_codes_is_covered() -> None:
    assert set(CLOSE_CODES) - {1006} <= set(CODES)
    assert {"drop-fin", "drop-rst"} <= CASES.keys()


# What is not observed


def only(report: Report) -> Result:
    [result] = report.results
    return result


class Silent(Good):
    """Connect, answer pings, and say nothing."""

    async def work(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resubscribes", "it subscribed to nothing"),
        ("resubscribes-once", "it subscribed to nothing"),
        ("req-ids", "it sent 0 requests, and two are needed"),
        ("answers-late", "it sent no echo request after another"),
        ("answer-missing", "it sent no echo request after another"),
        ("masks-frames", "it sent nothing"),
    ],
)
def test_what_a_client_does_not_do_is_not_held_against_it(server: DemoWebsocketServer, name: str, said: str) -> None:
    result = only(play(server, Silent, name))
    assert (result.verdict, result.text) == (Verdict.NOT_OBSERVED, said)


def test_client_that_does_not_tell_how_it_matches_is_not_observed(server: DemoWebsocketServer) -> None:
    def echo(self: Good, text: str) -> Any:
        return self.ask(type="echo_request", echo=text.replace("answered", "have"))

    result = only(play(server, bad(echo=echo), "answers-reordered"))
    assert (result.verdict, "does not tell" in result.text) == (Verdict.NOT_OBSERVED, True)


def test_client_that_never_connects_is_not_observed(server: DemoWebsocketServer) -> None:
    report = run(server, command=[sys.executable, "-c", "print('no <way>')"], cases=["ping", "zombie"], patience=0.2)
    assert {result.verdict for result in report.results} == {Verdict.NOT_OBSERVED}
    assert "its process ended with status 0" in report.results[0].text
    assert report.results[0].output == "no <way>\n"
    assert not report.passed, "nothing was seen of it"


def test_case_that_breaks_is_not_held_against_the_client(
    server: DemoWebsocketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.testing.conformance.stage.Stage.answers_ping", crash)
    result = only(play(server, Good, "ping"))
    assert (result.verdict, result.text) == (
        Verdict.NOT_OBSERVED,
        "the case itself broke: RuntimeError('on purpose')",
    )


def test_topic_that_was_refused_need_not_be_asked_for_again(server: DemoWebsocketServer) -> None:
    def subscribe(self: Good) -> list[Any]:
        topics = ["heartbeat", "no such topic"] if self.connections == 1 else ["heartbeat"]
        return [self.ask(type="subscribe_request", topic=topic) for topic in topics]

    assert only(play(server, bad(subscribe=subscribe), "resubscribes")).verdict is Verdict.PASSED


# A run


def test_run_by_hand_tells_when_to_start_the_client() -> None:
    told: list[str] = []
    clients: list[Good] = []

    def tell(text: str) -> None:
        told.append(text)
        if "waiting for the client" in text and (not clients or clients[-1].ended):
            clients.append(Good())
            clients[-1].start(text.split(" to connect to ")[1].split(" ")[0])
        elif "stop the client" in text:
            clients[-1].ask_to_stop()

    cases = ["close-1000", "close-on-stop", "close-1012", "ping", "close-1008", "resubscribes"]
    report = run("127.0.0.1:0", cases=cases, patience=PATIENCE, scale=SCALE, tell=tell)
    for client in clients:
        client.end()
    assert report.summary == "6 passed, 0 failed, 0 not observed"
    assert report.client == "a client started by hand"
    assert report.user_agent == "scripted"
    assert len(clients) == 4, "it is started again only where it has ended"


def test_report_keeps_the_order_of_the_cases(server: DemoWebsocketServer) -> None:
    report = run(server, command=Good, patience=PATIENCE, scale=SCALE, cases=["ping", "close-1000"], jobs=2)
    assert [result.name for result in report.results] == ["close-1000", "ping"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cases": ["pong"]}, "no case 'pong'; there are close-1000"),
        ({"skip": ["pong"]}, "no case 'pong'"),
        ({"patience": 0}, "patience"),
        ({"scale": 0}, "scale"),
        ({"jobs": 0}, "jobs"),
        ({"command": ""}, "empty"),
        ({"command": "no-such-command {url}"}, "cannot be found: 'no-such-command'"),
    ],
)
def test_what_cannot_be_raises(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        run("127.0.0.1:0", **options)


def test_command_is_told_the_url_and_the_scale() -> None:
    script = "import os, sys; print(sys.argv[1:], os.environ['DEMOWS_URL'], os.environ['DEMOWS_SCALE'])"
    command = Command(f"{sys.executable} -c {shlex.quote(script)} {{url}} --scale={{scale}}", 0.5)
    command.start("ws://localhost:1/")
    assert command._process is not None
    command._process.wait(10)
    assert command.output == "['ws://localhost:1/', '--scale=0.5'] ws://localhost:1/ 0.5\n"
    command.end()


def test_command_that_is_a_wrapper_is_ended_with_what_it_started() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'], stdin=0)"
    command = Command([sys.executable, "-c", script.replace("stdin=0", "stdin=subprocess.PIPE")], 1)
    command.start("")
    command.end()
    assert command.ended is None, "that it was ended is not its own doing"
    command.end()


def test_own_python_client_passes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMOWS_SEED", "1")
    files = {name: tmp_path / f"report.{name}" for name in ("html", "junit", "json")}
    options = [item for name, path in files.items() for item in (f"--{name}", str(path))]
    status = run_command(["--fast", "--client", shlex.join(PYTHON_CLIENT), "--jobs", "6", *options])
    failed = [result for result in json.loads(files["json"].read_text())["results"] if result["verdict"] != "passed"]
    assert failed == []
    assert status == 0
    assert ElementTree.parse(files["junit"]).getroot()[0].attrib["failures"] == "0"
    assert files["html"].read_text().count("<tr class=") == len(CASES)


def test_own_javascript_client_passes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMOWS_SEED", "1")
    # Browsers hide how a handshake was refused, and Node's WebSocket leaks a connection that it has failed.
    skip = ["retry-after-503", "retry-after-429", "wrong-subprotocol"]
    report = run(command=node_command("realtime_client.mjs"), patience=2, scale=0.1, skip=skip, jobs=6)
    assert [result for result in report.results if result.verdict is not Verdict.PASSED] == []


# The report


def a_report() -> Report:
    evil = "<script>alert(1)</script>&\x00\ud800"
    entry = {
        "direction": "received",
        "kind": "frame",
        "at": "2026-11-22T17:08:01.670383Z",
        "connection": "1",
        "text": evil,
    }
    results = [
        Result(f"{verdict} {evil}", Level.MUST, evil, verdict, evil, 1.5, (entry,), evil)
        for verdict in (Verdict.PASSED, Verdict.FAILED, Verdict.FAILED, Verdict.NOT_OBSERVED)
    ]
    return Report(evil, evil, 8.0, 1.0, "2026-11-22T17:08:01Z", 9.5, tuple(results))


def test_junit_counts_and_holds_what_was_seen() -> None:
    suite = ElementTree.fromstring(a_report().to_junit())[0]
    counts = {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped", "time")}
    assert counts == {"tests": "4", "failures": "2", "errors": "0", "skipped": "1", "time": "9.500"}
    assert [[child.tag for child in case] for case in suite] == [
        ["system-out"],
        ["failure", "system-out"],
        ["failure", "system-out"],
        ["skipped", "system-out"],
    ]
    failure = suite[1][0]
    assert failure.attrib["message"] == "<script>alert(1)</script>&\ufffd\ufffd"
    assert "17:08:01.670 #1 client: frame <script>" in str(failure.text)


def test_page_is_whole_and_escapes_everything() -> None:
    page = a_report().to_html()
    assert "1 passed, 2 failed, 1 not observed" in page
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10
    links: list[str] = []

    class Look(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            links.extend(value for name, value in attributes if name in ("href", "src"))

    Look().feed(page)
    assert links == [], "it needs nothing else"
    page.encode("utf-8", "replace")


def test_json_holds_everything() -> None:
    content = json.loads(a_report().to_json())
    assert content["counts"] == {"passed": 1, "failed": 2, "not observed": 1}
    assert [result["verdict"] for result in content["results"]] == ["passed", "failed", "failed", "not observed"]


def test_report_passes_unless_something_failed() -> None:
    assert not a_report().passed


# The command


def test_command_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CASES)


@pytest.mark.parametrize(
    ("options", "status"), [([], 1), (["--must"], 0), (["--skip", "ping-empty"], 1), (["--skip", "no-object"], 0)]
)
def test_command_ends_with_1_when_a_case_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], status: int
) -> None:
    monkeypatch.setattr("realtime.testing.conformance.runner.Command", lambda command, scale: Strict())
    chosen = ["--only", "ping-empty", "--only", "no-object", "--patience", "0.5", "--scale", str(SCALE)]
    assert run_command(["--client", "strict", *chosen, *options]) == status
    assert " failed, 0 not observed, in " in capsys.readouterr().out


def test_command_ends_with_1_when_nothing_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--client", f"{sys.executable} -c 1", "--only", "ping", "--patience", "0.1"]) == 1


@pytest.mark.parametrize("options", [["--only", "pong"], ["--address", "nowhere"], ["--patience", "-1"]])
def test_command_ends_with_2_for_what_cannot_be(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert run_command(["--client", "true", *options]) == 2
    assert capsys.readouterr().err.startswith("conformance: ")


# Small parts


@pytest.mark.parametrize(
    ("gaps", "is_regular"),
    [
        ([1, 1, 1, 1], True),
        ([1, 2, 4, 8], True),
        ([1, 2, 4, 4, 4], True),
        ([1, 1.5, 2.25, 3.375], True),
        ([1, 2, 3, 4], True),
        ([0.001, 0.004, 0.001, 0.02], True),
        ([1.02, 1.99, 4.05, 8.1], True),
        ([0.3, 1.9, 1.1, 6.2], False),
        ([0.9, 0.2, 3.1, 2.0], False),
    ],
)
def test_regular_delays_are_told_from_those_with_chance(gaps: list[float], is_regular: bool) -> None:
    assert regular(gaps) is is_regular


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ('answered [["a","b"]]', [("a", "b")]),
        ("answered []", []),
        ("answered [1]", []),
        ("answered nonsense", []),
        ("hello", []),
        (7, []),
    ],
)
def test_answered_pairs_are_read(text: object, pairs: list[tuple[str, str]]) -> None:
    assert answered(text) == pairs


def test_every_case_has_a_sentence() -> None:
    for case in CASES.values():
        assert case.rule.endswith(".")


def test_guide_lists_every_case_and_what_came_of_it() -> None:
    page = PAGE.read_text()
    assert case_rows() in page
    results = page.split("<!-- results -->")[1]
    assert re.findall(r"^\| `([\w-]+)` \| ", results, re.MULTILINE) == list(CASES)


def test_guide_lists_every_option() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    assert options - {"--help"} <= set(re.findall(r"--[a-z]+", PAGE.read_text()))


def test_run_that_is_interrupted_ends_its_clients(server: DemoWebsocketServer) -> None:
    clients: list[Good] = []

    def make() -> Good:
        clients.append(Good())
        return clients[-1]

    def tell(text: str) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(server, command=make, patience=30, cases=["ping", "close-1000", "zombie"], jobs=3, tell=tell)
    assert time.monotonic() - began < 30
    assert not any(client.alive for client in clients)
