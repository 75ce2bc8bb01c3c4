"""What is decided where a run stands so. Whether the guards hold whatever happens: `benchmarks/policy/adversary.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.policy.decision import Action, HandOver, Holding, Keep, Launch, Leave, Seen, Standing, Wait, decide
from launcher.core.policy.guards import FAR_SHORT, HAIR
from launcher.core.policy.market import PAUSE_HOURS, Market, Place
from tests.core.places import Advice, a_market, firm, spot

RIGHT = 10 * HAIR  # on the right side of an edge


def a_run(*, steps: float = 1000.0, **fields: Any) -> Standing:
    return Standing(**{"steps": steps, "spent": 0.0} | fields)


def on(place: Place, *, since: float = 0.0, trains: bool = True, ahead: float = 0.0) -> Holding:
    return Holding(place, since=since, trains=trains, ahead=ahead)


def down(again_at: float = math.inf, since: float = 0.0) -> Seen:
    return Seen(is_up=False, since=since, again_at=again_at)


def to(action: Action) -> str | None:
    """The place to which it goes."""
    return action.place.key if isinstance(action, Launch | HandOver) else None


def spare(market: Market, run: Standing, now: float) -> float:
    assert market.fallback is not None
    return market.deadline - now - market.fallback.finish_hours(run.steps)


def at_spare(market: Market, run: Standing, hours: float) -> float:
    """The instant at which the slack is so much."""
    return spare(market, run, 0.0) - hours


def needed_to_start(market: Market, place: Place) -> float:
    return market.reserve_hours + place.useful_hours + place.unsaved_hours


# nothing runs


def test_the_cheapest_spot_is_launched_where_the_guide_is_for_spot() -> None:
    market = a_market(spot("a"), spot("b", 6.0), firm(), advice=Advice())

    assert decide(a_run(), market, 0.0) == Launch(market.places[0], "cheapest spot")


@pytest.mark.parametrize(
    "worse",
    [
        {"usd": 3.2},
        {"setup_hours": 0.6},
        {"arrival_usd": 3.0},
        {"home": "far"},
        {"scale": 5.0, "setup_hours": 0.3},
    ],
)
def test_of_a_tier_the_place_with_the_least_price_ends_and_moves_is_taken(worse: dict[str, Any]) -> None:
    market = a_market(spot("a", **worse), spot("b", 3.1), firm(), advice=Advice(), moves={("near", "far"): 4.0})

    assert to(decide(a_run(homes=(None, "near")), market, 0.0)) == "b"


def test_what_its_machines_have_taught_of_a_place_counts() -> None:
    market = a_market(spot("a"), spot("b", 3.1), firm(), advice=Advice())

    assert to(decide(a_run(), market, 0.0)) == "a"
    assert to(decide(a_run(scales={"a": 5.0}), market, 0.0)) == "b"


def test_where_slack_is_dear_a_short_set_up_is_worth_its_price() -> None:
    places = spot("quick", 3.2, setup_hours=0.05), spot("slow", 3.0, setup_hours=0.25), firm()

    assert to(decide(a_run(), a_market(*places, advice=Advice(slack_price=0.0)), 0.0)) == "slow"
    assert to(decide(a_run(), a_market(*places, advice=Advice(slack_price=1.0)), 0.0)) == "quick"


def test_a_place_that_refused_is_asked_again_at_its_time_and_not_before() -> None:
    market = a_market(spot("a"), spot("b"), firm(), advice=Advice())
    run = a_run(seen={"a": down(again_at=1.0)})

    assert to(decide(run, market, 1.0 - 1e-6)) == "b"
    assert to(decide(run, market, 1.0)) == "a"


def test_a_feed_is_believed_of_spot_and_not_of_other_capacity() -> None:
    market = a_market(spot("a"), firm(), advice=Advice(down="fallback"), has_feed=True)
    run = a_run(seen={"a": down(again_at=1.0), "od": down(again_at=1.0)})

    assert to(decide(run, market, 2.0)) == "od"
    assert to(decide(a_run(seen={"a": Seen(is_up=True, since=0.0)}), market, 2.0)) == "a"


def test_dearer_spot_is_asked_in_the_guides_order_where_the_cheapest_has_none() -> None:
    places = spot("a", 2.0), spot("b", 4.0), spot("c", 6.0), firm()
    run = a_run(seen={"a": down()})

    assert to(decide(run, a_market(*places, advice=Advice(asks=(0, 1))), 0.0)) == "b"
    assert to(decide(run, a_market(*places, advice=Advice(asks=(1,))), 0.0)) == "c"
    assert decide(run, a_market(*places, advice=Advice()), 0.0)[-1] == "spot is expected back in time"


def test_a_wait_is_for_spot_that_the_guide_expects_back() -> None:
    run = a_run(seen={"a": down()})

    assert isinstance(decide(run, a_market(advice=Advice(down="wait")), 0.0), Wait)
    assert to(decide(run, a_market(advice=Advice(down="fallback")), 0.0)) == "od"


def test_who_is_in_a_hurry_or_has_no_spot_does_not_wait() -> None:
    run = a_run(seen={"a": down()})

    assert to(decide(run, a_market(advice=Advice(), is_urgent=True), 0.0)) == "od"
    assert to(decide(run, a_market(firm(), advice=Advice()), 0.0)) == "od"
    assert to(decide(run, a_market(advice=Advice(), spot_first=False), 0.0)) == "od"


def test_without_a_feed_nobody_waits_for_a_place_to_grow_older() -> None:
    run = a_run(seen={"a": Seen(is_up=True, since=0.0)})

    assert to(decide(run, a_market(advice=Advice(up="wait")), 0.0)) == "a"
    assert isinstance(decide(run, a_market(advice=Advice(up="wait"), has_feed=True), 0.0), Wait)


def test_a_wait_ends_when_a_place_may_be_asked_again() -> None:
    run = a_run(seen={"a": down(again_at=0.07)})

    assert decide(run, a_market(advice=Advice()), 0.0)[0] == 0.07


def test_a_wait_ends_when_only_the_fallback_is_left() -> None:
    quick = spot("a", setup_hours=0.01, closing_hours=0.01, interval_hours=0.02)
    market, run = a_market(quick, firm(), advice=Advice()), a_run(seen={"a": down()})
    due_at = at_spare(market, run, market.reserve_hours)

    wait = decide(run, market, due_at - 0.06)

    assert isinstance(wait, Wait)
    assert wait.until == pytest.approx(due_at)


def test_nobody_waits_for_spot_that_could_not_be_started_any_more() -> None:
    market, run = a_market(advice=Advice()), a_run(seen={"a": down()})
    edge = at_spare(market, run, needed_to_start(market, market.places[0]))

    assert isinstance(decide(run, market, edge - RIGHT), Wait)
    assert to(decide(run, market, edge + RIGHT)) == "od"


def test_without_a_fallback_spot_is_all_there_is() -> None:
    market = a_market(spot("a"), spot("b", 30.0))

    assert to(decide(a_run(), market, 0.0)) == "a"
    assert to(decide(a_run(seen={"a": down()}), market, 0.0)) == "b"
    assert isinstance(decide(a_run(seen={"a": down(), "b": down()}), market, 0.0), Wait)


# the guards of a start


@pytest.mark.parametrize("is_short", [False, True])
def test_spot_is_started_only_with_time_for_a_try_in_vain_and_for_the_fallback(is_short: bool) -> None:
    market, run = a_market(advice=Advice(down="fallback")), a_run()
    edge = at_spare(market, run, needed_to_start(market, market.places[0]))

    assert to(decide(run, market, edge + (RIGHT if is_short else -RIGHT))) == ("od" if is_short else "a")


@pytest.mark.parametrize("is_short", [False, True])
def test_spot_is_started_only_with_money_for_a_try_in_vain_and_for_the_fallback(is_short: bool) -> None:
    market = a_market(advice=Advice(down="fallback"), steps=1000)
    fallback = market.places[1]
    # set-up, what may be lost unsaved, a close, and the fallback that waits for the close on the way back
    lost = (0.2 + 0.04 + 0.25 + 0.01) * 3.0 + 0.04 * 10.0
    left = market.most_usd - fallback.usd_to_finish(1000) - lost

    run = a_run(spent=left + (1e-6 if is_short else -1e-6))

    assert to(decide(run, market, 0.0)) == ("od" if is_short else "a")


def test_what_the_run_may_spend_bounds_where_it_goes() -> None:
    market = a_market(advice=Advice(down="fallback"))
    fallback = market.places[1].usd_to_finish(1000)

    assert to(decide(a_run(left=fallback + 10.0), market, 0.0)) == "a"
    assert to(decide(a_run(left=fallback + 0.1), market, 0.0)) == "od"  # it would not bear a try in vain
    assert to(decide(a_run(left=fallback - 0.1), market, 0.0)) == "a"  # the fallback would not be paid for in any case
    assert isinstance(decide(a_run(left=0.5), market, 0.0), Wait)


def test_the_cheapest_fallback_that_is_surely_in_time_is_taken() -> None:
    market = a_market(firm("dear", 20.0), firm("od"), firm("slow", 5.0, step_hours=0.018))
    run = a_run()

    sure = market.deadline - 0.21 - 18.0 - (market.reserve_hours - market.poll_hours)
    assert to(decide(run, market, sure - RIGHT)) == "slow"
    assert to(decide(run, market, sure + 1e-6)) == "od"


def test_a_fallback_that_refused_is_waited_for_where_the_others_might_come_too_late() -> None:
    market = a_market(firm("od"), firm("slow", 11.0, step_hours=0.0101))
    run = a_run()
    now = at_spare(market, run, 0.9)

    # it refused a while ago and is owed capacity within the hour; the other one, asked now, might come too late
    refused = a_run(seen={"od": down(since=now - 0.2, again_at=now + 0.1)})

    assert isinstance(decide(refused, market, now), Wait)
    assert to(decide(refused, market, now + 0.1)) == "od"
    assert to(decide(a_run(seen={"od": down(since=now, again_at=now + 0.1)}), market, now)) == "slow"


def test_a_price_that_may_come_too_late_is_no_reason_to_risk_money() -> None:
    market = a_market(spot("a"), firm("od"), firm("held", 0.5, opens_at=9.5), advice=Advice(down="fallback"))
    run = a_run(steps=800.0, spent=25.0)

    assert to(decide(run, market, 2.0)) == "od"
    assert to(decide(run._replace(spent=20.0), market, 2.0)) == "a"


def test_a_deadline_that_is_lost_is_followed_by_the_least_delay() -> None:
    market = a_market(firm("od", 8.0), firm("fast", 30.0, step_hours=0.005))

    assert to(decide(a_run(), market, 16.0)) == "fast"


def test_where_nothing_else_has_capacity_any_machine_does_once_the_deadline_is_lost() -> None:
    market = a_market(spot("dear", 30.0), firm(), advice=Advice(down="fallback"))
    run = a_run(seen={"od": down()})

    assert isinstance(decide(run, market, 0.0), Wait)
    assert to(decide(run, market, at_spare(market, run, -0.1))) == "dear"


def test_a_reservation_that_opens_later_is_waited_for_where_starting_at_once_would_be_much_dearer() -> None:
    places = firm("od"), firm("cheap", 2.0, opens_at=3.0)

    wait = decide(a_run(), a_market(*places), 2.9)

    assert isinstance(wait, Wait)
    assert wait.until == 3.0
    assert to(decide(a_run(), a_market(*places), 3.0)) == "cheap"
    assert to(decide(a_run(), a_market(*places, is_urgent=True), 0.0)) == "od"
    assert to(decide(a_run(), a_market(places[0], firm("alike", 9.8, opens_at=3.0)), 0.0)) == "od"


def test_capacity_that_stays_is_handed_over_to_other_such_where_that_pays_for_the_change() -> None:
    places = firm("od"), firm("held", 2.0, opens_at=3.0)
    market, run = a_market(*places), a_run(here=on(places[0]))

    over = decide(run, market, 3.0)

    assert isinstance(over, HandOver)
    assert (over.place.key, over.overlaps) == ("held", True)
    assert isinstance(decide(run, market, 2.9), Keep)
    assert isinstance(decide(run._replace(steps=20.0), market, 3.0), Keep)
    assert isinstance(decide(run, a_market(*places, hands_over=False), 3.0), Keep)


def test_capacity_that_closes_is_used_as_spot_is() -> None:
    market = a_market(firm("od"), firm("held", 2.0, closes_at=5.0), advice=Advice(down="fallback"))

    assert to(decide(a_run(), market, 0.0)) == "held"
    assert to(decide(a_run(), market, 4.9)) == "od"  # closed before it would be of use


# on the cheapest spot


def test_spot_that_works_is_kept_until_something_happens() -> None:
    market = a_market(advice=Advice())

    assert decide(a_run(here=on(market.places[0])), market, 1.0) == Keep()


def test_a_machine_that_is_slower_than_the_fallback_is_looked_at_before_the_slack_is_gone() -> None:
    market = a_market(spot("a", step_hours=0.0125), firm(), advice=Advice())
    run = a_run(here=on(market.places[0]))

    keep = decide(run, market, 1.0)

    assert isinstance(keep, Keep)
    left = spare(market, run, 1.0) - 1.0 - market.places[0].closing_hours - 0.26
    assert keep.until == pytest.approx(1.0 + left / 0.2)


def test_where_a_lost_interval_would_reach_the_guard_it_is_looked_at_in_time() -> None:
    market = a_market(advice=Advice())
    place = market.places[0]
    run = a_run(here=on(place))
    due_at = at_spare(market, run, market.reserve_hours + place.closing_hours)

    assert decide(run, market, due_at - place.unsaved_hours - 0.01) == Keep()
    assert decide(run, market, due_at - 0.1)[0] == pytest.approx(due_at)


@pytest.mark.parametrize(("hours", "is_due"), [(-RIGHT, False), (RIGHT, True)])
def test_the_guard_of_the_time_is_due_with_a_close_and_the_fallbacks_delay_left(hours: float, is_due: bool) -> None:
    market = a_market(advice=Advice())
    run = a_run(here=on(market.places[0]))
    edge = at_spare(market, run, market.reserve_hours + market.places[0].closing_hours)

    action = decide(run, market, edge + hours)

    if is_due:
        assert action == HandOver(
            market.places[1], "only 1 h 02 m of slack are left before the deadline", overlaps=True
        )
    else:
        assert isinstance(action, Keep)
        assert action.until > edge + hours


def test_capacity_that_the_money_does_not_allow_gives_no_slack() -> None:
    market = a_market(spot(), firm("od"), firm("fast", 40.0, step_hours=0.005), advice=Advice())
    run = a_run(here=on(market.places[0]))

    assert to(decide(run, market, at_spare(market, run, market.reserve_hours))) == "od"


def due(market: Market, **fields: Any) -> Action:
    """What is decided on the first place, the guard being due."""
    run = a_run(here=on(market.places[0], **fields))
    return decide(run, market, at_spare(market, run, market.reserve_hours))


def test_without_a_handover_the_machine_is_left_for_the_fallback() -> None:
    assert isinstance(due(a_market(advice=Advice(), hands_over=False)), Leave)


def test_a_machine_that_does_not_train_yet_ends_as_soon_as_the_fallback_is_granted() -> None:
    action = due(a_market(advice=Advice()), trains=False)

    assert isinstance(action, HandOver)
    assert (action.place.key, action.overlaps) == ("od", False)


def test_while_the_fallback_refuses_the_machine_is_kept_until_it_may_be_asked_again() -> None:
    market = a_market(advice=Advice())
    run = a_run(here=on(market.places[0]))
    now = at_spare(market, run, market.reserve_hours)

    assert decide(run._replace(seen={"od": down(again_at=now + 0.2)}), market, now) == Keep(now + 0.2)


def test_what_one_has_is_not_given_up_for_what_may_refuse_once_the_deadline_is_lost() -> None:
    market = a_market(advice=Advice(), hands_over=False)
    run = a_run(here=on(market.places[0]))

    assert isinstance(decide(run, market, at_spare(market, run, 0.5)), Leave)
    assert isinstance(decide(run, market, at_spare(market, run, -0.5)), Keep)


def test_of_what_was_not_saved_nothing_counts_for_the_guard() -> None:
    market = a_market(advice=Advice())
    run = a_run(here=on(market.places[0], ahead=20.0))

    assert to(decide(run, market, at_spare(market, run, market.reserve_hours))) == "od"


def test_while_a_second_machine_is_on_its_way_nothing_else_is_asked() -> None:
    market = a_market(spot("a", 5.0), spot("b", 2.0), firm(), advice=Advice())

    keep = decide(a_run(here=on(market.places[0]), is_joined=True), market, 1.0)

    assert keep == Keep()


@pytest.mark.parametrize(("usd", "moves"), [(2.55, True), (2.97, False)])
def test_spot_that_works_is_left_only_for_clearly_cheaper_spot(usd: float, moves: bool) -> None:
    market = a_market(spot("a", 3.0, setup_hours=0.02), spot("b", usd, setup_hours=0.02), firm(), advice=Advice())
    vars(market)["tiers"] = (market.places[:2],)

    action = decide(a_run(here=on(market.places[0], since=0.0)), market, 0.0)

    assert isinstance(action, HandOver if moves else Keep)


def test_without_a_handover_spot_that_works_is_not_left_for_cheaper_spot() -> None:
    market = a_market(spot("a", 3.0), spot("b", 2.8), firm(), advice=Advice(), hands_over=False)

    assert decide(a_run(here=on(market.places[0])), market, 0.0) == Keep()


def test_cheaper_spot_that_refused_is_asked_again_when_its_outage_is_twice_as_old() -> None:
    market = a_market(spot("a", 3.2), spot("b", 3.0, setup_hours=0.02), firm(), advice=Advice())
    run = a_run(here=on(market.places[0]), seen={"b": down(since=1.0, again_at=1.25)})

    keep = decide(run, market, 1.3)

    assert keep == Keep(1.5)


def test_who_hardly_has_capacity_is_asked_last_and_never_beside_a_machine_that_works() -> None:
    market = a_market(spot("a", 3.2), spot("b", 3.0, is_scarce=True), spot("c", 3.1), firm(), advice=Advice())
    a, b, c, _ = market.places
    asked_c = {"c": down(since=0.0, again_at=1.0)}

    assert decide(a_run(), market, 0.5) == Launch(c, "cheapest spot")
    assert decide(a_run(seen=asked_c | {"a": down(since=0.0, again_at=1.0)}), market, 0.5) == Launch(b, "cheapest spot")
    assert isinstance(decide(a_run(here=on(a), seen=asked_c), market, 0.5), Keep)


# the guard of the money, while a machine runs


def test_a_machine_that_does_not_get_ready_is_left_before_it_uses_up_the_money() -> None:
    market = a_market(advice=Advice())
    place, fallback = market.places
    run = a_run(here=on(place, trains=False))
    left_at = (market.most_usd - fallback.usd_to_finish(1000)) / place.usd_per_hour - place.closing_hours

    keep = decide(run, market, 0.0)
    assert keep[0] == pytest.approx(left_at)

    spent = left_at * place.usd_per_hour
    assert isinstance(decide(run._replace(spent=spent), market, left_at), Leave)
    assert isinstance(decide(run._replace(spent=spent - 0.1), market, left_at), Keep)


def test_spot_that_became_dearer_than_the_fallback_is_left_unless_little_is_to_be_done() -> None:
    market = a_market(spot("a", 12.0), firm(), advice=Advice())
    run = a_run(here=on(market.places[0]))

    assert decide(run, market, 0.0) == Leave("the fallback is cheaper by now")
    assert isinstance(decide(run._replace(steps=50.0), market, 0.0), Keep)


# on the fallback, and on dearer spot


def on_fallback(market: Market, **fields: Any) -> Action:
    assert market.fallback is not None
    return decide(a_run(**{"here": on(market.fallback)} | fields), market, 0.0)


def test_the_fallback_is_left_for_spot_where_the_guide_is_for_it() -> None:
    over = on_fallback(a_market(advice=Advice(over="hand_over")))
    leave = on_fallback(a_market(advice=Advice(over="leave")))
    stay = on_fallback(a_market(advice=Advice(over="stay")))

    assert isinstance(over, HandOver)
    assert isinstance(leave, HandOver)
    assert (over.place.key, over.overlaps) == ("a", True)
    assert (leave.place.key, leave.overlaps) == ("a", False)
    assert isinstance(stay, Keep)


def test_a_machine_that_ends_before_the_new_one_is_ready_needs_time_for_its_set_up() -> None:
    over, leave = (a_market(advice=Advice(over=choice)) for choice in ("hand_over", "leave"))
    place, fallback = over.places
    run = a_run(here=on(fallback))
    lost = place.closing_hours + place.unsaved_hours + fallback.closing_hours
    now = at_spare(over, run, over.reserve_hours + lost + PAUSE_HOURS + 0.01)

    assert isinstance(decide(run, over, now), HandOver)
    assert isinstance(decide(run, leave, now), Keep)
    assert isinstance(decide(run, leave, now - place.setup_hours + PAUSE_HOURS), HandOver)


def test_the_fallback_is_left_for_a_wait_only_where_the_guide_money_and_time_allow_it() -> None:
    waits = a_market(advice=Advice(stay="leave"))
    run = a_run(here=on(waits.places[1]), seen={"a": down()})

    assert isinstance(decide(run, waits, 0.0), Leave)
    assert isinstance(decide(run._replace(spent=8.0), waits, 0.0), Keep)
    assert isinstance(decide(run._replace(left=102.2), waits, 0.0), Keep)
    assert isinstance(decide(run, waits, at_spare(waits, run, waits.reserve_hours + 0.02)), Keep)
    assert isinstance(decide(run, a_market(advice=Advice(stay="leave"), is_urgent=True), 0.0), Keep)
    assert isinstance(decide(run, a_market(advice=Advice(stay="leave", down="fallback")), 0.0), Keep)


def test_nobody_waits_for_spot_where_there_is_none() -> None:
    market = a_market(firm(), advice=Advice(stay="leave"))

    assert decide(a_run(here=on(market.places[0])), market, 0.0) == Keep()


def test_a_run_that_is_nearly_done_is_not_left_for_what_it_has_not_saved() -> None:
    market = a_market()
    almost = a_run(steps=30.0, here=on(market.places[1], ahead=25.0), seen={"a": down()}, spent=90.0, left=6.0)

    assert isinstance(decide(almost, market, 10.0), Keep)


def test_too_little_money_for_the_fallback_is_no_reason_to_wait_for_ever() -> None:
    market = a_market(advice=Advice(stay="leave"))

    assert isinstance(on_fallback(market, seen={"a": down()}, left=1.0), Keep)


def test_money_that_is_far_too_short_is_risked_on_spot() -> None:
    market = a_market(advice=Advice())
    stay = 1000 * 0.01 * 10.0

    assert isinstance(on_fallback(market, left=FAR_SHORT * stay - 0.1), HandOver)
    assert isinstance(on_fallback(market, left=FAR_SHORT * stay + 0.1), Keep)


def test_dearer_spot_is_taken_beside_the_fallback_where_it_pays_for_the_change() -> None:
    places = spot("a", 2.0), spot("b", 4.0), firm()
    run_fields = {"seen": {"a": down()}}

    assert to(on_fallback(a_market(*places, advice=Advice()), **run_fields)) == "b"
    assert to(on_fallback(a_market(*places, advice=Advice(), hands_over=False), **run_fields)) is None
    assert to(on_fallback(a_market(places[0], spot("b", 9.0), firm(), advice=Advice()), **run_fields)) is None


def test_dearer_spot_is_left_for_the_cheapest() -> None:
    market = a_market(spot("a", 2.0), spot("b", 5.0), firm(), advice=Advice())

    assert to(decide(a_run(here=on(market.places[1])), market, 0.0)) == "a"


def test_a_firm_machine_counts_as_late_only_if_it_is_and_the_fallback_would_not_be() -> None:
    slow = firm("slow", 5.0, step_hours=0.018)
    market = a_market(slow, firm("od"), advice=Advice())
    run = a_run(here=on(slow))

    assert isinstance(decide(run, market, 1.9), Keep)  # 18 h of work and a save end at 19.9
    late = decide(run, market, 2.5)
    assert isinstance(late, Keep)  # as yet there is slack for the fallback
    assert to(decide(run, market, at_spare(a_market(firm()), run, 1.0))) == "od"


def test_what_is_left_of_a_set_up_counts_for_a_firm_machine() -> None:
    slow = firm("slow", 5.0, step_hours=0.018, setup_hours=1.0)
    market = a_market(slow, firm("od", step_hours=0.0175), advice=Advice())

    # 18 h of work and a save that begin at 1.5 h end in time; after another half hour of set-up they do not
    assert isinstance(decide(a_run(here=on(slow)), market, 1.5), Keep)
    assert to(decide(a_run(here=on(slow, since=1.0, trains=False)), market, 1.5)) == "od"


# what holds of all decisions


standings = st.builds(
    a_run,
    steps=st.floats(1.0, 1000.0),
    spent=st.floats(0.0, 120.0),
    left=st.one_of(st.just(math.inf), st.floats(0.0, 150.0)),
    is_joined=st.booleans(),
    seen=st.dictionaries(
        st.sampled_from(["a", "b", "c", "od"]),
        st.builds(Seen, is_up=st.booleans(), since=st.floats(-5.0, 0.0), again_at=st.floats(0.0, 20.0)),
    ),
)
PLACES = spot("a"), spot("b", 3.2, step_hours=0.012), spot("c", 6.0, home="far"), firm()
MARKETS = {
    (hands_over, has_feed): a_market(*PLACES, hands_over=hands_over, has_feed=has_feed)
    for hands_over in (True, False)
    for has_feed in (True, False)
}
instants = st.one_of(st.floats(0.0, 22.0), st.sampled_from([0.0, 8.79, 9.0, 20.0]))


def held(place: int | None, run: Standing, *, trains: bool, ahead: float) -> Standing:
    if place is None:
        return run._replace(is_joined=False)
    return run._replace(here=on(PLACES[place], trains=trains, ahead=min(ahead, run.steps) if trains else 0.0))


@given(
    run=standings,
    place=st.one_of(st.none(), st.integers(0, 3)),
    trains=st.booleans(),
    ahead=st.floats(0.0, 30.0),
    now=instants,
    market=st.sampled_from(list(MARKETS.values())),
)
@settings(max_examples=300, deadline=None)
def test_every_decision_can_be_followed(
    run: Standing, place: int | None, trains: bool, ahead: float, now: float, market: Market
) -> None:
    run = held(place, run, trains=trains, ahead=ahead)

    action = decide(run, market, now)

    assert action == decide(run, market, now)
    match action:
        case Keep(until=until) | Wait(until=until):
            assert until > now
        case Launch(place=there) | HandOver(place=there):
            assert isinstance(action, Launch) == (run.here is None)
            assert run.here is None or there is not run.here.place
            known = run.seen.get(there.key)
            assert known is None or known.is_up or known.again_at <= now + HAIR
            assert run.left > there.useful_hours * there.usd_per_hour
        case Leave():
            assert run.here is not None
    assert not run.is_joined or isinstance(action, Keep | Leave)
    assert isinstance(action, Wait | Launch) == (run.here is None)


@given(run=standings, place=st.one_of(st.none(), st.integers(0, 3)), now=st.floats(0.0, 15.0))
@settings(max_examples=150, deadline=None)
def test_a_place_that_is_known_to_be_down_changes_no_decision(run: Standing, place: int | None, now: float) -> None:
    guide = Advice(asks=(0,), down="wait")
    with_it, without = a_market(*PLACES, spot("dead", 3.1), advice=guide), a_market(*PLACES, advice=guide)
    run = held(place, run, trains=True, ahead=0.0)
    told = run._replace(seen={**run.seen, "dead": down(since=-100.0)})

    # the outage of the cheapest tier is as old as its youngest one, and the guide here does not ask for its age
    assert decide(told, with_it, now) == decide(run, without, now)


@given(run=standings, place=st.one_of(st.none(), st.just(3)), now=st.floats(0.0, 15.0))
@settings(max_examples=150, deadline=None)
def test_a_place_that_is_there_twice_changes_nothing_but_its_name(run: Standing, place: int | None, now: float) -> None:
    guide = Advice(asks=(0,))
    once, twice = a_market(*PLACES, advice=guide), a_market(*PLACES, spot("a again"), advice=guide)
    run = held(place, run, trains=True, ahead=0.0)
    known = {**run.seen, "a again": run.seen["a"]} if "a" in run.seen else run.seen

    one, other = decide(run, once, now), decide(run._replace(seen=known), twice, now)

    assert type(one) is type(other)
    assert (to(other) or "").removesuffix(" again") == (to(one) or "")


@pytest.mark.parametrize("has_feed", [True, False])
def test_spot_as_dear_as_the_fallback_is_never_asked(has_feed: bool) -> None:
    market = a_market(spot("a", 10.0), spot("b", 9.9), firm(), has_feed=has_feed)
    up = {key: Seen(is_up=True, since=-5.0) for key in ("a", "b")}

    for now in (0.0, 3.0, 7.0, 8.7):
        assert to(decide(a_run(seen=up), market, now)) == "od"
        assert isinstance(decide(a_run(seen=up, here=on(market.places[2])), market, now), Keep)


def test_a_lease_that_has_ended_is_renewed_at_once_and_so_is_surer_than_a_new_place() -> None:
    market = a_market(firm("od"), firm("held", 1.0, lease_hours=6.0), deadline=11.1, advice=Advice())
    od, held = market.places

    assert decide(a_run(), market, 0.0) == Launch(od, "capacity that stays")
    assert decide(a_run(leased=frozenset({"held"})), market, 0.0) == Launch(held, "capacity that stays")
