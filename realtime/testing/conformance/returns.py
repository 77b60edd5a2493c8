"""Cases of how a client comes back: how soon, how often, and what it asks for again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..faults import CloseFrame, NeverAnswer, Refuse, SlowAccept, WrongSubprotocol
from ..transcript import Entry
from .stage import Stage
from .verdicts import Cases, Failed, Level, NotObserved

RETURNS = Cases()

REFUSALS = 6
"""How many attempts are looked at to see whether delays grow."""
RETURNS_SEEN = 5
"""How many returns are looked at to see whether there is chance in them."""
MORE_REFUSALS = 10
"""How many are looked at where chance may have hidden that they do."""
ALIKE = 0.06
"""By how much of itself a delay may be off and still be the same, as no clock and no scheduler is exact."""
LEAST_ALIKE = 0.03
"""The same in seconds, for short delays."""


@RETURNS.case(
    "backoff-grows",
    Level.SHOULD,
    "Refused again and again with 503, the client waits longer each time, so that a server in trouble can recover.",
)
def _backoff_grows(stage: Stage) -> str:
    _refuse_from_now_on(stage)
    gaps: list[float] = []
    for count in (REFUSALS, MORE_REFUSALS):
        gaps, pending = _refused_gaps(stage, count, stage.times.timeout * 2)
        if len(gaps) < count:
            gaps = [*gaps, pending]  # it is at least that long
        if _grows(gaps):
            return f"its delays grew: {_list(gaps)}"
        if regular(gaps):
            break
    raise Failed(f"its delays did not grow: {_list(gaps)}")


def _grows(gaps: Sequence[float]) -> bool:
    """Return whether the longest delay of the later half is clearly longer than that of the first."""
    half = len(gaps) // 2
    return max(gaps[half:]) >= 1.2 * max(gaps[:half]) + LEAST_ALIKE


@RETURNS.case(
    "backoff-jitter",
    Level.SHOULD,
    "The delays have chance in them, so that all who were dropped together do not come back together.",
)
def _backoff_jitter(stage: Stage) -> str:
    _refuse_from_now_on(stage)
    gaps, _ = _refused_gaps(stage, REFUSALS - 1, stage.times.timeout)
    if len(gaps) < 3:
        raise NotObserved(f"there were too few delays to tell: {_list(gaps)}")
    if regular(gaps):
        raise Failed(f"its delays follow a rule that all clients share: {_list(gaps)}")
    return f"its delays had chance in them: {_list(gaps)}"


@RETURNS.case(
    "no-hammering",
    Level.MUST,
    "While it is refused, the client tries at most about once a second, and does not become an attack.",
)
def _no_hammering(stage: Stage) -> str:
    _refuse_from_now_on(stage)
    before = len(stage.attempts)
    stage.wait(lambda entries: None, stage.times.patience)
    count = len(stage.attempts) - before
    most = 5 + stage.times.patience / stage.times.scale
    if count > most:
        raise Failed(f"it tried {count} times in {stage.times.patience:g} s")
    if count == 0:
        raise Failed("it did not try again after it was refused")
    return f"it tried {count} times in {stage.times.patience:g} s"


@RETURNS.case(
    "no-hammering-closed",
    Level.SHOULD,
    "Accepted and closed at once, again and again, the client does not take that for success and try without a pause.",
)
def _no_hammering_closed(stage: Stage) -> str:
    stage.set_faults([CloseFrame(code=1012, reason="restart", from_connection=2)])
    connection = stage.connect()
    before = stage.hang_up(connection, 1012)
    stage.comes_back(before)
    stage.wait(lambda entries: None, stage.times.patience)
    count = len(stage.attempts) - before
    if count > 5 + stage.times.patience / stage.times.scale:
        raise Failed(f"it tried {count} times in {stage.times.patience:g} s")
    return f"it tried {count} times in {stage.times.patience:g} s"


@RETURNS.case(
    "returns-spread",
    Level.SHOULD,
    "After a restart (1012) the client comes back after a moment by chance, so that not all clients come at once.",
)
def _returns_spread(stage: Stage) -> str:
    connection, delays = stage.connect(), []
    for _ in range(RETURNS_SEEN):
        before = stage.hang_up(connection, 1012)
        delays.append(stage.comes_back(before, stage.times.timeout))
        connection = stage.is_back(before)
        stage.settle(connection)
    if regular(delays):
        raise Failed(f"there is no chance in when it came back: {_list(delays)}")
    return f"it came back after {_list(delays)}"


def _refuse_from_now_on(stage: Stage) -> None:
    """Let the client connect, drop the connection, and refuse every attempt from then on."""
    stage.set_faults([Refuse(status=503, after=1)])
    connection = stage.connect()
    stage.comes_back(stage.hang_up(connection, 1006))


def _refused_gaps(stage: Stage, count: int, seconds: float) -> tuple[list[float], float]:
    """
    Return the seconds between attempts that are all refused, ``count`` of them or as many as come, and those since.

    Raises ``Failed`` when the client gives up at once.
    """

    def enough(entries: list[Entry]) -> bool | None:
        return True if len(stage.attempts) > count + 1 else None

    stage.wait(enough, seconds)
    now, times = time.time(), [entry.at for entry in stage.attempts[1:]]
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)][:count]
    if not gaps:
        raise Failed(f"it gave up after it was refused: it did not try again within {now - times[-1]:.1f} s")
    return gaps, now - times[-1]


def regular(gaps: Sequence[float]) -> bool:
    """Return whether delays are all alike, or grow by the same factor or the same amount until they are all alike."""
    ratio, step = gaps[1] / max(gaps[0], 1e-9), gaps[1] - gaps[0]
    rules: list[Callable[[float], float]] = [lambda gap: gap * ratio, lambda gap: gap * 2, lambda gap: gap + step]
    steps = list(zip(gaps, gaps[1:], strict=False))
    return any(all(_alike(after, gap) or _alike(after, rule(gap)) for gap, after in steps) for rule in rules)


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= max(LEAST_ALIKE, ALIKE * max(one, other))


def _list(gaps: Sequence[float]) -> str:
    return ", ".join(f"{gap:.2f}" for gap in gaps) + " s"


def _heeds_retry_after(stage: Stage, status: int) -> str:
    asked = max(1, round(6 * stage.times.scale))  # longer than what most clients wait at first
    stage.set_faults([Refuse(status=status, retry_after=asked, after=1, times=1)])
    connection = stage.connect()
    before = stage.hang_up(connection, 1006)
    stage.comes_back(before)
    refused = stage.attempts[before]
    seconds = stage.comes_back(before + 1, asked + stage.times.patience, since=refused.at)
    if seconds < asked:
        raise Failed(f"it tried again after {seconds:.2f} s, where Retry-After asked for {asked} s")
    return f"it tried again after {seconds:.2f} s, as Retry-After asked for {asked} s"


@RETURNS.case(
    "retry-after-503",
    Level.SHOULD,
    "After a 503 with Retry-After the client comes back, and not before that time (RFC 9110, section 10.2.3).",
)
def _retry_after_503(stage: Stage) -> str:
    return _heeds_retry_after(stage, 503)


@RETURNS.case(
    "retry-after-429",
    Level.SHOULD,
    "After a 429 with Retry-After the client comes back, and not before that time (RFC 6585, section 4).",
)
def _retry_after_429(stage: Stage) -> str:
    return _heeds_retry_after(stage, 429)


@RETURNS.case(
    "resubscribes",
    Level.MUST,
    "When the client is back, it subscribes again to all that it had: the server knows nothing of the old connection.",
)
def _resubscribes(stage: Stage) -> str:
    connection = stage.connect()
    if stage.wait_for_request(connection, "subscribe_request") is None:
        raise NotObserved("it subscribed to nothing")
    stage.answers_ping(connection)  # by then it has sent what it sends at once
    stage.wait(lambda entries: stage.all_answered(connection) or None, stage.times.patience)
    had = stage.subscriptions(connection)
    if not had:
        raise NotObserved("all that it asked for was refused")
    again = stage.is_back(stage.hang_up(connection, 1006))
    stage.wait(lambda entries: had <= set(stage.asked_for(again)) or None, stage.times.patience)
    if lost := had - set(stage.asked_for(again)):
        raise Failed(f"it did not subscribe again to {', '.join(sorted(lost))}")
    return f"it subscribed again to {', '.join(sorted(had))}"


@RETURNS.case(
    "resubscribes-once",
    Level.SHOULD,
    "It subscribes to each topic once a connection, and does not pile up requests with each return.",
)
def _resubscribes_once(stage: Stage) -> str:
    connection = stage.connect()
    if stage.wait_for_request(connection, "subscribe_request") is None:
        raise NotObserved("it subscribed to nothing")
    for _ in range(2):
        connection = stage.is_back(stage.hang_up(connection, 1006), stage.times.timeout)
        if stage.wait_for_request(connection, "subscribe_request") is None:
            raise NotObserved("it did not subscribe again")
    stage.answers_ping(connection)
    topics = stage.asked_for(connection)
    if twice := sorted({topic for topic in topics if topics.count(topic) > 1}):
        raise Failed(f"on its third connection it subscribed more than once to {', '.join(twice)}")
    return f"on its third connection it subscribed once to {', '.join(sorted(topics))}"


@RETURNS.case(
    "slow-accept",
    Level.SHOULD,
    "When the handshake takes two seconds, the client waits for it and does not give up and try anew all the time.",
)
def _slow_accept(stage: Stage) -> str:
    seconds = 2.0 * stage.times.scale
    stage.set_faults([SlowAccept(seconds=seconds, after=1, times=1)])
    connection = stage.connect()
    before = stage.hang_up(connection, 1006)
    stage.comes_back(before)
    opened = stage.opened(before, seconds + stage.times.patience)
    if opened is None or opened != stage.attempts[before].connection:
        raise Failed(f"it did not wait {seconds:g} s for its handshake to be answered")
    return f"it waited {seconds:g} s for its handshake to be answered"


@RETURNS.case(
    "never-answered",
    Level.SHOULD,
    "When the handshake is never answered, the client gives up after a while and tries again.",
)
def _never_answered(stage: Stage) -> str:
    stage.set_faults([NeverAnswer(after=1, times=1)])
    connection = stage.connect()
    before = stage.hang_up(connection, 1006)
    stage.comes_back(before)
    return f"it tried again after {stage.comes_back(before + 1, stage.times.timeout):.2f} s"


@RETURNS.case(
    "wrong-subprotocol",
    Level.MUST,
    "A client fails the connection when a subprotocol comes that it has not offered (RFC 6455, section 4.1).",
)
def _wrong_subprotocol(stage: Stage) -> str:
    stage.set_faults([WrongSubprotocol(times=1)])
    connection = stage.connect(silent=True)
    stage.wait_for_frame(connection, lambda entry: entry.code is None)
    sent = [entry for entry in stage.received(connection) if entry.code is None]
    if sent:
        raise Failed("it took the subprotocol, and sent messages")
    if stage.end_of(connection, 0) is None:
        raise Failed("it kept the connection open")
    return "it ended the connection"
