from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from benchmarks.policy.baselines import Greedy, Rule, UniformProgress, UniformProgressWithoutHysteresis
from benchmarks.policy.guards import Guarded
from benchmarks.policy.simulator import FOREVER, Decision, MakePolicy, Mode, Outcome, Policy, View, simulate
from benchmarks.policy.terms import Sights, Terms
from benchmarks.policy.traces import Zone
from tests.policy_bench.markets import a_random_zone, a_zone, some_terms

SPOT, FALLBACK, IDLE = Decision(Mode.SPOT, (0,), refused=Mode.IDLE), Decision(Mode.FALLBACK), Decision(Mode.IDLE)
HOP = Decision(Mode.SPOT, (0,), overlap=True)


class Notebook:
    """Decides what is written for a tick, else the last again; keeps what it saw."""

    def __init__(self, decisions: Mapping[int, Decision]) -> None:
        self._decisions = decisions
        self._last = IDLE
        self.views: list[View] = []
        self.sights: list[list[tuple[bool | None, int, int]]] = []

    def decide(self, view: View) -> Decision:
        self.views.append(view)
        self.sights.append([(one.up, one.since_tick, one.seen_tick) for one in view.sights])
        self._last = self._decisions.get(view.tick, self._last)
        return self._last


def run(zones: Sequence[Zone], terms: Terms, decisions: Mapping[int, Decision]) -> tuple[Outcome, Notebook]:
    notebook = Notebook(decisions)
    return simulate(notebook, zones, 0, terms), notebook


def test_a_launch_is_billed_and_makes_no_progress() -> None:
    zone = a_zone("1" * 20)

    outcome, notebook = run([zone], some_terms([zone], work=5, slack=10, launch=3), {0: SPOT})

    assert outcome.ticks == 8
    assert outcome.cost == pytest.approx(8 * 0.3)
    assert [view.work_ticks for view in notebook.views] == [5, 5, 5, 5, 4, 3, 2, 1]
    assert [view.warm_up_ticks for view in notebook.views[:5]] == [0, 2, 1, 0, 0]


def test_a_preemption_takes_the_machine_and_no_progress() -> None:
    zone = a_zone("11110011111")

    outcome, notebook = run([zone], some_terms([zone], work=4, slack=6, launch=2), {0: SPOT})

    assert [view.work_ticks for view in notebook.views] == [4, 4, 4, 3, 2, 2, 2, 2, 2, 1]
    assert [view.mode for view in notebook.views[4:6]] == [Mode.IDLE] * 2
    assert outcome.cost == pytest.approx(8 * 0.3)
    assert (outcome.preemptions, outcome.launches) == (1, 2)


def test_a_machine_preempted_while_it_warms_up_is_paid() -> None:
    zone = a_zone("1100000000")

    outcome, _ = run([zone], some_terms([zone], work=4, slack=6, launch=3), {0: SPOT, 2: FALLBACK})

    assert (outcome.spot_ticks, outcome.fallback_ticks) == (2, 7)
    assert outcome.cost == pytest.approx(2 * 0.3 + 7)


def test_work_undone_at_the_deadline_is_told() -> None:
    zone = a_zone("0" * 10)

    outcome, _ = run([zone], some_terms([zone], work=4, slack=3, launch=2), {0: IDLE, 3: FALLBACK})

    assert (outcome.ticks, outcome.work_ticks_missing) == (7, 2)


def test_an_overlap_costs_both_machines_and_a_pause_of_one_tick() -> None:
    zone = a_zone("0" * 5 + "1" * 20)

    outcome, notebook = run([zone], some_terms([zone], work=12, slack=8, launch=3), {0: FALLBACK, 5: HOP})

    # fallback: 3 to warm up, 2 of work, then 3 beside spot, of which 2 are work; the rest is spot's
    assert (outcome.fallback_ticks, outcome.spot_ticks) == (8, 3 + 8)
    assert [view.work_ticks for view in notebook.views[5:10]] == [10, 9, 8, 8, 7]
    assert [view.incoming for view in notebook.views[5:9]] == [None, 0, 0, None]
    assert Mode.SPOT is notebook.views[8].mode


def test_a_preemption_in_an_overlap_leaves_the_fallback_at_work() -> None:
    zone = a_zone("0" * 5 + "11" + "0" * 20)

    outcome, notebook = run([zone], some_terms([zone], work=12, slack=8, launch=3), {0: FALLBACK, 5: HOP, 6: FALLBACK})

    assert 3 + 12 == outcome.fallback_ticks == outcome.ticks
    assert outcome.spot_ticks == 2
    assert {Mode.FALLBACK} == {view.mode for view in notebook.views[1:]}


def test_a_machine_lost_in_an_overlap_is_followed_by_the_one_that_starts() -> None:
    old, new = a_zone("1" * 6 + "0" * 20, "r1a"), a_zone("1" * 26, "r1b")
    move = Decision(Mode.SPOT, (1,), overlap=True)

    outcome, notebook = run([old, new], some_terms([old, new], work=12, slack=8, launch=4), {0: SPOT, 4: move})

    assert (notebook.views[6].zone, notebook.views[6].warm_up_ticks) == (1, 2)
    assert (outcome.ticks, outcome.spot_ticks) == (18, 6 + 14)  # the new one is paid from its launch on


def test_a_move_to_another_region_pays_for_the_checkpoint_and_the_first_launch_does_not() -> None:
    here, there = a_zone("1" * 5 + "0" * 15, "r1a"), a_zone("1" * 20, "r2a")
    terms = some_terms([here, there], work=6, slack=9, launch=2, egress=0.7)

    outcome, notebook = run([here, there], terms, {0: SPOT, 5: Decision(Mode.SPOT, (1,))})

    assert outcome.egress_cost == 0.7
    assert outcome.cost == pytest.approx(0.3 * 10 + 0.7)
    assert [notebook.views[tick].place for tick in (2, 5, 8)] == [None, 0, 1]


def test_the_first_zone_that_is_up_is_taken() -> None:
    zones = [a_zone(up, name) for up, name in (("0" * 9, "r1a"), ("1" * 9, "r2a"), ("1" * 9, "r3a"))]

    _, notebook = run(zones, some_terms(zones, work=3, slack=4, launch=1), {0: Decision(Mode.SPOT, (0, 2, 1))})

    assert notebook.views[1].zone == 2


@pytest.mark.parametrize(("refused", "mode"), [(None, Mode.FALLBACK), (Mode.IDLE, Mode.IDLE)])
def test_if_all_refuse_what_was_said_is_done(refused: Mode | None, mode: Mode) -> None:
    zone = a_zone("0" * 20)
    ask = Decision(Mode.SPOT, (0,), refused=refused)

    _, notebook = run([zone], some_terms([zone], work=8, slack=9, launch=2), {0: FALLBACK, 4: ask})

    assert mode is notebook.views[5].mode


def test_a_known_zone_shows_its_age_from_before_the_window() -> None:
    zone = a_zone("000111100")
    notebook = Notebook({0: IDLE})

    simulate(notebook, [zone], 5, some_terms([zone], work=2, slack=2, launch=1))

    assert [one for (one,) in notebook.sights] == [(True, -2, 0), (True, -2, 1), (False, 2, 2), (False, 2, 3)]


def test_attempts_alone_tell_of_a_zone() -> None:
    zones = [a_zone("0011110000", "r1a"), a_zone("1" * 10, "r2a")]
    terms = some_terms(zones, work=5, slack=5, launch=1, sights=Sights.ATTEMPTS)

    _, notebook = run(zones, terms, {0: IDLE, 1: SPOT, 2: IDLE, 4: SPOT, 5: SPOT})

    assert [sights[0][0] for sights in notebook.sights[:7]] == [None, None, False, False, False, True, False]
    assert notebook.sights[5][0] == (True, 4, 4)
    assert notebook.sights[6][0] == (False, 6, 6)  # its own preemption
    assert {None} == {sights[1][0] for sights in notebook.sights}


def test_a_feed_tells_every_ten_minutes() -> None:
    zone = a_zone("1" * 3 + "0" * 4 + "1" + "0" * 12)
    terms = some_terms([zone], work=10, slack=10, launch=1, sights=Sights.FEED)

    _, notebook = run([zone], terms, {0: IDLE})

    seen = [sights[0][0] for sights in notebook.sights]
    assert seen == [True] * 5 + [False] * 15  # looks at 0, 5, 10 and 15 miss what is up at 7
    assert notebook.sights[12][0][1] == 5


class Restless:
    """The same decisions, asked for at each tick."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def decide(self, view: View) -> Decision:
        return self._policy.decide(view)._replace(hold_ticks=1)


class Hopper:
    """From the fallback to spot whenever it is up, with an overlap."""

    def __init__(self, terms: Terms) -> None:
        self._are_known = terms.sights is Sights.KNOWN

    def decide(self, view: View) -> Decision:
        hold_ticks = FOREVER if self._are_known else 1
        is_firm = view.mode is Mode.FALLBACK and not view.warm_up_ticks and view.incoming is None
        if is_firm and view.sights[0].up:
            return HOP._replace(hold_ticks=hold_ticks)
        return Decision(Mode.SPOT if view.mode is Mode.SPOT else Mode.FALLBACK, hold_ticks=hold_ticks)


@pytest.mark.parametrize("sights", Sights)
@pytest.mark.parametrize("make", [Greedy, UniformProgress, UniformProgressWithoutHysteresis, Rule, Hopper])
def test_ticks_skipped_change_nothing(make: MakePolicy, sights: Sights) -> None:
    rng = random.Random(3)
    for _ in range(20):
        num_zones = 1 if make in {Rule, Hopper} else 3
        zones = [a_random_zone(rng, 220, f"r{n}a") for n in range(num_zones)]
        terms = some_terms(zones, work=120, slack=rng.randint(8, 90), launch=4, egress=0.5, sights=sights)

        swift = simulate(Guarded(make(terms), terms, cap=1.05), zones, 5, terms)
        slow = simulate(Restless(Guarded(make(terms), terms, cap=1.05)), zones, 5, terms)

        assert slow.cost == pytest.approx(swift.cost)
        assert (slow.ticks, slow.launches, slow.spot_ticks) == (swift.ticks, swift.launches, swift.spot_ticks)


def test_spot_in_no_zone_is_refused() -> None:
    zone = a_zone("1" * 9)

    with pytest.raises(ValueError, match="name those to ask"):
        run([zone], some_terms([zone], work=3, slack=3, launch=1), {0: Decision(Mode.SPOT)})
