"""Where the dollars went: every cent once."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from launcher.core.offers import Placement
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReady,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    Event,
    HandedOver,
    PriceChanged,
    ProgressReported,
    RunFinished,
    TrainingResumed,
)
from launcher.core.runs.report import CAUSES, bill, forecast, to_cents
from launcher.core.runs.state import spent_usd
from tests.builders import a_placement, a_state, after, an_offer


def an_attempt(number: int, first: int, last: int, outcome: str, *, placement: Placement | None = None) -> list[Event]:
    """Six entries: requested, started, resumed, progress, ended, released, a minute apart."""
    start = 60.0 * (6 * (number - 1) + 2)
    return [
        AttemptRequested(attempt=number, placement=placement or a_placement(), why="test"),
        AttemptStarted(attempt=number, started_at=after(start)),
        TrainingResumed(attempt=number, step=first, resumed_from=f"step-{first}" if first else None),
        ProgressReported(attempt=number, step=last, segment=1, step_seconds=1.2),
        AttemptEnded(attempt=number, outcome=outcome, detail="", step=last),  # type: ignore[arg-type]
        AttemptReleased(attempt=number),
    ]


def test_a_segment_costs_its_hours_at_its_own_price() -> None:
    attempt = an_attempt(1, 0, 100, "completed")

    state = a_state(*attempt)

    # started at minute 2, released at minute 6: 4 minutes at $6/h
    assert spent_usd(state, after(9999)) == Decimal(6) * 4 / 60


def test_a_price_change_bills_what_came_before_at_the_old_price() -> None:
    events = an_attempt(1, 0, 100, "completed")
    events.insert(4, PriceChanged(attempt=1, placement=a_placement(usd_per_hour="60")))

    state = a_state(*events)

    # $6/h from minute 2 to 5, then $60/h until the release at minute 7
    assert spent_usd(state, after(9999)) == Decimal(6) * 3 / 60 + Decimal(60) * 2 / 60


def test_steps_that_a_later_attempt_did_again_are_lost() -> None:
    first, second = an_attempt(1, 0, 100, "preempted"), an_attempt(2, 40, 200, "completed")

    found = bill(a_state(*first, *second, RunFinished(outcome="succeeded", detail="")), after(9999))

    # training lasted 2 of the 4 minutes of each attempt: 60 of the first 100 steps were for nothing
    minute = Decimal(6) / 60
    assert found.by_cause["lost"] == (2 * minute * Decimal("0.6")).quantize(Decimal("0.01"))
    assert found.by_cause["setup"] == found.by_cause["restarts"] == minute
    assert found.by_cause["idle"] == 2 * minute
    assert found.waste_usd == found.by_cause["lost"] + found.by_cause["restarts"] + found.by_cause["idle"]


def test_what_a_killed_attempt_did_after_its_last_word_is_lost() -> None:
    first, second = an_attempt(1, 0, 25, "preempted"), an_attempt(2, 25, 200, "completed")

    found = bill(a_state(*first, *second), after(9999))

    # the ledger heard of 25 steps of 1.2 s in two minutes of training: the rest was not built upon
    assert found.by_cause["lost"] == (Decimal(6) * 90 / 3600).quantize(Decimal("0.01"))


@given(
    prices=st.lists(st.decimals("0.01", "999", places=3), min_size=1, max_size=4),
    steps=st.lists(st.integers(0, 500), min_size=8, max_size=8),
)
def test_the_causes_add_up_to_what_was_spent_to_the_cent(prices: list[Decimal], steps: list[int]) -> None:
    events: list[Event] = []
    for n, price in enumerate(prices, start=1):
        first, last = sorted(steps[2 * n - 2 : 2 * n])
        events += an_attempt(n, first, last, "preempted", placement=a_placement(usd_per_hour=str(price)))

    found = bill(a_state(*events), after(99_999))

    assert sum(found.by_cause.values()) == found.total_usd
    assert found.total_usd == spent_usd(a_state(*events), after(99_999)).quantize(Decimal("0.01"))
    assert min(found.by_cause.values()) >= 0


@given(st.lists(st.decimals(0, 1000, places=6), min_size=1, max_size=len(CAUSES)))
def test_rounding_to_cents_moves_no_part_by_a_cent(values: list[Decimal]) -> None:
    parts = {CAUSES[n]: value for n, value in enumerate(values)}
    total = sum(parts.values(), Decimal(0)).quantize(Decimal("0.01"))

    rounded = to_cents(parts, total)

    assert sum(rounded.values()) == total
    assert all(abs(rounded[name] - parts[name]) < Decimal("0.01") + Decimal("1e-9") for name in parts)


def test_spot_saves_against_on_demand_what_its_waste_leaves() -> None:
    dear = a_placement(an_offer(on_demand_usd_per_hour=Decimal(60)))

    found = bill(a_state(*an_attempt(1, 0, 100, "completed", placement=dear)), after(9999))

    # on demand: one minute of set-up and two of training at $60/h; spot: four minutes at $6/h
    assert found.saved_usd == Decimal("3.00") - Decimal("0.40")


def test_an_unknown_on_demand_price_leaves_the_saving_unknown() -> None:
    assert bill(a_state(*an_attempt(1, 0, 100, "completed")), after(9999)).saved_usd is None


def test_a_preemption_now_costs_the_steps_since_the_commit_and_a_restart() -> None:
    events = an_attempt(1, 0, 0, "completed")[:3]
    events.append(CheckpointCommitted(attempt=1, step=50, name="step-50-a1", bytes=10, seconds=1.0, segment=1))
    events.append(ProgressReported(attempt=1, step=110, segment=1, step_seconds=1.0))

    found = forecast(a_state(*events), after(400))

    # 60 steps of 1 s and 60 s of set-up at $6/h
    assert found.preemption_now_usd == Decimal("0.20")
    assert found.usd_per_step == Decimal(6) / 3600
    assert found.left_seconds == 890


def test_before_anything_is_measured_the_promised_pace_counts() -> None:
    found = forecast(a_state(*an_attempt(1, 0, 0, "completed")[:3]), after(400))

    # 10 s a step are promised, 60 s of set-up, $6/h
    assert found.usd_per_step == Decimal(6) * 10 / 3600
    assert found.preemption_now_usd == Decimal("0.10")


def a_handover(*more: Event) -> list[Event]:
    """A minute each: one trains from minute 3 on, the other is there from minute 4 on, at $60/h, and ready at 6."""
    return [
        *an_attempt(1, 0, 100, "stopped")[:3],
        AttemptRequested(attempt=2, placement=a_placement(usd_per_hour="60"), why="test", relieves=1),
        AttemptStarted(attempt=2, started_at=after(240)),
        AttemptReady(attempt=2),
        *more,
    ]


def test_a_second_machine_is_a_restart_until_it_trains_and_both_are_in_the_bill() -> None:
    took_over = [
        AttemptEnded(attempt=1, outcome="stopped", detail="", step=100, has_exited=True),
        HandedOver(attempt=2),
        AttemptReleased(attempt=1),
        TrainingResumed(attempt=2, step=100, resumed_from="step-100-a1"),
    ]
    state = a_state(*a_handover(*took_over))

    found = bill(state, after(600))

    # attempt 1 from minute 2 to 9 at 10 cents a minute, attempt 2 from minute 4 to 10 at a dollar
    assert found.total_usd == Decimal("6.70") == sum(found.by_cause.values())
    assert found.by_cause["restarts"] == 6
    assert found.by_cause["setup"] == Decimal("0.10")
    assert found.by_cause["useful"] == Decimal("0.40")
    assert found.by_cause["lost"] == 0


def test_a_second_machine_that_never_took_over_was_a_restart_for_nothing() -> None:
    lost = [AttemptEnded(attempt=2, outcome="preempted", detail=""), AttemptReleased(attempt=2)]
    state = a_state(*a_handover(*lost))

    found = bill(state, after(600))

    assert found.by_cause["restarts"] == 3  # from minute 4 to 7
    assert found.by_cause["idle"] == 1
    assert found.by_cause["useful"] == Decimal("0.70")  # the first one trains on


def test_the_forecast_is_that_of_the_machine_that_trains() -> None:
    alone, both = (forecast(a_state(*events), after(600)) for events in (a_handover()[:3], a_handover()))

    assert both.usd_per_step == alone.usd_per_step == Decimal(6) * 10 / 3600
    assert both.total_usd is not None
    assert alone.total_usd is not None
    assert both.total_usd - alone.total_usd == 6  # what the second one has cost so far
