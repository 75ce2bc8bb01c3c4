from __future__ import annotations

import random

import pytest

from benchmarks.policy.baselines import Greedy, OnDemand, Rule, UniformProgress, UniformProgressWithoutHysteresis
from benchmarks.policy.guards import Guard, Guarded
from benchmarks.policy.oracle import optima
from benchmarks.policy.simulator import Decision, MakePolicy, Mode, View, simulate
from benchmarks.policy.terms import Sights, Terms
from benchmarks.policy.traces import Zone
from tests.policy_bench.markets import a_random_zone, a_zone, some_terms


class Wild:
    """Wants anything, at any tick, for any time."""

    def __init__(self, rng: random.Random, num_zones: int) -> None:
        self._rng, self._zones = rng, range(num_zones)

    def decide(self, view: View) -> Decision:
        rng = self._rng
        mode = rng.choice(list(Mode))
        zones = rng.sample(self._zones, rng.randint(0 if view.mode is Mode.SPOT else 1, len(self._zones)))
        return Decision(
            mode,
            tuple(zones) if mode is Mode.SPOT else (),
            refused=rng.choice([None, Mode.IDLE, Mode.FALLBACK]),
            overlap=rng.random() < 0.3,
            hold_ticks=rng.choice([1, 2, 5, 50]),
        )


def a_case(seed: int) -> tuple[random.Random, list[Zone], Terms]:
    rng = random.Random(seed)
    launch, work = rng.randint(1, 6), rng.randint(5, 60)
    slack = launch + rng.randint(0, 40)
    zones = [a_random_zone(rng, work + slack, f"r{n}a") for n in range(rng.randint(1, 3))]
    prices = [rng.choice([0.1, 0.3, 0.9]) for _ in zones]
    sights = rng.choice(list(Sights))
    terms = some_terms(zones, work=work, slack=slack, launch=launch, spot_prices=prices, egress=0.4, sights=sights)
    return rng, zones, terms


@pytest.mark.parametrize("block", range(6))
def test_under_guards_no_policy_is_late_or_dearer_than_its_cap(block: int) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        rng, zones, terms = a_case(seed)
        cap = rng.choice([1.0, 1.05, 1.3])

        outcome = simulate(Guarded(Wild(rng, len(zones)), terms, cap=cap), zones, 0, terms)

        assert outcome.work_ticks_missing == 0, f"seed {seed}"
        assert outcome.cost <= cap * terms.on_demand_cost + 1e-9, f"seed {seed}"


@pytest.mark.parametrize("make", [OnDemand, Greedy, UniformProgress, UniformProgressWithoutHysteresis, Rule])
def test_no_baseline_is_late_or_cheaper_than_the_optimum(make: MakePolicy) -> None:
    for seed in range(40):
        _, zones, terms = a_case(seed)
        if make is Rule and (len(zones) > 1 or terms.sights is not Sights.KNOWN):
            continue

        outcome = simulate(Guard(make, cap=None)(terms), zones, 0, terms)

        assert outcome.work_ticks_missing == 0
        assert outcome.cost >= optima(zones, [0], terms)[0] - 1e-9


class Always:
    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    def decide(self, view: View) -> Decision:
        return self._decision


@pytest.mark.parametrize(("slack", "launches_spot"), [(5, False), (6, True)])
def test_spot_is_launched_only_with_slack_for_both_launches(slack: int, launches_spot: bool) -> None:
    zone = a_zone("1" * 40)
    terms = some_terms([zone], work=20, slack=slack, launch=3)

    outcome = simulate(Guarded(Always(Decision(Mode.SPOT, (0,))), terms, cap=None), [zone], 0, terms)

    assert launches_spot == (outcome.spot_ticks > 0)


def test_waiting_ends_when_only_the_fallback_is_left() -> None:
    zone = a_zone("0" * 40)
    terms = some_terms([zone], work=20, slack=9, launch=3)

    outcome = simulate(Guarded(Always(Decision(Mode.IDLE, hold_ticks=100)), terms, cap=None), [zone], 0, terms)

    assert (outcome.ticks, outcome.fallback_ticks, outcome.work_ticks_missing) == (29, 23, 0)


def test_a_warm_machine_is_kept_without_more_slack_than_the_fallback_takes() -> None:
    zone = a_zone("1" * 40)
    terms = some_terms([zone], work=20, slack=6, launch=3)

    outcome = simulate(Guarded(Always(Decision(Mode.SPOT, (0,))), terms, cap=None), [zone], 0, terms)

    assert (outcome.spot_ticks, outcome.fallback_ticks) == (23, 0)


class Moving:
    """To the first zone, and from tick 4 on with an overlap to the second."""

    def decide(self, view: View) -> Decision:
        return Decision(Mode.SPOT, (int(view.tick >= 4),), overlap=True)


def test_a_machine_that_takes_over_before_it_is_warm_is_left_in_time() -> None:
    zones = [a_zone("1" * 6 + "0" * 30, "r1a"), a_zone("1" * 36, "r1b")]
    terms = some_terms(zones, work=20, slack=9, launch=4)

    outcome = simulate(Guarded(Moving(), terms, cap=None), zones, 0, terms)

    assert (outcome.work_ticks_missing, outcome.fallback_ticks) == (0, 4 + 18)


@pytest.mark.parametrize(("cap", "spot_ticks"), [(1.1, 2), (1.2, 24)])
def test_spot_is_launched_only_while_the_fallback_could_do_the_rest_in_budget(cap: float, spot_ticks: int) -> None:
    # 2 ticks of spot at 0.9 are lost; then another launch may end in 2 x 1.8 + 22, and on demand alone costs 22
    zone = a_zone("1100" + "0000" + "1" * 40)
    terms = some_terms([zone], work=20, slack=20, launch=2, spot_prices=[0.9])

    outcome = simulate(Guarded(Always(Decision(Mode.SPOT, (0,), refused=Mode.IDLE)), terms, cap=cap), [zone], 0, terms)

    assert spot_ticks == outcome.spot_ticks
