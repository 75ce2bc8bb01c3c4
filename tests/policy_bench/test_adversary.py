"""The policy's two guards in worlds made to break them; many more cases: `python -m benchmarks policy fuzz`."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from benchmarks.policy import adversary
from benchmarks.policy.adversary import CASES_A_MARKET, a_case, check, fuzz, most_usd
from benchmarks.policy.hosts import Hosts
from benchmarks.policy.natures import Case, Habit, Nature, is_up, turns_at
from benchmarks.policy.world import Story, World
from launcher.core.policy import decision
from launcher.core.policy.market import Market, Place

NUM_CASES = 4 * CASES_A_MARKET


@pytest.mark.parametrize("first", range(0, NUM_CASES, CASES_A_MARKET))
def test_no_run_is_late_nor_dearer_than_its_bound_nor_without_end(first: int) -> None:
    made, breaks, _ = fuzz(first=first, count=CASES_A_MARKET, processes=1)

    assert breaks == []
    assert made["sense"] == CASES_A_MARKET


def test_every_claim_is_made_of_many_cases() -> None:
    claims = [claim for number in range(0, 40 * CASES_A_MARKET, 41) for claim in check(number)[0]]

    assert min(claims.count(claim) for claim in ("time", "money", "left", "sense")) > 100


def breaks_of(claim: str, cases: range) -> int:
    return sum(one.claim == claim for number in cases for one in check(number)[1])


WEAK = range(0, 60 * CASES_A_MARKET, 97)


def test_without_its_guard_of_the_time_the_policy_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "is_due", lambda look, here: False)
    monkeypatch.setattr("launcher.core.policy.guards.is_within", lambda look, lost_hours, extra_usd: True)

    assert breaks_of("time", WEAK) > 0


def test_without_its_guard_of_the_money_the_policy_is_too_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.core.policy.guards.is_within", lambda look, lost_hours, extra_usd: True)
    monkeypatch.setattr(decision, "wastes", lambda look, here: None)

    assert breaks_of("money", WEAK) > 0


def test_a_broken_guard_ends_the_benchmark_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adversary.main(["--cases", "50", "--processes", "1"])
    monkeypatch.setattr(decision, "is_due", lambda look, here: False)
    monkeypatch.setattr("launcher.core.policy.guards.is_within", lambda look, lost_hours, extra_usd: True)

    with pytest.raises(SystemExit, match="1"):
        adversary.main(["--cases", "400", "--processes", "1"])

    whole, broken = (line for line in capsys.readouterr().out.splitlines() if "claims made" in line)
    assert whole.endswith("broken: 0")
    assert not broken.endswith("broken: 0")


def test_a_case_is_drawn_from_its_number_alone() -> None:
    first = a_case(4321)
    adversary._markets.cache_clear()

    again = a_case(4321)

    assert first._replace(market=again.market, market_later=None) == again._replace(market_later=None)
    assert [(p.key, p.usd_per_hour) for p in first.market.places] == [
        (p.key, p.usd_per_hour) for p in again.market.places
    ]


def a_place(**fields: object) -> Place:
    plain = adversary._a_place(random.Random(1), adversary._Times(0.01, 0.01, 0.5), poll=0.05)
    sure = {
        "interval_hours": 0.25,
        "setup_hours": 0.2,
        "durable_hours": 0.02,
        "closing_hours": 0.14,
        "arrival_usd": 0.0,
    }
    return replace(plain, **(sure | fields))  # type: ignore[arg-type]  # the fields' own types


def a_run(habit: Habit, *, poll_hours: float | None = None, firm: Habit | None = None, **fields: object) -> Case:
    """4 h of work, on spot at a third of the fallback's price."""
    spot = a_place(key="spot", is_spot=True, usd_per_hour=3.0, scale=1.0)
    market = Market(
        places=(spot, a_place()), steps=400, deadline=9.0, reserve_hours=0.56, poll_hours=0.05, hands_over=False
    )
    case = Case(
        market=market,
        habits={"spot": habit, "od": firm or Habit(Nature.STEADY)},
        poll_hours=poll_hours,
        asks_on=True,
        release_hours=0.01,
        delay_hours=0.5,
        retry_hours=0.25,
        give_up_hours=1.0,
        left=math.inf,
    )
    return case._replace(**fields)  # type: ignore[arg-type]  # the fields' own types


def told(case: Case) -> Story:
    return World(case, is_told=True).story()


def test_on_steady_spot_a_run_costs_its_set_up_its_work_and_a_last_save() -> None:
    story = told(a_run(Habit(Nature.STEADY)))

    assert story.end == "finished"
    assert story.ended_at == pytest.approx(0.2 + 4.0 + 0.02)
    assert story.spent == pytest.approx(4.22 * 3.0)


def test_what_was_not_saved_is_lost_with_the_machine() -> None:
    story = told(a_run(Habit(Nature.ENDING, hours=0.2 + 0.9)))

    # of 0.9 h of training, three saves of 0.25 h are durable
    after = 4.0 - 0.75
    assert story.spent == pytest.approx(1.1 * 3.0 + (0.2 + after + 0.02) * 10.0)


def test_a_save_counts_once_it_is_durable() -> None:
    habit = Habit(Nature.AT_SAVE)

    story = told(a_run(habit))

    assert any("spot is lost" in line for line in story.log)
    assert story.spent == pytest.approx((0.2 + 0.25 + 0.02) * 3.0 + 4.22 * 10.0, rel=0.2)


def test_a_machine_that_hangs_is_billed_until_it_is_given_up_or_left() -> None:
    story = told(a_run(Habit(Nature.HANGING), give_up_hours=0.3))

    assert any("spot is given up" in line for line in story.log)
    assert story.spent > 0.3 * 3.0 + 4.22 * 10.0


def test_capacity_that_stays_keeps_its_promise_to_who_asks_again() -> None:
    case = a_run(Habit(Nature.NEVER), firm=Habit(Nature.DELAYING))
    hosts, place = Hosts(case), case.market.places[1]

    granted = [hosts.granted(place, now) is not None for now in (1.0, 1.25, 1.5)]

    assert granted == [False, False, True]


def test_late_capacity_is_there_at_the_last_moment() -> None:
    case = a_run(Habit(Nature.NEVER), firm=Habit(Nature.LATE))

    machine = Hosts(case).granted(case.market.places[1], 1.0)

    assert machine is not None
    assert (machine.granted_at, machine.ready_at) == pytest.approx((1.5, 1.7))


def test_a_run_that_may_spend_little_ends_before_it_spends_more() -> None:
    case = a_run(Habit(Nature.NEVER), left=20.0)

    story = told(case)

    assert story.end == "broke"
    assert story.spent - story.closing_usd <= 20.0


def test_prices_that_treble_raise_the_bound_and_what_a_close_costs() -> None:
    case = a_run(Habit(Nature.STEADY))
    dearer = replace(case.market, places=tuple(adversary._priced(p, 3.0) for p in case.market.places))

    changed = case._replace(market_later=dearer, later_at=1.0)

    closing_usd = 0.14 * 3 * 10.0
    assert most_usd(changed) == pytest.approx(3 * most_usd(case) + closing_usd)
    assert told(changed).spent > told(case).spent


def test_flapping_places_are_up_for_their_share_of_each_period() -> None:
    habit = Habit(Nature.FLAPPING, hours=2.0, share=0.25, phase=0.1)

    assert [is_up(habit, at) for at in (0.0, 0.39, 0.41, 1.89, 1.91)] == [True, True, False, False, True]
    assert [turns_at(habit, at) for at in (0.0, 0.5)] == [pytest.approx(0.4), pytest.approx(1.9)]
