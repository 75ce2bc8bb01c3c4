"""Skies: drawn by the hazards of age, or as they were seen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.estimates.weather import FRAILTY, Drawn, Habits, Record, Recorded, Weather, habits
from launcher.core.hazards import AVAILABLE, RETURN_HAZARD, SPELL_HAZARD, Hazards, cumulated, lived_hours
from launcher.core.policy.market import Place
from tests.core.futures import a_market, place_in, spot

STATED = 0.32  # preemptions an hour, as on the traces


def a_place(zone: str = "a", *, hazard: float = STATED) -> Place:
    option = spot(zone, preemptions_per_hour=hazard)
    return place_in(a_market(option), option)


@pytest.fixture
def unfrail(monkeypatch: pytest.MonkeyPatch) -> None:
    """All places alike, so that hazards can be read off."""
    monkeypatch.setattr("launcher.core.estimates.weather.FRAILTY", 0.0)


def spells(sky: Weather, place: Place, *, until: float) -> list[tuple[bool, float, float]]:
    """(has capacity, since, until)"""
    found, now = [], 0.0
    while now < until:
        is_up, then = sky.spell(place, now)
        found.append((is_up, now, then))
        now = then
    return found


def assert_dies_by(hazards: Hazards, lives: list[float], *, ages: Iterable[float]) -> None:
    for begin, end in pairwise(ages):
        alive = sum(life > begin for life in lives)
        died = alive - sum(life > end for life in lives)
        expected = 1 - math.exp(cumulated(hazards, begin) - cumulated(hazards, end))
        assert died / alive == pytest.approx(expected, abs=4 * math.sqrt(expected / alive))


def test_spells_and_outages_alternate_with_the_hazards_of_their_age(unfrail: None) -> None:
    place = a_place()

    found = [spell for seed in range(200) for spell in spells(Drawn(seed), place, until=200)[1:]]

    assert all(one is not next_one for (one, *_), (next_one, *_) in pairwise(spells(Drawn(1), place, until=500)))
    for is_wanted, hazards in ((True, SPELL_HAZARD), (False, RETURN_HAZARD)):
        lengths = [until - since for is_up, since, until in found if is_up is is_wanted]
        assert_dies_by(hazards, lengths, ages=(0, 0.2, 0.5, 1, 2, 4, 8))


def test_an_outage_is_met_at_a_random_instant_and_a_long_one_more_often(unfrail: None) -> None:
    """P(rest > x) = ∫ₓ S / mean: what is left of it is longer than a new one."""
    first = [Drawn(seed).spell(a_place(), 0.0) for seed in range(6000)]
    rests = [until for is_up, until in first if not is_up]

    whole = lived_hours(RETURN_HAZARD, 1.0, 1e4)
    for hours in (0.5, 2.0, 8.0, 30.0):
        expected = 1 - lived_hours(RETURN_HAZARD, 1.0, hours) / whole
        assert mean(rest > hours for rest in rests) == pytest.approx(expected, abs=0.04)
    assert mean(is_up for is_up, _ in first) == pytest.approx(AVAILABLE, abs=0.02)


def test_the_same_seed_is_the_same_sky_and_another_place_has_its_own() -> None:
    here, there = a_place("a"), a_place("b")

    assert spells(Drawn(7), here, until=99) == spells(Drawn(7), here, until=99)
    assert spells(Drawn(7), here, until=99) != spells(Drawn(8), here, until=99)
    assert spells(Drawn(7), here, until=99) != spells(Drawn(7), there, until=99)


def test_a_place_keeps_its_sky_whoever_else_is_asked() -> None:
    alone, beside = Drawn(7), Drawn(7)
    beside.spell(a_place("b"), 0.0)

    assert spells(alone, a_place(), until=99) == spells(beside, a_place(), until=99)


def test_a_place_without_preemptions_never_goes_away() -> None:
    calm = a_place(hazard=0.0)

    ends = {Drawn(seed).spell(calm, 1e6) for seed in range(20)}

    assert ends == {(True, math.inf)}


def test_places_differ_by_their_frailty() -> None:
    """How often one has capacity varies from sky to sky more than luck alone would let it."""

    def share(seed: int) -> float:
        found = spells(Drawn(seed), a_place(), until=4000)
        return sum(until - since for is_up, since, until in found if is_up) / found[-1][2]

    shares = sorted(share(seed) for seed in range(60))

    assert FRAILTY > 0
    assert shares[5] < 0.4
    assert shares[-6] > 0.6


RECORDS: list[Record] = [(True, (2.0, 3.0, 10.0)), (False, (4.0, 10.0)), (True, (1.0, 5.0, 6.0, 10.0))]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_repeats_itself_and_goes_over_its_end_in_one_spell(record: Record) -> None:
    place = a_place()

    found = spells(Recorded({place.key: record}), place, until=40)

    assert all(one is not next_one for (one, *_), (next_one, *_) in pairwise(found))
    for is_up, since, until in found:
        assert is_up is was_up(record, (since + until) / 2)
    assert mean(was_up(record, n / 100) for n in range(1000)) == pytest.approx(
        sum(min(until, 40) - since for is_up, since, until in found if is_up) / 40, abs=0.01
    )


def was_up(record: Record, hour: float) -> bool:
    begins_up, changes = record
    return begins_up ^ bool(sum(at <= hour % changes[-1] for at in changes) % 2)


@given(record=st.sampled_from(RECORDS), since=st.floats(0, 30), now=st.floats(0, 30))
def test_a_record_can_be_begun_anywhere(record: Record, since: float, now: float) -> None:
    place = a_place()

    is_up, until = Recorded({place.key: record}, since=since).spell(place, now)
    later, then = Recorded({place.key: record}).spell(place, now + since)

    assert is_up is later
    assert until == pytest.approx(then - since)


def test_a_record_without_changes_stays_as_it_is_and_a_place_without_one_is_as_others_say() -> None:
    place, other = a_place(), a_place("b")

    assert Recorded({place.key: (True, (10.0,))}).spell(place, 99.0) == (True, math.inf)
    assert Recorded({}).spell(place, 1.0) == (False, math.inf)
    beyond = Recorded({place.key: (True, (10.0,))}, others=Drawn(3))
    assert beyond.spell(other, 0.0) == Drawn(3).spell(other, 0.0)


def drawn_record(lives: float, returns: float, *, hours: float, luck: Random) -> Record:
    """Of a place whose hazards are so many times those of the traces."""
    known = {a_place().key: Habits(is_up=True, age_hours=0.0, lost=many(lives), found=many(returns))}
    sky = Drawn(luck.getrandbits(32), known)
    found = spells(sky, a_place(), until=hours)
    return True, (*(since for _, since, _ in found[1:]), hours)


@pytest.mark.parametrize(("lives", "returns"), [(1.0, 1.0), (3.0, 0.5), (0.3, 2.0)])
def test_a_long_record_tells_the_hazards_of_its_place(unfrail: None, lives: float, returns: float) -> None:
    told = habits(drawn_record(lives, returns, hours=20_000, luck=Random(4)))

    assert told.lost[0] / told.lost[1] == pytest.approx(lives, rel=0.1)
    assert told.found[0] / told.found[1] == pytest.approx(returns, rel=0.1)


def many(scale: float) -> tuple[int, float]:
    """So many events that nothing else counts."""
    return round(1e9 * scale), 1e9


def test_a_record_ends_in_a_spell_or_an_outage_of_an_age() -> None:
    assert habits((True, (0.1, 0.2, 0.5))) == Habits(
        is_up=True, age_hours=pytest.approx(0.3), lost=(1, pytest.approx(0.1 * 1.6 + 0.2 * 1.6 + 0.1 * 1.38)),
        found=(1, pytest.approx(0.1 * 2.34)),
    )  # fmt: skip
    assert habits((True, (0.1, 0.5))).is_up is False


@pytest.mark.parametrize(("hazard", "lost"), [(STATED, 0), (10 * STATED, 1)])
def test_a_short_record_moves_what_is_stated_little(unfrail: None, hazard: float, lost: int) -> None:
    """Of spells of an hour, the hazards of the traces let one expect 1.1 ends."""
    place = a_place(hazard=hazard)
    known = {place.key: Habits(is_up=True, age_hours=0.0, lost=(lost, 1.1), found=(0, 0.0))}

    lives = [Drawn(seed, known).spell(place, 0.0)[1] for seed in range(2000)]

    scale = hazard / STATED
    expected = scale * (2 + lost) / (2 + 1.1 * scale)
    assert mean(life > 0.2 for life in lives) == pytest.approx(math.exp(-expected * 1.6 * 0.2), abs=0.04)


def test_the_first_spell_is_what_is_left_of_the_one_at_the_records_end(unfrail: None) -> None:
    place = a_place()

    def seen(age: float) -> list[float]:
        known = {place.key: Habits(is_up=False, age_hours=age, lost=(0, 0.0), found=(0, 0.0))}
        return [Drawn(seed, known).spell(place, 0.0)[1] for seed in range(3000)]

    fresh, old = seen(0.0), seen(4.0)

    assert_dies_by(RETURN_HAZARD, fresh, ages=(0, 0.2, 0.5, 1, 2, 4, 8))
    assert_dies_by(RETURN_HAZARD, [4 + rest for rest in old], ages=(4, 8, 12))
