"""Why a run came to something else than its promise: every dollar of the difference once."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.estimates.drift import Cause, drift
from launcher.core.offers import Capacity
from launcher.core.runs.events import Pace
from launcher.core.runs.report import bill
from launcher.core.runs.state import RunState
from tests.builders import a_placement, after, an_offer
from tests.finished import EXPECTED, a_finished_run, a_promise

FIRM = a_placement(an_offer(capacity=Capacity.ON_DEMAND), usd_per_hour="18")


def causes(state: RunState) -> dict[str, Cause]:
    return {cause.name: cause for cause in drift(state)}


def test_steps_that_take_longer_are_named_with_what_they_cost() -> None:
    found = causes(a_finished_run(step_seconds=11.2))["step time"]

    # 300 steps of 1.2 s more at $6 an hour
    assert found == Cause(name="step time", words="step time +12 %", usd=Decimal("0.60"))


def test_preemptions_are_counted_against_those_expected() -> None:
    """Each life trains for ten minutes: 60 steps of 10 s, of which the next life builds upon 30."""
    state = a_finished_run((0, 60, "preempted"), (30, 90, "preempted"), (60, 300, "completed"))

    found = causes(state)["preemptions"]

    assert found.words == "1.6 more preemptions than expected (2, not 0.4), restarts of 20 min instead of 3 min"
    assert found.usd == Decimal("3.00")  # two times half of ten minutes of training, and two restarts of ten minutes


def test_a_failure_is_not_told_as_a_preemption() -> None:
    found = causes(a_finished_run((0, 60, "failed"), (0, 300, "completed")))["preemptions"]

    assert found.words.startswith("0.4 fewer preemptions than expected (0, not 0.4) and 1 other failure, restarts of")


def test_a_higher_price_explains_what_the_steps_cost_more_at_the_promised_pace() -> None:
    found = causes(a_finished_run(placements=[a_placement(usd_per_hour="7.50")], step_seconds=20.0))["price"]

    # 300 steps of the promised 10 s at $1.50 more
    assert found == Cause(name="price", words="price +25 %", usd=Decimal("1.25"))


def test_steps_that_were_done_twice_are_not_a_matter_of_the_pace() -> None:
    """The first life's last 30 steps were lost: 300 steps count, not 330."""
    found = causes(a_finished_run((0, 60, "preempted"), (30, 300, "completed"), step_seconds=11.2))["step time"]

    assert found.usd == Decimal("0.60")


def test_another_type_of_gpu_is_measured_against_its_own_promised_pace() -> None:
    """Half as fast at half the price: as promised."""
    pace = Pace(
        step_seconds={"H100": 10.0, "A100": 20.0}, setup_seconds=60, save_seconds=5, checkpoint_gb=1, source="declared"
    )
    slower = a_placement(an_offer(gpu="A100"), usd_per_hour="3")

    found = causes(a_finished_run(placements=[slower], pace=pace, step_seconds=20.0))

    assert not {"step time", "price"} & set(found)


def test_hours_on_the_fallback_are_named_apart_from_the_price() -> None:
    state = a_finished_run((0, 60, "preempted"), (60, 300, "completed"), placements=[a_placement(), FIRM])

    found = causes(state)

    assert "price" not in found
    assert found["fallback"].words == "30 min on the fallback instead of 0 min"
    assert found["fallback"].usd == Decimal("8.00")  # 240 steps of 10 s at $12 more


def test_a_fallback_that_was_expected_and_not_needed_saved_its_premium() -> None:
    expected = EXPECTED.model_copy(update={"fallback_hours": 0.5, "fallback_usd_per_hour": Decimal(18)})

    found = causes(a_finished_run(promise=a_promise(expected=expected)))["fallback"]

    assert found.words == "0 min on the fallback instead of 30 min"
    assert found.usd == Decimal("-6.00")


def test_a_run_that_was_to_be_on_demand_has_no_fallback() -> None:
    expected = EXPECTED.model_copy(update={"usd_per_hour": Decimal(18)})

    assert "fallback" not in causes(a_finished_run(placements=[FIRM], promise=a_promise(expected=expected)))


@pytest.mark.parametrize("seconds", [8.0, 10.0, 15.0])
def test_the_largest_comes_first_and_other_last(seconds: float) -> None:
    found = drift(a_finished_run((0, 60, "preempted"), (30, 300, "completed"), step_seconds=seconds))

    dollars = [abs(cause.usd or 0) for cause in found if cause.name != "other"]
    assert dollars == sorted(dollars, reverse=True)
    assert [cause.name for cause in found].index("other") == len(found) - 1


@given(
    usd=st.decimals("0", "50", places=2),
    cuts=st.lists(st.integers(1, 299), max_size=3, unique=True),
    prices=st.lists(st.decimals("0.01", "50", places=2), min_size=4, max_size=4),
    seconds=st.none() | st.floats(0.1, 100),
    knows=st.booleans(),
)
def test_the_causes_add_up_to_the_difference_to_the_cent(
    usd: Decimal, cuts: list[int], prices: list[Decimal], seconds: float | None, knows: bool
) -> None:
    steps = [0, *sorted(cuts), 300]
    lives = [(first, last, "preempted") for first, last in pairwise(steps[:-1])]
    promise = a_promise(usd=str(usd)) if knows else a_promise(usd=str(usd), step=None, expected=None)
    state = a_finished_run(
        *lives,
        (steps[-2], 300, "completed"),
        promise=promise,
        placements=[a_placement(usd_per_hour=price) for price in prices],
        step_seconds=seconds,
    )

    explained = sum((cause.usd for cause in drift(state) if cause.usd is not None), Decimal(0))

    assert explained == bill(state, after(10**6)).total_usd - usd


def test_a_promise_of_an_older_launcher_does_not_know_how_many_preemptions_it_expected() -> None:
    old = a_promise(step=None, expected=None)

    found = causes(a_finished_run((0, 60, "preempted"), (60, 300, "completed"), promise=old))

    assert found["preemptions"] == Cause(
        name="preemptions", words="1 preemption, expected number not recorded", usd=None
    )
    assert set(found) == {"preemptions", "other"}


def test_a_run_that_came_out_as_promised_has_nothing_to_explain() -> None:
    """Forty billed minutes at $6: ten each of waiting, training, ending; the bill says which."""
    state = a_finished_run((0, 300, "completed"), step_seconds=10.0)
    spent = bill(state, after(10**6))
    parts = {"steps": spent.by_cause["useful"], "setup": spent.by_cause["setup"], "idle": spent.by_cause["idle"]}
    exact = a_promise(usd=str(spent.total_usd), expected=EXPECTED.model_copy(update={"parts_usd": parts}))

    assert drift(a_finished_run((0, 300, "completed"), promise=exact)) == ()
