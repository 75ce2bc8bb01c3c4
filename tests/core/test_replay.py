"""The same futures for every policy, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from statistics import fmean

import pytest

from launcher.core.policy.decision import HandOver, Keep, Launch, Wait
from launcher.core.policy.diary import Diary
from launcher.core.replays.prospect import Prospect
from launcher.core.replays.replay import (
    Decision,
    Question,
    Replay,
    Sky,
    answer,
    drawn_skies,
    explained,
    of_spec,
    replay,
)
from launcher.core.replays.rivals import OURS, POLICIES
from launcher.core.replays.traces import Trace
from launcher.errors import InputError
from tests.core.futures import Told, a_market, an_outlook, on_demand, place_in, spot

SPOT, FIRM = spot("a"), on_demand(usd_per_hour="20")
MARKET = a_market(SPOT, FIRM, steps=3600, hours=30)


def a_prospect(**fields: object) -> Prospect:
    plain = {
        "name": "digits",
        "market": MARKET,
        "outlook": an_outlook(),
        "deadline_assumed": False,
        "simulated": False,
    }
    return Prospect(**plain | fields)  # type: ignore[arg-type]


def a_trace(hours: float = 300.0, **records: tuple[bool, tuple[float, ...]]) -> Trace:
    return Trace(name="week.csv", records=records or {"a": (True, (hours,))}, hours=hours)


def names(found: Replay) -> list[str]:
    return [outcome.policy.name for outcome in found.outcomes]


def test_all_policies_live_under_the_same_skies_and_the_same_seed_gives_the_same() -> None:
    asked = Question(count=15, seed=3)

    found, again = of_spec(asked, a_prospect()), of_spec(asked, a_prospect())

    assert found == again
    assert of_spec(replace(asked, seed=4), a_prospect()) != found
    alone = of_spec(replace(asked, names=("greedy",)), a_prospect())
    assert alone.outcomes[1] == next(o for o in found.outcomes if o.policy.name == "greedy")


def test_an_outcome_is_the_mean_and_the_tenths_of_its_futures() -> None:
    skies = [Sky(weather=lambda: Told(a=[]), factor=1.0 + n / 10) for n in range(10)]

    (found,) = replay(MARKET, an_outlook(), skies, [POLICIES["on-demand"]])

    single = [replay(MARKET, an_outlook(), [sky], [POLICIES["on-demand"]])[0] for sky in skies]
    assert float(found.cost_usd.mean) == pytest.approx(fmean(float(one.cost_usd.mean) for one in single), abs=0.01)
    assert found.cost_usd.p10 == single[1].cost_usd.mean
    assert found.hours.p90 == single[9].hours.mean
    assert single[9].hours.mean / single[0].hours.mean == pytest.approx(1.9, rel=0.01)


def test_the_share_late_counts_futures_behind_the_deadline() -> None:
    skies = [Sky(weather=lambda n=n: Told(a=[1.0, 1.0 + 30 * n])) for n in range(4)]

    (found,) = replay(MARKET, an_outlook(), skies, [POLICIES["spot-only"]])

    assert found.late == 0.75


def test_the_cheapest_is_best_only_among_those_that_are_late_least_often() -> None:
    skies = [Sky(weather=lambda: Told(a=[1.0, 50.0]))]

    found = answer(Question(), a_prospect(), skies=skies, weather="", prices="")

    costs = {o.policy.name: o.cost_usd.mean for o in found.outcomes}
    assert min(costs, key=costs.__getitem__) == "spot-only"
    assert found.best.late == 0
    assert found.best.cost_usd.mean == min(o.cost_usd.mean for o in found.outcomes if not o.late)


def test_the_picture_is_of_the_future_in_which_the_first_policy_has_its_median_cost() -> None:
    ends = (2.0, 4.0, 6.0)
    skies = [Sky(weather=lambda end=end: Told(a=[end])) for end in ends]

    found = replay(MARKET, an_outlook(), skies, [POLICIES["never-wait"], POLICIES["greedy"]])

    for outcome in found:
        assert outcome.timeline.stretches[-1].begin_hours > 4
        taken = [mark.at_hours for mark in outcome.timeline.marks if mark.kind == "preempted"]
        assert taken == [pytest.approx(4.0)]


def test_the_timeline_of_the_picture_costs_what_its_future_does() -> None:
    skies = [Sky(weather=lambda: Told(a=[2.0, 3.0]))]
    outlook = an_outlook(checkpoint_gb=100.0, storage_usd_per_gb_month=Decimal("0.02"))

    found = replay(MARKET, outlook, skies, [p for p in POLICIES.values() if p.fits(MARKET)])

    for outcome in found:
        spend = [usd for _, usd in outcome.timeline.spend]
        assert outcome.timeline.total_usd == outcome.cost_usd.mean
        assert spend == sorted(spend)
        assert outcome.timeline.end_hours == pytest.approx(outcome.hours.mean)


def test_ours_is_always_there_and_comes_first() -> None:
    assert names(of_spec(Question(names=("greedy",), count=1), a_prospect())) == [OURS, "greedy"]
    assert names(of_spec(Question(count=1), a_prospect())) == list(POLICIES)


@pytest.mark.parametrize(("name", "code"), [("gredy", "L161"), ("on-demand", "L162")])
def test_a_policy_that_cannot_be_played_is_an_error(name: str, code: str) -> None:
    with pytest.raises(InputError) as met:
        of_spec(Question(names=(name,), count=1), a_prospect(market=a_market(SPOT)))

    assert met.value.problems[0].code == code


def test_a_trace_counts_in_place_of_drawn_weather_and_says_what_it_lacks() -> None:
    prospect = a_prospect(market=a_market(SPOT, spot("b", usd_per_hour="7"), FIRM, steps=3600, hours=30))

    found = of_spec(Question(names=("greedy",), trace=a_trace(a=(True, (4.0, 300.0)))), prospect)

    assert found.num_futures == 1
    assert found.weather == "as recorded in week.csv, from its first hour on"
    assert found.notes == ("the record is silent on 1 spot places, which never have capacity here: aws b",)
    (mark,) = (m for m in found.outcomes[1].timeline.marks if m.kind == "preempted")
    assert (mark.place, mark.at_hours) == ("aws a", pytest.approx(4.0))


def test_starts_are_spread_over_what_the_record_allows() -> None:
    found = of_spec(Question(trace=a_trace(130.0), starts=11), a_prospect())

    assert found.num_futures == 11
    assert found.weather.endswith("from 11 starts 10.0 h apart")


def test_a_record_shorter_than_the_deadline_begins_again_and_says_so() -> None:
    found = of_spec(Question(trace=a_trace(20.0), starts=5), a_prospect())

    assert found.num_futures == 1
    assert "the record has 20 h, the deadline is at 30 h: then it begins again" in found.notes
    assert any(note.startswith("one start instead of 5") for note in found.notes)


def test_a_trace_of_other_places_is_an_error_that_names_one_of_the_plan() -> None:
    with pytest.raises(InputError) as met:
        of_spec(Question(trace=a_trace(moon=(True, (9.0,)))), a_prospect())

    (problem,) = met.value.problems
    assert (problem.code, problem.where) == ("L163", "week.csv")
    assert place_in(MARKET, SPOT).key in problem.fix


def test_step_times_are_off_by_the_plans_own_uncertainty() -> None:
    factors = sorted(sky.factor for sky in drawn_skies(101, seed=1, throughput_factor80=1.3))

    assert factors[10] == pytest.approx(1 / 1.3, rel=0.02)
    assert factors[50] == pytest.approx(1.0)
    assert factors[90] == pytest.approx(1.3, rel=0.02)


def test_decisions_are_told_in_order_and_what_came_of_nothing_as_one() -> None:
    place, diary = place_in(MARKET, SPOT), Diary()
    for at, action in (
        (0.0, Launch(place, "cheapest spot")),
        (1.0, Keep()),
        (2.0, Launch(place, "cheapest spot")),
        (2.1, Wait(2.5, "soon back")),
        (2.5, Launch(place, "cheapest spot")),
        (2.6, Wait(3.0, "soon back")),
        (3.0, HandOver(place, "it pays", overlaps=True)),
    ):
        diary.decided(at, action)
    diary.refused(2.0, place)
    diary.refused(2.5, place)

    assert explained(diary) == (
        Decision(at_hours=0.0, what="launch", where="aws a", why="cheapest spot"),
        Decision(at_hours=2.0, what="wait", where="aws a", why="soon back; refused 2 ×"),
        Decision(at_hours=3.0, what="hand over, with overlap", where="aws a", why="it pays"),
    )


def test_every_sentence_of_ours_is_one() -> None:
    found = of_spec(Question(names=("greedy",), count=5), a_prospect())

    for outcome in found.outcomes:
        assert outcome.decisions
        assert all(decision.why for decision in outcome.decisions)
