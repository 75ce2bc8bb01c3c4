from __future__ import annotations

import math

import pytest

from benchmarks.policy.baselines import Greedy, Rule, UniformProgress, UniformProgressWithoutHysteresis
from benchmarks.policy.simulator import MakePolicy, Mode, Sight, View
from benchmarks.policy.terms import Sights, Terms
from tests.policy_bench.markets import a_zone, some_terms

# 1000 ticks of work in 1200, launches of 6 ticks (12 minutes)
TERMS = some_terms([a_zone("1")], work=1000, slack=200, launch=6)


def a_view(
    *, mode: Mode, up: bool, work: int = 500, slack: int = 100, age_ticks: int = 30, warm_up: int = 0, tick: int = 600
) -> View:
    sight = Sight()
    sight.up, sight.since_tick, sight.seen_tick = up, tick - age_ticks, tick
    return View(
        tick=tick,
        mode=mode,
        zone=0 if mode is Mode.SPOT else None,
        warm_up_ticks=warm_up,
        incoming=None,
        work_ticks=work,
        slack_ticks=slack,
        spent=0.0,
        place=None,
        sights=[sight],
    )


@pytest.mark.parametrize("make", [Greedy, UniformProgress, UniformProgressWithoutHysteresis, Rule])
def test_a_spot_machine_is_kept(make: MakePolicy) -> None:
    decision = make(TERMS).decide(a_view(mode=Mode.SPOT, up=True, slack=1))

    assert (decision.mode, decision.zones) == (Mode.SPOT, ())


@pytest.mark.parametrize(
    ("view", "mode"),
    [
        (a_view(mode=Mode.IDLE, up=True, slack=12), Mode.SPOT),
        (a_view(mode=Mode.IDLE, up=True, slack=11), Mode.FALLBACK),
        (a_view(mode=Mode.IDLE, up=False, slack=12), Mode.IDLE),
        (a_view(mode=Mode.FALLBACK, up=True, slack=100), Mode.FALLBACK),
    ],
)
def test_greedy_waits_for_spot_until_there_is_no_time_for_it(view: View, mode: Mode) -> None:
    assert mode is Greedy(TERMS).decide(view).mode


def test_greedy_promises_to_wait_only_until_it_gives_up() -> None:
    assert Greedy(TERMS).decide(a_view(mode=Mode.IDLE, up=False, slack=20)).hold_ticks == 9  # down to 11 ticks of slack


# at tick 600 of 1200 half of the 1000 ticks are due; two launches more are 510
@pytest.mark.parametrize(
    ("view", "with_hysteresis", "without"),
    [
        (a_view(mode=Mode.IDLE, up=True, work=600), Mode.SPOT, Mode.SPOT),
        (a_view(mode=Mode.IDLE, up=False, work=501), Mode.FALLBACK, Mode.FALLBACK),
        (a_view(mode=Mode.IDLE, up=False, work=500), Mode.IDLE, Mode.IDLE),
        (a_view(mode=Mode.FALLBACK, up=True, work=491), Mode.FALLBACK, Mode.SPOT),
        (a_view(mode=Mode.FALLBACK, up=True, work=490), Mode.SPOT, Mode.SPOT),
        (a_view(mode=Mode.FALLBACK, up=True, work=600), Mode.FALLBACK, Mode.SPOT),
        (a_view(mode=Mode.FALLBACK, up=False, work=400), Mode.FALLBACK, Mode.FALLBACK),
        (a_view(mode=Mode.IDLE, up=True, slack=12, work=400), Mode.FALLBACK, Mode.FALLBACK),
        (a_view(mode=Mode.IDLE, up=True, slack=13, work=400), Mode.SPOT, Mode.SPOT),
    ],
)
def test_uniform_progress_keeps_to_the_line(view: View, with_hysteresis: Mode, without: Mode) -> None:
    assert with_hysteresis is UniformProgress(TERMS).decide(view).mode
    assert without is UniformProgressWithoutHysteresis(TERMS).decide(view).mode


# hours: an age of 1, 500 ticks of work are 16.7, a launch 0.2
HOP_TICKS = 12 + 500 * 0.2 * (0.55 * math.exp(-1 / 0.6) + 0.05)
WAIT_TICKS = 500 * (0.08 + 0.12 * (1 - math.exp(-1))) * math.sqrt(2)
LEAVE_TICKS = 500 * (0.12 + 1.4 * 0.2)


@pytest.mark.parametrize(
    ("mode", "up", "threshold", "above", "below"),
    [
        (Mode.IDLE, True, 12, Mode.SPOT, Mode.FALLBACK),
        (Mode.FALLBACK, True, HOP_TICKS, Mode.SPOT, Mode.FALLBACK),
        (Mode.IDLE, False, WAIT_TICKS, Mode.IDLE, Mode.FALLBACK),
        (Mode.FALLBACK, False, LEAVE_TICKS, Mode.IDLE, Mode.FALLBACK),
    ],
)
def test_the_rule_changes_its_mind_at_its_thresholds(
    mode: Mode, up: bool, threshold: float, above: Mode, below: Mode
) -> None:
    enough = math.ceil(threshold)

    assert above is Rule(TERMS).decide(a_view(mode=mode, up=up, slack=enough)).mode
    assert below is Rule(TERMS).decide(a_view(mode=mode, up=up, slack=enough - 1)).mode


def test_the_rule_lets_the_fallback_warm_up() -> None:
    assert Mode.FALLBACK is Rule(TERMS).decide(a_view(mode=Mode.FALLBACK, up=True, slack=190, warm_up=3)).mode


def a_market_of_three(sights: Sights) -> Terms:
    zones = [a_zone("1", name) for name in ("r1a", "r1b", "r2a")]
    return some_terms(zones, work=1000, slack=200, launch=6, spot_prices=[0.2, 0.1, 0.2], sights=sights)


def test_zones_are_asked_by_price_and_from_the_last_one_on() -> None:
    policy = Greedy(a_market_of_three(Sights.ATTEMPTS))
    idle = a_view(mode=Mode.IDLE, up=True)

    first = policy.decide(idle).zones
    policy.decide(a_view(mode=Mode.SPOT, up=True)._replace(zone=2))
    after = policy.decide(idle).zones

    assert [first, after] == [(1, 0, 2), (1, 2, 0)]


def test_zones_known_to_be_down_are_not_asked() -> None:
    sights = [Sight() for _ in range(3)]
    sights[0].up, sights[1].up, sights[2].up = True, False, True

    zones = (
        Greedy(a_market_of_three(Sights.KNOWN)).decide(a_view(mode=Mode.IDLE, up=True)._replace(sights=sights)).zones
    )

    assert zones == (0, 2)
