from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest

from benchmarks.policy.oracle import optima
from benchmarks.policy.simulator import Decision, Mode, View, simulate
from benchmarks.policy.terms import Terms
from benchmarks.policy.traces import TICKS_PER_HOUR, Zone
from tests.policy_bench.markets import a_random_zone, a_zone, some_terms

NAMES = ("r1a", "r2a", "r2b")  # two regions


def optimum(zones: Sequence[Zone], terms: Terms) -> float:
    return optima(zones, [0], terms)[0]


def brute_force(zones: Sequence[Zone], terms: Terms) -> float:
    """All decisions at all ticks: a machine is (zone, or None for the fallback; place; ticks until it computes)."""
    spot = [price / TICKS_PER_HOUR for price in terms.spot_prices_per_hour]
    places = range(len(zones))

    @cache
    def rest(tick: int, work: int, machine: tuple[int | None, int, int] | None, place: int | None) -> float:
        if work == 0:
            return 0.0
        if tick == terms.deadline_ticks:
            return math.inf
        if machine and machine[0] is not None and not zones[machine[0]].up[tick]:
            machine = None
        choices = [rest(tick + 1, work, None, place)]
        if machine:
            choices.append(spend(tick, work, machine, place))
        for zone, at in [*((z, z) for z in places if zones[z].up[tick]), *((None, p) for p in places)]:
            egress = 0.0 if place is None else terms.egress_prices[place][at]
            choices.append(egress + spend(tick, work, (zone, at, terms.launch_ticks), place))
        return min(choices)

    def spend(tick: int, work: int, machine: tuple[int | None, int, int], place: int | None) -> float:
        zone, at, warm_up = machine
        price = 1.0 if zone is None else spot[zone]
        if warm_up:
            return price + rest(tick + 1, work, (zone, at, warm_up - 1), place)
        return price + rest(tick + 1, work - 1, machine, at)

    return rest(0, terms.work_ticks, None, None)


def a_tiny_case(seed: int, *, max_work: int = 7, max_slack: int = 6) -> tuple[list[Zone], Terms]:
    rng = random.Random(seed)
    launch = rng.randint(1, 3)
    work, slack = rng.randint(1, max_work), rng.randint(launch, max(launch, max_slack))
    zones = [a_random_zone(rng, work + slack, name) for name in NAMES[: rng.randint(1, 3)]]
    prices = [rng.choice([0.1, 0.3, 0.7, 0.95]) for _ in zones]
    egress = rng.choice([0.0, 0.2, 1.5])
    return zones, some_terms(zones, work=work, slack=slack, launch=launch, spot_prices=prices, egress=egress)


@pytest.mark.parametrize("block", range(8))
def test_the_optimum_is_that_of_brute_force(block: int) -> None:
    for seed in range(25 * block, 25 * (block + 1)):
        zones, terms = a_tiny_case(seed)

        assert optimum(zones, terms) == pytest.approx(brute_force(zones, terms), abs=1e-12), f"seed {seed}"


class Script:
    """Does at each tick what is written: a zone to be in, or None for the fallback, or nothing."""

    def __init__(self, steps: Sequence[int | str]) -> None:
        self._steps = steps

    def decide(self, view: View) -> Decision:
        match self._steps[view.tick]:
            case "idle":
                return Decision(Mode.IDLE)
            case "fallback":
                return Decision(Mode.FALLBACK)
            case step:
                return Decision(Mode.SPOT, (int(step),), refused=Mode.IDLE)


@pytest.mark.parametrize("seed", range(12))
def test_the_best_script_in_the_simulator_costs_the_optimum(seed: int) -> None:
    zones, terms = a_tiny_case(seed, max_work=3, max_slack=2)
    scripts = product([*range(len(zones)), "idle", "fallback"], repeat=terms.deadline_ticks)

    outcomes = [simulate(Script(script), zones, 0, terms) for script in scripts]

    best = min(outcome.cost for outcome in outcomes if not outcome.work_ticks_missing)
    assert optimum(zones, terms) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_more_slack_and_a_shorter_launch_and_cheaper_spot_never_cost_more(seed: int) -> None:
    zone = a_random_zone(random.Random(seed), 80)

    def cost(*, slack: int = 20, launch: int = 4, spot: float = 0.4) -> float:
        return optimum([zone], some_terms([zone], work=40, slack=slack, launch=launch, spot_prices=[spot]))

    by_slack = [cost(slack=slack) for slack in range(4, 40, 6)]
    by_launch = [cost(launch=launch) for launch in range(1, 9)]
    by_price = [cost(spot=spot) for spot in (0.1, 0.3, 0.5, 0.8, 1.0)]

    assert sorted(by_slack, reverse=True) == pytest.approx(by_slack)
    assert sorted(by_launch) == pytest.approx(by_launch)
    assert sorted(by_price) == pytest.approx(by_price)


def test_another_zone_never_costs_more() -> None:
    rng = random.Random(1)
    zones = [a_random_zone(rng, 60, name) for name in NAMES]
    costs = [optimum(zones[:n], some_terms(zones[:n], work=40, slack=20, launch=3, egress=0.5)) for n in (1, 2, 3)]

    assert sorted(costs, reverse=True) == pytest.approx(costs)


@pytest.mark.parametrize(("up", "cost"), [("1" * 30, 0.3 * 22), ("0" * 30, 22.0)])
def test_a_market_without_change_has_a_closed_form(up: str, cost: float) -> None:
    zone = a_zone(up)

    assert optimum([zone], some_terms([zone], work=20, slack=10, launch=2)) == pytest.approx(cost)


def test_the_checkpoint_is_paid_for_where_it_crosses_regions() -> None:
    away, back = "1" * 12 + "0" * 18, "0" * 12 + "1" * 18
    near = [a_zone(away, "r1a"), a_zone(back, "r1b")]
    far = [a_zone(away, "r1a"), a_zone(back, "r2a")]

    costs = [optimum(zones, some_terms(zones, work=20, slack=10, launch=2, egress=0.7)) for zones in (near, far)]

    assert costs == pytest.approx([0.3 * 24, 0.3 * 24 + 0.7])


def test_batches_of_windows_do_not_touch_each_other() -> None:
    zone = a_random_zone(random.Random(5), 200)
    terms = some_terms([zone], work=30, slack=12, launch=3)

    together = optima([zone], range(0, 150, 7), terms)

    assert [optima([zone], [start], terms)[0] for start in range(0, 150, 7)] == together


def test_less_slack_than_a_launch_is_refused() -> None:
    zone = a_zone("1" * 30)

    with pytest.raises(ValueError, match="give more"):
        optimum([zone], some_terms([zone], work=20, slack=1, launch=2))
