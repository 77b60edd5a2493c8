"""A run: one case after the other, or several side by side where each has a client of its own."""

from __future__ import annotations

import logging
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ..server import DemoWebsocketServer
from ..transcript import Entry
from .cases import choose
from .clients import ByHand, Command, MakeClient
from .report import Report
from .stage import Stage, Times
from .verdicts import Case, Failed, NotObserved, Result, Verdict

logger = logging.getLogger("realtime.testing")

HEARTBEAT = 1.0
"""Seconds between the heartbeats of a server that a run starts, so that a client is seen to be alive soon."""
JOBS = 4
"""Cases that are played side by side."""
EVIDENCE = 40
"""Entries of the transcript that a result keeps of the beginning, and as many of the end."""
CONTENT = 400
"""Characters of each that it keeps."""
BY_HAND = 600.0
"""Seconds that an author has to start a client again."""
_AGENT = "user-agent:"


def run(
    server_or_address: DemoWebsocketServer | str = "localhost:0",
    *,
    command: str | Sequence[str] | MakeClient | None = None,
    patience: float = 8.0,
    scale: float = 1.0,
    cases: Iterable[str] = (),
    skip: Iterable[str] = (),
    jobs: int = JOBS,
    tell: Callable[[str], object] = logger.info,
) -> Report:
    """
    Play ``cases`` (all by default, but for ``skip``) to a client, and return what was seen of it.

    ``command`` starts the client: once for each case, in a process of its own, with ``{url}`` and ``{scale}`` filled
    in, which are also in the environment as ``DEMOWS_URL`` and ``DEMOWS_SCALE``. A function is called instead for
    each case, and returns a ``Client``. Without a command, ``tell`` is told when the client is to be started by hand.

    ``patience`` is how many seconds the client has to do what it should, and is watched for what it should not.
    ``scale`` shortens the client's own delays, as far as it heeds that, and what the protocol asks of them. ``jobs``
    cases are played side by side, by hand always one. Raises ``ValueError`` for what cannot be.
    """
    if not 0 < patience <= 3600 or not 0 < scale <= 10:
        raise ValueError(f"patience is up to 3600 s and scale up to 10, but they are {patience!r} and {scale!r}")
    if jobs < 1:
        raise ValueError(f"at least one case is played at a time, but jobs is {jobs!r}")
    chosen = choose(cases, skip)
    make = command if callable(command) else None
    if make is None and command is not None:
        given: Any = command
        Command(given, scale)  # so that a command that cannot be is told at once
        make = lambda: Command(given, scale)  # noqa: E731
    session = "" if isinstance(server_or_address, str) else "conformance"  # other clients may use a server of others
    with _started(server_or_address) as server:
        return _Run(server, make, Times(patience, scale), tell, _name(command), session).play(chosen, jobs)


@contextmanager
def _started(server_or_address: DemoWebsocketServer | str) -> Iterator[DemoWebsocketServer]:
    if isinstance(server_or_address, str):
        with DemoWebsocketServer(server_or_address, heartbeat_interval=HEARTBEAT) as server:
            yield server
    else:
        yield server_or_address


def _name(command: object) -> str:
    if command is None:
        return "a client started by hand"
    if isinstance(command, str):
        return command
    return shlex.join(command) if isinstance(command, Sequence) else getattr(command, "__name__", repr(command))


class _Run:
    def __init__(
        self,
        server: DemoWebsocketServer,
        make: MakeClient | None,
        times: Times,
        tell: Callable[[str], object],
        name: str,
        session: str,
    ) -> None:
        self._server, self._make, self._times, self._tell, self._name = server, make, times, tell, name
        self._session = session
        """The session of a client that is started by hand."""
        self._run_id = secrets.token_hex(4)
        self._agent = ""
        self._stages: set[Stage] = set()

    def play(self, cases: Sequence[Case], jobs: int) -> Report:
        """Play the cases, and report in their order."""
        started, began = datetime.now(UTC), time.monotonic()
        results = self._play_by_hand(cases) if self._make is None else self._play_side_by_side(cases, jobs)
        return Report(
            client=self._name,
            user_agent=self._agent,
            patience=self._times.patience,
            scale=self._times.scale,
            started=started.isoformat(timespec="seconds").replace("+00:00", "Z"),
            seconds=time.monotonic() - began,
            results=tuple(results),
        )

    def _play_side_by_side(self, cases: Sequence[Case], jobs: int) -> list[Result]:
        with ThreadPoolExecutor(jobs, "conformance") as pool:
            try:
                return list(pool.map(self._play_alone, cases))
            except BaseException:  # such as KeyboardInterrupt: what is being played ends as well
                pool.shutdown(wait=False, cancel_futures=True)
                for stage in list(self._stages):
                    stage.abandon()
                raise

    def _play_alone(self, case: Case) -> Result:
        """Play a case in a session of its own, with a client of its own."""
        assert self._make is not None
        return self._play(
            case, Stage(self._server, f"conformance-{self._run_id}-{case.name}", self._make(), self._times)
        )

    def _play_by_hand(self, cases: Sequence[Case]) -> list[Result]:
        """Play cases one after the other in one session, since the client's URL cannot change."""
        times = Times(self._times.patience, self._times.scale, start=BY_HAND)
        return [self._play(case, Stage(self._server, self._session, ByHand(self._tell), times)) for case in cases]

    def _play(self, case: Case, stage: Stage) -> Result:
        began = time.monotonic()
        self._stages.add(stage)
        stage.reset()
        try:
            verdict, text = Verdict.PASSED, case.script(stage)
        except Failed as error:
            verdict, text = Verdict.FAILED, str(error)
        except NotObserved as error:
            verdict, text = Verdict.NOT_OBSERVED, str(error)
        except Exception as error:
            logger.exception("event=conformance_case_broke case=%s", case.name)
            verdict, text = Verdict.NOT_OBSERVED, f"the case itself broke: {error!r}"
        entries, output = stage.transcript.entries, stage.client.output
        stage.client.end()
        self._stages.discard(stage)
        stage.reset()
        self._agent = self._agent or _user_agent(entries)
        result = Result(
            name=case.name,
            level=case.level,
            rule=case.rule,
            verdict=verdict,
            text=text,
            seconds=time.monotonic() - began,
            evidence=tuple(_cut(entry) for entry in _ends(entries)),
            output=output,
        )
        self._tell(f"{verdict:>12}  {case.name}: {text}")
        return result


def _ends(entries: list[Entry]) -> list[Entry]:
    return entries if len(entries) <= 2 * EVIDENCE else entries[:EVIDENCE] + entries[-EVIDENCE:]


def _cut(entry: Entry) -> dict[str, Any]:
    fields = entry.to_dict()
    for name in ("text", "hex"):
        if len(fields.get(name, "")) > CONTENT:
            fields[name] = f"{fields[name][:CONTENT]}…"
    return fields


def _user_agent(entries: Sequence[Entry]) -> str:
    for entry in entries:
        if entry.kind == "handshake" and entry.direction == "received":
            for line in entry.data.decode(errors="replace").splitlines():
                if line.lower().startswith(_AGENT):
                    return line[len(_AGENT) :].strip()
    return ""
