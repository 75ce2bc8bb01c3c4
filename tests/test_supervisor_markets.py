"""What holds in every market: the bill, the deadline, the resume step, and a decision for every state."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.core.offers import Capacity
from launcher.core.policy.conduct import next_action
from launcher.core.prices.options import Option, Rules, changeover_seconds
from launcher.core.runs.events import CheckpointCommitted, Entry, TrainingResumed
from launcher.core.runs.journal import TrainerEnded
from launcher.core.runs.machine import LaunchRequest
from launcher.core.runs.state import attempt_of, fold, spent_usd
from tests.builders import RUN, T0, a_placement, a_spec, a_submit, after, an_offer, an_option
from tests.machines import Fate, Work
from tests.sim import PriceBook, Sim, a_sim

INFINITY = float("inf")
STEPS = 60
WORK = Work(steps=STEPS, step_seconds=10, setup_seconds=30, save_seconds=5, every_steps=10)
PACE = {"step_seconds": 10.0, "setup_seconds": 30.0, "save_seconds": 5.0, "interval_seconds": 100.0}
SPOT_A = an_option(a_placement(an_offer(zone="a"), usd_per_hour="6"), **PACE)
SPOT_B = an_option(a_placement(an_offer(zone="b"), usd_per_hour="7"), **PACE)
ON_DEMAND = an_option(a_placement(an_offer(zone="a", capacity=Capacity.ON_DEMAND), usd_per_hour="20"), **PACE)
PLACES = (SPOT_A, SPOT_B, ON_DEMAND)

seldom = st.sampled_from((INFINITY, INFINITY, INFINITY, 0.0, 45.0, 170.0, 400.0))
spot_fates = st.builds(
    Fate,
    refusal=st.sampled_from((None, None, None, "no_capacity", "unavailable", "quota")),
    grant_seconds=st.sampled_from((0.0, 0.0, 20.0, 500.0, INFINITY)),
    start_seconds=st.sampled_from((0.0, 30.0, 700.0)),
    life_seconds=st.one_of(st.just(INFINITY), st.integers(1, 900).map(float)),
    notice_seconds=st.sampled_from((None, 3.0, 30.0, 120.0)),
    killed_seconds=seldom,
    silent_seconds=seldom,
    obeys=st.booleans(),
    exits=st.sampled_from((True, True, False)),
    speaks=st.sampled_from((True, True, True, False)),
)
markets = st.lists(spot_fates, max_size=5)
rules = st.builds(
    Rules,
    poll_seconds=st.sampled_from((10.0, 60.0, 120.0)),
    release_seconds=st.just(30.0),
    grace_seconds=st.sampled_from((60.0, 300.0)),
    launch_seconds=st.just(400.0),
    retry_seconds=st.sampled_from((120.0, 900.0)),
    fallback_delay_seconds=st.sampled_from((60.0, 900.0)),
)
MOST_RISE_USD = 10  # from $6 to $16 an hour
prices = st.dictionaries(
    st.sampled_from([place.placement.offer.key for place in PLACES]),
    st.lists(
        st.tuples(st.integers(0, 2000).map(float), st.integers(8, 16).map(Decimal)),
        max_size=3,
        unique_by=lambda p: p[0],
    ).map(sorted),
)


def a_market(fates: Sequence[Fate], *, rules: Rules, prices: PriceBook | None = None, **submit: object) -> Sim:
    """Attempts meet `fates` in their order wherever they go; later ones meet nothing bad."""

    def fate(request: LaunchRequest) -> Fate:
        number = attempt_of(request.job)
        return fates[number - 1] if number <= len(fates) else Fate()

    return a_sim(
        places=PLACES,
        submit=a_submit(a_spec(steps=STEPS), **submit),  # type: ignore[arg-type]  # a test's own fields
        fate=fate,
        rules=rules,
        work=WORK,
        prices=prices,
        stop_seconds=rules.release_seconds,
    )


@given(fates=markets, rules=rules, prices=prices, approved=st.integers(50, 900))
@settings(max_examples=35)
@example(fates=[Fate(refusal="unavailable")], rules=Rules(poll_seconds=60), prices={}, approved=50)
@example(fates=[], rules=Rules(), prices={SPOT_A.placement.offer.key: [(255.0, Decimal(15))]}, approved=50)
def test_the_bill_exceeds_the_approved_amount_by_no_more_than_prices_rise_unseen(
    fates: list[Fate], rules: Rules, prices: PriceBook, approved: int
) -> None:
    """To the cent where none changes; else for a poll, and for the release of a machine that has ended."""
    approved_usd = Decimal(approved) / 100
    sim = a_market(fates, rules=rules, prices=prices, approved_usd=str(approved_usd))

    state = sim.supervisor().supervise()

    unseen = Decimal(str(rules.poll_seconds + rules.release_seconds)) / 3600 if prices else Decimal(0)
    assert sim.backend.billed_usd(sim.clock.now()) <= approved_usd + MOST_RISE_USD * unseen
    assert spent_usd(state, sim.clock.now()) <= approved_usd + MOST_RISE_USD * unseen
    assert sim.backend.running() == []


@given(fates=markets, rules=rules, wasted=st.sampled_from(range(0, 4001, 200)))
@settings(max_examples=60)
@example(fates=[Fate(obeys=False)], rules=Rules(poll_seconds=60, fallback_delay_seconds=60), wasted=900)
@example(fates=[Fate(grant_seconds=INFINITY)], rules=Rules(poll_seconds=60, fallback_delay_seconds=60), wasted=900)
@example(fates=[Fate(refusal="no_capacity")] * 5, rules=Rules(poll_seconds=60, fallback_delay_seconds=60), wasted=2400)
@example(fates=[Fate(killed_seconds=45)] * 5, rules=Rules(poll_seconds=10, fallback_delay_seconds=60), wasted=900)
def test_a_deadline_that_was_feasible_is_kept_whatever_spot_does(fates: list[Fate], rules: Rules, wasted: int) -> None:
    """As long as the fallback runs within the stated delay, keeps the stated pace, and money suffices."""
    least = ON_DEMAND.seconds_to_finish(STEPS) + changeover_seconds(rules)
    deadline_at = T0 + timedelta(seconds=least + wasted)
    sim = a_market(fates, rules=rules, deadline_at=deadline_at, approved_usd="10000")
    drawn = sim.backend.fate
    slow_start = Fate(start_seconds=rules.fallback_delay_seconds)
    sim.backend.fate = lambda request: (
        drawn(request) if request.placement.offer.capacity is Capacity.SPOT else slow_start
    )

    state = sim.supervisor().supervise()

    assert state.outcome == "succeeded"
    assert trained_at(sim) <= deadline_at


def trained_at(sim: Sim) -> object:
    """When the training was complete: by its own word, or where it never speaks, when its end was seen."""
    words = [line for machine in sim.backend.machines.values() for line in machine.lines]
    ends = [line.at for line in words if isinstance(line, TrainerEnded) and line.reason == "completed"]
    return min(ends, default=sim.state().attempts[-1].ended_at)


@given(
    fates=markets, rules=rules, cut=st.floats(0, 1), late=st.floats(0, 10**6), places=st.sets(st.sampled_from(PLACES))
)
@settings(max_examples=35)
def test_every_history_folds_in_pieces_never_resumes_lower_and_always_has_one_next_action(
    fates: list[Fate], rules: Rules, cut: float, late: float, places: set[Option]
) -> None:
    history = entries_of(fates, rules)
    middle = int(cut * len(history))

    assert fold(fold(None, history[:middle]), history[middle:]) == fold(None, history)
    check_that_steps_never_fall(history)
    check_that_there_is_one_next_action(history, sorted(places, key=lambda o: o.placement.offer.key), rules, late)


def check_that_steps_never_fall(history: Sequence[Entry]) -> None:
    resumed = [entry.event.step for entry in history if isinstance(entry.event, TrainingResumed)]
    committed = [entry.event.step for entry in history if isinstance(entry.event, CheckpointCommitted)]
    assert resumed == sorted(resumed)
    assert committed == sorted(committed)


def check_that_there_is_one_next_action(
    history: Sequence[Entry], options: list[Option], rules: Rules, late: float
) -> None:
    for length in range(1, len(history) + 1):
        state = fold(None, history[:length])
        assert state is not None
        now = state.at + timedelta(seconds=late)
        action = next_action(state, options, now=now, rules=rules)

        assert next_action(state, list(options), now=now, rules=rules) == action


def entries_of(fates: list[Fate], rules: Rules) -> tuple[Entry, ...]:
    sim = a_market(fates, rules=rules, deadline_at=after(6000), approved_usd="5")
    sim.supervisor().supervise()
    return sim.ledger.read(RUN)
