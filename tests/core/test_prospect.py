"""What a run is played in: the places of its plan, or those of its submit."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from launcher.core.estimates.workload import Measured
from launcher.core.prices.options import Rules
from launcher.core.replays.prospect import agreed, prospect_of_run, prospect_of_spec
from launcher.core.runs.events import AttemptRequested
from launcher.errors import NothingFeasible
from tests.builders import T0, a_placement, a_spec, a_state, a_submit, after, an_offer
from tests.core.test_planner import a_book, on_demand

CHEAP, OTHER = an_offer(zone="a"), an_offer(zone="b", list_usd_per_hour=Decimal(7))
BOOK = a_book(CHEAP, OTHER, on_demand())


def test_a_plan_is_played_at_its_places_and_until_its_deadline() -> None:
    found = prospect_of_spec(a_spec(deadline="30 h"), BOOK, Measured(), now=T0, rules=Rules())

    assert [place.usd_per_hour for place in found.market.places] == [6, 7, 20]
    assert (found.market.deadline, found.market.steps, found.name) == (30.0, 1000, "digits")
    assert (found.deadline_assumed, found.simulated) == (False, False)
    assert prospect_of_spec(a_spec(), BOOK, Measured(), now=T0, rules=Rules()).deadline_assumed


def test_a_run_is_played_at_the_prices_of_its_attempts() -> None:
    """One place was cheaper then, another one is gone since; of the third only today's price is known."""
    then, gone = a_placement(CHEAP, usd_per_hour="4"), a_placement(an_offer(zone="gone"), usd_per_hour="5")
    state = a_state(
        a_submit(deadline_at=T0 + timedelta(hours=9)),
        AttemptRequested(attempt=1, placement=then, why="cheapest"),
        AttemptRequested(attempt=2, placement=gone, why="next"),
        AttemptRequested(attempt=3, placement=a_placement(CHEAP, usd_per_hour="4.5"), why="again"),
    )

    found = prospect_of_run(state, BOOK, rules=Rules())

    prices = {p.option.placement.offer.zone: p.usd_per_hour for p in found.market.places if p.is_spot}
    assert prices == {"a": 4.0, "b": 7.0, "gone": 5.0}
    assert (found.name, found.market.deadline) == (state.run_id, 9.0)


def test_a_run_goes_on_at_the_pace_that_was_agreed() -> None:
    pace = a_submit().pace.model_copy(update={"step_seconds": {"H100": 3.0}, "setup_seconds": 99.0})

    spec, _ = agreed(a_state(a_submit(pace=pace)))

    assert (spec.workload.step_seconds, spec.workload.setup_seconds) == ({"H100": 3.0}, 99.0)
    place = prospect_of_run(a_state(a_submit(pace=pace)), BOOK, rules=Rules()).market.places[0]
    assert place.option.step_seconds == 3.0


def test_where_it_fits_nowhere_there_is_nothing_to_replay() -> None:
    with pytest.raises(NothingFeasible, match="all 1 offers are refused"):
        prospect_of_spec(a_spec(nodes=2), a_book(an_offer(available_count=1)), Measured(), now=after(0), rules=Rules())
