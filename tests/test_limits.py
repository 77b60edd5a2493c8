"""The limits: requests a second, connections of one kind, and the address that is believed."""

from __future__ import annotations

import math
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import limits
from realtime.conf import Settings
from realtime.limits import ADDRESS, FULL, USER, Bucket, Count, Door, address_of

# Requests a second


class Clock:
    """Be the time, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the limits see."""
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def taken(bucket: Bucket, tries: int) -> int:
    """Try at once, and return how many got a token."""
    return sum(bucket.take() == 0 for _ in range(tries))


def test_bucket_lets_a_burst_through_and_no_more(clock: Clock) -> None:
    assert taken(Bucket(rate=10, burst=5), 8) == 5


def test_bucket_says_when_there_is_a_token_again(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=1)
    assert bucket.take() == 0
    wait = bucket.take()
    assert wait > 0
    clock.now += wait - 0.001
    assert Bucket(rate=10, burst=1).take() == 0  # the other's business
    clock.now += 0.002
    assert bucket.take() == 0


def test_bucket_has_no_token_before_it_said(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=1)
    bucket.take()
    wait = bucket.take()
    clock.now += wait - 0.001
    assert bucket.take() > 0


def test_bucket_takes_a_token_from_who_finds_none_as_well(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=1)
    waits = [bucket.take() for _ in range(4)]
    assert waits == [0.0, *(pytest.approx((1 + debt) / 10) for debt in (1, 2, 3))]


def test_bucket_that_is_left_alone_holds_the_burst_again_and_no_more(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=5)
    taken(bucket, 8)
    clock.now += 1000
    assert taken(bucket, 8) == 5


def test_bucket_lets_through_whoever_keeps_to_the_rate(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=1)
    for _ in range(1000):
        assert bucket.take() == 0
        clock.now += 0.11


def test_bucket_lets_through_a_rate_below_one_a_second(clock: Clock) -> None:
    bucket = Bucket(rate=0.1, burst=1)
    assert taken(bucket, 1) == 1
    clock.now += 10.001
    assert taken(bucket, 1) == 1


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 5) | st.just(0.0), min_size=1, max_size=200),
)
def test_bucket_lets_no_more_through_than_burst_and_rate_at_any_times(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "time", clock)
        bucket = Bucket(rate, burst)
        passed = []
        for pause in pauses:
            clock.now += pause
            if bucket.take() == 0:
                passed.append(clock.now)
    for first, began in enumerate(passed):  # over any stretch of time, and not the whole alone
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - began) + 1


@given(st.floats(0.1, 1000), st.integers(1, 50), st.lists(st.floats(0, 5), max_size=50))
def test_bucket_has_a_token_after_any_wait_that_it_asks_for(rate: float, burst: int, pauses: list[float]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "time", clock)
        bucket = Bucket(rate, burst)
        for pause in pauses:
            clock.now += pause
            if wait := bucket.take():
                assert math.isfinite(wait)
                clock.now += wait * 1.000001 + 1e-6
                assert bucket.take() == 0


def press(bucket: Bucket, clock: Clock, seconds: float, every: float) -> float:
    """Ask every so often for so long, and return for how long it says to be flooded, at the last request refused."""
    flooded = 0.0
    end = clock.now + seconds
    while clock.now <= end:
        if bucket.take():
            flooded = bucket.flooded_for
        clock.now += every
    return flooded


def test_flooding_begins_with_the_first_request_refused(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=5)
    clock.now += 500
    taken(bucket, 5)
    assert bucket.take() > 0
    assert bucket.flooded_for == 0


def test_flooding_is_counted_while_it_goes_on(clock: Clock) -> None:
    assert press(Bucket(rate=10, burst=5), clock, seconds=20, every=0.05) == pytest.approx(20, abs=1)


def test_flooding_is_counted_for_who_asks_much_and_waits_as_told(clock: Clock) -> None:
    bucket = Bucket(rate=100, burst=10)
    taken(bucket, 10)
    began = clock.now
    while clock.now < began + 12:
        clock.now += bucket.take()
    assert bucket.take() > 0 or bucket.take() > 0
    assert bucket.flooded_for == pytest.approx(12, abs=1)


def test_flooding_is_over_after_a_pause(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=5)
    press(bucket, clock, seconds=8, every=0.05)
    clock.now += 120
    taken(bucket, 5)
    assert bucket.take() > 0
    assert bucket.flooded_for == 0


def test_flooding_is_not_what_bursts_with_pauses_are(clock: Clock) -> None:
    bucket = Bucket(rate=10, burst=5)
    for _ in range(20):
        assert taken(bucket, 6) == 5  # one too many each time
        assert bucket.flooded_for == 0
        clock.now += 3


# Connections


def door(**limited: int) -> Door:
    return Door(Settings(**({"MAX_CONNECTIONS": None} | limited)))


def test_door_without_limits_lets_everybody_in() -> None:
    open_door = door()
    assert {open_door.enter("192.0.2.1") for _ in range(2000)} == {None}
    assert {open_door.enter_as("ada") for _ in range(2000)} == {None}


def test_door_lets_in_as_many_as_the_process_takes() -> None:
    full = door(MAX_CONNECTIONS=2)
    assert [full.enter(f"192.0.2.{number}") for number in range(4)] == [None, None, FULL, FULL]


def test_door_lets_in_as_many_as_an_address_may_have() -> None:
    narrow = door(MAX_CONNECTIONS_PER_ADDRESS=2)
    assert [narrow.enter("192.0.2.1") for _ in range(3)] == [None, None, ADDRESS]
    assert narrow.enter("192.0.2.2") is None


def test_door_lets_in_as_many_as_a_user_may_have() -> None:
    narrow = door(MAX_CONNECTIONS_PER_USER=2)
    assert [narrow.enter_as("7") for _ in range(3)] == [None, None, USER]
    assert narrow.enter_as("8") is None


def test_door_counts_nobody_in_particular_for_no_user() -> None:
    narrow = door(MAX_CONNECTIONS_PER_USER=1)
    assert [narrow.enter_as("") for _ in range(3)] == [None] * 3


def test_door_counts_an_unknown_address_for_no_address() -> None:
    narrow = door(MAX_CONNECTIONS_PER_ADDRESS=1)
    assert [narrow.enter("") for _ in range(3)] == [None] * 3


def test_door_does_not_mix_up_an_address_and_a_user() -> None:
    narrow = door(MAX_CONNECTIONS_PER_ADDRESS=1, MAX_CONNECTIONS_PER_USER=1)
    assert narrow.enter("7") is None
    assert narrow.enter_as("7") is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("2001:DB8::1", "2001:db8:0:0::1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("/run/socket", "/run/socket", True),
        ("/run/socket", "/run/other", False),
    ],
)
def test_door_takes_for_one_client_what_one_subscriber_has(first: str, second: str, same: bool) -> None:
    narrow = door(MAX_CONNECTIONS_PER_ADDRESS=1)
    assert narrow.enter(first) is None
    assert narrow.enter(second) is (ADDRESS if same else None)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "/run/socket"])
def test_door_has_room_again_for_an_address_that_left(address: str) -> None:
    narrow = door(MAX_CONNECTIONS_PER_ADDRESS=1)
    narrow.enter(address)
    narrow.leave(address, "")
    assert narrow.enter(address) is None


def test_door_has_room_again_for_a_user_that_left() -> None:
    narrow = door(MAX_CONNECTIONS_PER_USER=1)
    narrow.enter("192.0.2.1")
    narrow.enter_as("7")
    narrow.leave("192.0.2.1", "7")
    assert narrow.enter_as("7") is None


def test_door_has_room_again_in_a_process_that_was_full() -> None:
    full = door(MAX_CONNECTIONS=1)
    full.enter("192.0.2.1")
    assert full.enter("192.0.2.2") is FULL
    full.leave("192.0.2.1", "")
    assert full.enter("192.0.2.2") is None


def test_door_counts_none_that_it_refuses() -> None:
    narrow = door(MAX_CONNECTIONS=3, MAX_CONNECTIONS_PER_ADDRESS=1, MAX_CONNECTIONS_PER_USER=1)
    narrow.enter("192.0.2.1")
    narrow.enter_as("7")
    for _ in range(10):
        assert narrow.enter("192.0.2.1") is ADDRESS
        assert narrow.enter_as("7") is USER
    assert narrow.enter("192.0.2.2") is None
    assert narrow.enter("192.0.2.3") is None
    assert narrow.enter("192.0.2.4") is FULL
    narrow.leave("192.0.2.1", "7")
    assert narrow.enter("192.0.2.4") is None  # which a full process did not count for its address
    assert narrow.enter_as("7") is None


CAME = st.tuples(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", ""]), st.sampled_from("ab"))


@given(st.lists(CAME | st.none(), max_size=60))
def test_door_keeps_nothing_of_who_has_left(steps: list[tuple[str, str] | None]) -> None:
    narrow = door(MAX_CONNECTIONS=6, MAX_CONNECTIONS_PER_ADDRESS=3, MAX_CONNECTIONS_PER_USER=2)
    inside: list[tuple[str, str]] = []
    for step in steps:
        if step is None:
            if inside:
                narrow.leave(*inside.pop(0))
        elif narrow.enter(step[0]) is None:
            inside.append((step[0], step[1] if narrow.enter_as(step[1]) is None else ""))
        assert len(inside) <= 6
        assert all(sum(user == name for _, user in inside) <= 2 for name in "ab")
    for client in inside:
        narrow.leave(*client)
    assert (narrow._total, narrow._of) == (0, {})


def test_refusals_name_what_they_are_counted_as() -> None:
    refusals = [limits.DRAINING, FULL, ADDRESS, USER]
    assert {refusal.counted_as for refusal in refusals} == {
        *(Count.REFUSED_DRAINING, Count.REFUSED_FULL, Count.REFUSED_ADDRESS, Count.REFUSED_USER)
    }
    assert all(len(refusal.reason.encode()) <= 123 and refusal.retry_after >= 1 for refusal in refusals)


# Whose address is believed

PEER = "10.0.0.1"


def scope_of(*forwarded: str, client: Any = (PEER, 4242)) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    return {"client": client, "headers": [(b"host", b"example.org"), *headers]}


def test_address_without_proxies_is_the_peers() -> None:
    assert address_of(scope_of("192.0.2.1"), 0) == PEER


@pytest.mark.parametrize("client", [None, [], ("", 0), [""]])
@pytest.mark.parametrize("hops", [0, 1])
def test_address_of_a_peer_that_has_none_is_empty(client: Any, hops: int) -> None:
    assert address_of(scope_of(client=client), hops) == ""


def test_address_of_a_scope_without_a_client_is_empty() -> None:
    assert address_of({"headers": []}, 0) == ""


@pytest.mark.parametrize(
    ("hops", "address"), [(1, "192.0.2.3"), (2, "192.0.2.2"), (3, "192.0.2.1"), (4, PEER), (99, PEER)]
)
def test_address_behind_proxies_is_that_many_from_the_right(hops: int, address: str) -> None:
    assert address_of(scope_of("192.0.2.1, 192.0.2.2,192.0.2.3"), hops) == address


def test_address_is_found_in_several_headers_as_in_one() -> None:
    scope = scope_of("192.0.2.1, 192.0.2.2", "192.0.2.3")
    assert [address_of(scope, hops) for hops in (1, 2, 3)] == ["192.0.2.3", "192.0.2.2", "192.0.2.1"]


def test_address_that_the_client_invents_is_not_believed() -> None:
    assert address_of(scope_of("127.0.0.1", "127.0.0.2, 192.0.2.1"), 1) == "192.0.2.1"


def test_address_behind_proxies_that_say_nothing_is_the_peers() -> None:
    assert address_of(scope_of(), 1) == PEER


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("  192.0.2.1\t", "192.0.2.1"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_address_is_read_however_it_is_written(hop: str, address: str) -> None:
    assert address_of(scope_of(hop), 1) == address


@pytest.mark.parametrize(
    "hop",
    [
        "",
        " ",
        "unknown",
        "_hidden",
        "192.0.2",
        "192.0.2.256",
        "[",
        "[]",
        "[unknown]:443",
        ":",
        "\xff",
        "1" * 5000,
        "::1::",
    ],
)
def test_address_that_is_none_is_the_peers(hop: str) -> None:
    assert address_of(scope_of(f"192.0.2.1,{hop}"), 1) == PEER


def test_address_in_an_empty_header_is_the_peers() -> None:
    assert address_of(scope_of(""), 1) == PEER


@given(st.lists(st.binary(max_size=60), max_size=4), st.integers(0, 4))
def test_address_is_the_peers_or_an_address_whatever_the_headers_hold(values: list[bytes], hops: int) -> None:
    scope = {"client": (PEER, 4242), "headers": [(b"x-forwarded-for", value) for value in values]}
    address = address_of(scope, hops)
    assert address == PEER or ip_address(address)


@given(
    st.lists(st.binary(max_size=40).filter(lambda value: b"," not in value), max_size=4),
    st.lists(st.ip_addresses().map(str), min_size=1, max_size=4),
)
def test_address_is_the_one_that_the_outermost_proxy_saw_whatever_the_client_sent(
    invented: list[bytes], seen: list[str]
) -> None:
    header = b", ".join([*invented, *(address.encode() for address in seen)])
    scope = {"client": (PEER, 4242), "headers": [(b"x-forwarded-for", header)]}
    first = ip_address(seen[0])
    assert address_of(scope, len(seen)) == str(getattr(first, "ipv4_mapped", None) or first)
