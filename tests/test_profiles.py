"""The profiles, and that the reference in the docs is what the models say."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from realtime.conf import Settings
from realtime.protocol import CLOSE_CODES, CloseMessage, Reconnect
from realtime.testing import faults
from realtime.testing.frames import Drop, Frame, Handshake, Opcode, Write
from realtime.testing.profiles import PROFILES, CloseEvent, Profile, by_name

from .fault_docs import PAGE, TABLES, table_in
from .fault_table import ANSWER, CLOSE, ECHO, PING, SENT

every_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))


def handshake(profile: Profile, number: int) -> Handshake | None:
    between = faults.interposer_for(profile.faults, number)
    return between and between.handshake()


def test_the_profiles_have_these_names() -> None:
    assert list(PROFILES) == ["flaky-mobile", "rolling-deploy", "exchange-24h", "overloaded", "zombie"]


def test_a_profile_that_there_is_not_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no profile 'zombi'; there are flaky-mobile, .*, zombie$"):
        by_name("zombi")


@every_profile
def test_a_profile_is_found_by_its_name(profile: Profile) -> None:
    assert by_name(profile.name) is profile


@every_profile
def test_its_settings_are_settings(profile: Profile) -> None:
    Settings.model_validate(profile.settings)


@every_profile
def test_it_says_in_one_line_what_happens_and_what_a_good_client_does(profile: Profile) -> None:
    assert len(profile.summary) <= 120
    assert profile.summary.endswith(".")
    assert profile.good_client.count(". ") >= 1


@every_profile
def test_it_can_be_written_as_json_with_all_of_its_faults(profile: Profile) -> None:
    written = profile.model_dump(mode="json")

    assert faults.parse(written["faults"]) == profile.faults


@every_profile
def test_it_does_the_same_each_time(profile: Profile) -> None:
    def run() -> list[object]:
        seen: list[object] = []
        for number in range(1, 20):
            if between := faults.interposer_for(profile.faults, number):
                seen += [between.handshake(), between.opened()]
                seen += [between.outgoing(Frame(Opcode.TEXT, ANSWER)) for _ in range(20)]
                seen += [between.tick() for _ in range(3)]
        return seen

    assert run() == run()


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        by_name("zombie").name = "other"  # type: ignore[misc]


def test_a_flaky_phone_loses_some_connections_and_not_others() -> None:
    def drops(number: int) -> bool:
        between = faults.interposer_for(by_name("flaky-mobile").faults, number)
        assert between is not None
        actions = [action for _ in range(25) for action in between.outgoing(Frame(Opcode.TEXT, ANSWER))]
        return any(isinstance(action, Drop) for action in actions)

    assert 20 < sum(drops(number) for number in range(1, 101)) < 95


def test_a_deploy_closes_all_twice_and_refuses_the_first_that_comes_back() -> None:
    deploy = by_name("rolling-deploy")

    assert [(event.since, event.message.code) for event in deploy.events] == [("started", 1012), ("started", 1012)]
    assert [handshake(deploy, number) for number in (1, 2, 3)] == [
        None,
        Handshake(status=503, headers=(("Retry-After", "1"),)),
        None,
    ]


def test_an_exchange_drops_who_does_not_answer_its_pings() -> None:
    between = faults.interposer_for(by_name("exchange-24h").faults, 1)
    assert between is not None

    ticks = [between.tick() for _ in range(5)]

    assert ticks == [*((1.0, [Write(b"\x89\x01%d" % n)]) for n in (1, 2, 3, 4)), (0.0, [Drop()])]


def test_an_exchange_ends_each_connection_after_its_day() -> None:
    [event] = by_name("exchange-24h").events

    assert (event.since, event.after) == ("connected", 24.0)
    assert CLOSE_CODES[event.message.code].client == Reconnect.BACKOFF


def test_a_full_server_refuses_twice_and_closes_once() -> None:
    full = by_name("overloaded")

    assert handshake(full, 1) == Handshake(status=429, headers=(("Retry-After", "1"),))
    assert handshake(full, 2) == Handshake(status=503, headers=(("Retry-After", "2"),))
    assert handshake(full, 3) is None
    third = faults.interposer_for(full.faults, 3)
    assert third is not None
    assert third.opened() == [Write(b"\x88\x14\x03\xf5the server is full")]
    fourth = faults.interposer_for(full.faults, 4)
    assert fourth is not None
    assert fourth.outgoing(Frame(Opcode.TEXT, ANSWER))[-1] == SENT


def test_a_zombie_answers_three_times_and_heeds_nothing_more() -> None:
    between = faults.interposer_for(by_name("zombie").faults, 1)
    assert between is not None

    assert [between.outgoing(Frame(Opcode.TEXT, ANSWER)) for _ in range(5)] == [*([[SENT]] * 3), [], []]
    assert [between.incoming(frame) for frame in (ECHO, PING, CLOSE)] == [[], [], []]
    assert faults.interposer_for(by_name("zombie").faults, 2) is None


@pytest.mark.parametrize("field", ["after", "spread"])
@pytest.mark.parametrize("value", [-1.0, 86_401.0, float("inf")])
def test_no_moment_is_without_bounds(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        CloseEvent(**{"message": CloseMessage(), "since": "started", "after": 1.0, field: value})


@pytest.mark.parametrize("name", TABLES)
def test_the_docs_have_the_table_as_the_models_have_it(name: str) -> None:
    assert table_in(PAGE.read_text(), name) == TABLES[name](), "python -m tests.fault_docs writes it"


def test_the_docs_name_every_field_of_every_fault() -> None:
    page = PAGE.read_text()
    for fault in faults.FAULTS:
        for field in fault.model_fields:
            assert f"`{field}`" in page, (fault, field)
