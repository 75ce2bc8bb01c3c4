"""Other policies: each does what its name says, and none that minds the deadline is late."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.estimates.rollout import Future, roll
from launcher.core.estimates.weather import Weather
from launcher.core.policy.decision import HandOver, Keep, Launch, Wait
from launcher.core.policy.diary import Diary
from launcher.core.policy.guards import Holding, Seen, Standing
from launcher.core.policy.market import Market
from launcher.core.replays.rivals import LEAD_CHANGEOVERS, OURS, POLICIES
from tests.core.futures import Told, a_market, an_outlook, on_demand, place_in, spot

SPOT, DEARER, FIRM = spot("a"), spot("b", usd_per_hour="8"), on_demand(usd_per_hour="20")
STEPS = 7200  # 20 hours
ON_TIME = [name for name in POLICIES if name not in (OURS, "spot-only")]


def market(hours: float = 40.0, *options: object) -> Market:
    return a_market(*(options or (SPOT, DEARER, FIRM)), steps=STEPS, hours=hours)  # type: ignore[arg-type]


def played(name: str, sky: Weather, hours: float = 40.0) -> tuple[Future, Diary]:
    diary = Diary()
    return roll(market(hours), sky, an_outlook(), decide=POLICIES[name].decide, diary=diary), diary


def where(diary: Diary) -> list[str]:
    return [stay.place.option.capacity.value for stay in diary.stays]


UP, DOWN = Told(a=[], b=[]), Told(a=[0.0], b=[0.0])


def test_on_demand_asks_for_nothing_else() -> None:
    future, diary = played("on-demand", UP)

    assert where(diary) == ["on_demand"]
    assert future.fallback_hours == pytest.approx(future.hours, abs=0.1)


@pytest.mark.parametrize("name", ["never-wait", "greedy", "uniform-progress", "spot-only"])
def test_where_spot_never_goes_away_all_others_are_on_the_cheapest(name: str) -> None:
    future, diary = played(name, UP)

    assert [stay.place.option for stay in diary.stays] == [SPOT]
    assert future.fallback_hours == 0


def test_never_wait_goes_to_the_fallback_in_the_minute_in_which_no_spot_is_left() -> None:
    future, diary = played("never-wait", Told(a=[5.0, 6.0], b=[0.0]))

    assert where(diary) == ["spot", "on_demand"]
    assert diary.stays[1].since == pytest.approx(5.0, abs=0.1)
    assert future.hours < 21


def test_greedy_waits_until_the_fallback_is_due_and_never_leaves_it() -> None:
    future, diary = played("greedy", Told(a=[5.0, 36.0], b=[0.0]))

    assert where(diary) == ["spot", "on_demand"]
    assert diary.stays[1].since > 20
    assert future.hours <= 40


def test_spot_only_may_be_late() -> None:
    future, diary = played("spot-only", Told(a=[5.0, 60.0], b=[0.0]))

    assert where(diary) == ["spot", "spot"]
    assert future.hours > 60


def standing(
    done_hours: float, *, unsaved_hours: float = 0.0, on: str | None = None, down_until: float | None = None
) -> Standing:
    found = market()
    steps, ahead = STEPS - done_hours / found.unit_hours, unsaved_hours / found.unit_hours
    seen = {}
    if down_until is not None:
        seen = {p.key: Seen(is_up=False, since=0.0, again_at=down_until) for p in found.places if p.is_spot}
    place = {"spot": place_in(found, SPOT), "fallback": place_in(found, FIRM)}[on] if on else None
    return Standing(steps, 10.0, here=place and Holding(place, 0.0, trains=True, ahead=ahead), seen=seen)


def line_hours(now: float) -> float:
    """Hours of work that the straight line wants by then."""
    found = market()
    return STEPS * found.unit_hours * now / (found.deadline - found.reserve_hours)


def test_uniform_progress_waits_ahead_of_the_line_and_not_behind_it() -> None:
    decide, found, now = POLICIES["uniform-progress"].decide, market(), 10.0

    ahead = decide(standing(line_hours(now) + 0.5, down_until=99), found, now)
    behind = decide(standing(line_hours(now) - 0.5, down_until=99), found, now)

    assert isinstance(ahead, Wait)
    assert ahead.until == pytest.approx(now + 0.5 / line_hours(1.0), abs=0.01)
    assert isinstance(behind, Launch)
    assert behind.place.option is FIRM
    assert behind.why == "behind the line"


def test_uniform_progress_leaves_the_fallback_only_with_a_lead_of_two_changeovers() -> None:
    decide, found, now = POLICIES["uniform-progress"].decide, market(), 10.0
    lead = line_hours(LEAD_CHANGEOVERS * found.changeover_hours)

    near = decide(standing(line_hours(now) + 0.9 * lead, on="fallback"), found, now)
    far = decide(standing(line_hours(now) + 1.1 * lead, on="fallback"), found, now)

    assert isinstance(near, Keep)
    assert isinstance(far, HandOver)
    assert (far.place.option, far.overlaps) == (SPOT, False)


def test_uniform_progress_counts_steps_that_are_not_saved_yet_as_done() -> None:
    decide, found, now = POLICIES["uniform-progress"].decide, market(), 10.0
    lead = line_hours(LEAD_CHANGEOVERS * found.changeover_hours)

    action = decide(standing(line_hours(now), unsaved_hours=1.1 * lead, on="fallback"), found, now)

    assert isinstance(action, HandOver)


def test_spot_is_not_asked_for_where_a_start_that_comes_to_nothing_would_make_the_run_late() -> None:
    roomy = market()
    spare = roomy.deadline - place_in(roomy, FIRM).finish_hours(STEPS) - roomy.reserve_hours
    useful = place_in(roomy, SPOT).useful_hours

    for hours, option in ((roomy.deadline - spare + 0.9 * useful, FIRM), (roomy.deadline - spare + 1.1 * useful, SPOT)):
        action = POLICIES["never-wait"].decide(Standing(STEPS, 0.0), market(hours), 0.0)
        assert isinstance(action, Launch)
        assert action.place.option is option


def test_uniform_progress_stays_on_a_spot_machine_whatever_the_line_wants() -> None:
    decide, found = POLICIES["uniform-progress"].decide, market()

    assert isinstance(decide(standing(0.1, on="spot"), found, 10.0), Keep)


CHANGES = st.lists(st.floats(0.02, 6.0), max_size=12).map(
    lambda spans: [sum(spans[: n + 1]) for n in range(len(spans))]
)


@settings(max_examples=60)
@given(a=CHANGES, b=CHANGES, name=st.sampled_from(ON_TIME), hours=st.sampled_from([22.0, 24.0, 30.0, 60.0]))
def test_no_policy_under_the_guard_of_the_time_is_late(
    a: Sequence[float], b: Sequence[float], name: str, hours: float
) -> None:
    future, _ = played(name, Told(a=a, b=b), hours)

    assert future.hours <= hours


def test_a_policy_is_played_only_where_it_has_what_it_needs() -> None:
    only_spot, only_firm = a_market(SPOT), a_market(FIRM)

    assert [p.name for p in POLICIES.values() if p.fits(only_spot)] == [OURS, "spot-only"]
    assert [p.name for p in POLICIES.values() if p.fits(only_firm)] == [OURS, "on-demand"]
    assert all(p.fits(market()) for p in POLICIES.values())
