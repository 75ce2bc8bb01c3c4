from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from launcher.core.hazards import FRESH_PREEMPTIONS_PER_HOUR, LIFE_HAZARD, SPELL_HAZARD
from launcher.core.offers import Capacity
from launcher.core.policy.market import (
    MAX_TIERS,
    NUM_SPOT,
    SAME_PRICE_RATIO,
    WAIT_PRICE,
    WORTHWHILE_RATIO,
    Market,
    Place,
    hazards_seen,
    life_hours,
    market_of,
    place_of,
)
from launcher.core.prices.options import Rules, changeover_seconds, closing_seconds
from launcher.core.prices.traffic import Charge, Traffic
from tests.builders import T0, a_placement, a_spec, after, an_offer, an_option
from tests.core.places import a_market, firm, spot


def keys(places: tuple[Place, ...]) -> list[str]:
    return [place.key for place in places]


def test_places_of_about_one_price_are_one_tier_and_dearer_ones_the_next() -> None:
    market = a_market(spot("a", 3.0), spot("b", 2.99 * SAME_PRICE_RATIO), spot("c", 5.0), spot("d", 5.2), firm())

    assert [keys(tier) for tier in market.tiers] == [["a", "b"], ["c", "d"]]
    assert (market.tier_of["b"], market.tier_of["c"]) == (0, 1)


def test_a_tier_is_measured_by_its_cheapest_place() -> None:
    step = 0.9 * (SAME_PRICE_RATIO - 1.0) + 1.0
    market = a_market(spot("a", 3.0), spot("b", 3.0 * step), spot("c", 3.0 * step * step), firm())

    assert [keys(tier) for tier in market.tiers] == [["a", "b"], ["c"]]


def test_spot_about_as_dear_as_the_fallback_is_on_no_tier() -> None:
    market = a_market(spot("a", 10.0 * WORTHWHILE_RATIO), spot("b", 10.0 * WORTHWHILE_RATIO - 0.5), firm())

    assert [keys(tier) for tier in market.tiers] == [["b"]]


def test_prices_of_slower_places_are_those_of_the_same_work() -> None:
    slow, fast = (spot(key, 6.0, step_hours=hours, setup_hours=0.0) for key, hours in (("slow", 0.02), ("fast", 0.005)))
    market = a_market(slow, fast, firm())

    assert [keys(tier) for tier in market.tiers] == [["fast"]]
    assert [pytest.approx(market.hourly_usd(p)) for p in market.places[:2]] == [12.0, 3.0]


def test_what_starts_cost_is_spread_over_a_machines_life() -> None:
    market = a_market(spot("a", 3.0), spot("reads", 3.0, arrival_usd=2.0, setup_hours=0.5), firm())

    life = life_hours(LIFE_HAZARD, 1.0, 24.0)
    assert market.hourly_usd(market.places[1]) == pytest.approx(3.0 + (2.0 + 0.5 * 3.0) / life)


def test_where_machines_are_taken_often_spot_is_dearer_than_its_price() -> None:
    calm, rough = spot("calm", 3.0), spot("rough", 2.8, scale=10.0)
    market = a_market(rough, calm, firm())

    assert [keys(tier) for tier in market.tiers] == [["calm"], ["rough"]]


def test_the_dearest_tiers_are_one() -> None:
    spots = [spot(str(n), 1.0 * 1.2**n) for n in range(MAX_TIERS + 3)]

    market = a_market(*spots, firm(usd=100.0))

    assert [len(tier) for tier in market.tiers] == [1] * (MAX_TIERS - 1) + [4]


def test_of_many_places_each_domain_has_one_before_any_has_two() -> None:
    crowd = [spot(f"a{n:02}", 3.0 + n / 1000, domain="crowd") for n in range(NUM_SPOT + 5)]
    others = [spot(f"b{n}", 3.2, domain=f"other {n}") for n in range(3)]

    market = a_market(*crowd, *others, firm())

    chosen = keys(market.spot)
    assert len(chosen) == NUM_SPOT
    assert {"b0", "b1", "b2", "a00"} <= set(chosen)
    assert "a21" not in chosen
    assert chosen[0] == "a00"


def test_the_fallback_is_the_cheapest_capacity_that_can_do_the_whole_run() -> None:
    market = a_market(firm("od"), firm("held", 4.0), spot())

    assert market.fallback is market.places[1]


def test_capacity_that_closes_too_early_is_no_fallback_but_a_place_that_may_be_lost() -> None:
    held = firm("held", 4.0, closes_at=9.0)

    market = a_market(firm("od"), held)

    assert market.fallback is market.places[0]
    assert [keys(tier) for tier in market.tiers] == [["held"]]


@pytest.mark.parametrize(("closes_at", "key"), [(10.21 + 0.05, "held"), (10.21 + 0.03, "od")])
def test_a_last_save_and_the_release_are_within_what_a_reservation_is_open(closes_at: float, key: str) -> None:
    market = a_market(firm("od"), firm("held", 4.0, closes_at=closes_at))

    assert market.fallback is not None
    assert market.fallback.key == key


def test_capacity_that_opens_later_is_the_fallback_where_it_is_still_in_time() -> None:
    assert a_market(firm("od"), firm("held", 4.0, opens_at=8.0)).fallback.key == "held"  # type: ignore[union-attr]
    assert a_market(firm("od"), firm("held", 4.0, opens_at=9.0)).fallback.key == "od"  # type: ignore[union-attr]


def test_cheap_capacity_that_would_be_late_is_no_measure_of_money() -> None:
    market = a_market(firm("slow", 1.0, step_hours=0.03), firm("od"))

    assert market.fallback is market.places[1]


def test_where_all_would_be_late_the_cheapest_is_the_fallback() -> None:
    market = a_market(firm("slow", 1.0, step_hours=0.03), firm("od"), deadline=5.0)

    assert market.fallback is market.places[0]


def test_without_capacity_that_stays_there_is_no_fallback_no_bound_and_one_tier() -> None:
    market = a_market(spot("a", 3.0), spot("b", 30.0))

    assert market.fallback is None
    assert market.most_usd == math.inf
    assert [keys(tier) for tier in market.tiers] == [["a", "b"]]


def test_a_ladder_with_spot_behind_its_fallback_has_no_tiers_of_spot() -> None:
    assert a_market(spot_first=False).tiers == ()


@pytest.mark.parametrize("usd", [0.0, 4.0])
def test_reserved_capacity_that_is_paid_for_anyway_leaves_nothing_to_spot(usd: float) -> None:
    market = a_market(spot("a", 4.0), firm("held", usd), firm("od"))

    assert (market.fallback, market.tiers) == (market.places[1], ())
    assert isinstance(market.guide.slack_price(work_hours=1.0, slack_hours=1.0), float)


def test_a_run_may_cost_a_twentieth_more_than_the_fallback_alone() -> None:
    market = a_market(firm(arrival_usd=2.0), steps=10_000, deadline=200.0)

    assert market.most_usd == pytest.approx(1.05 * ((0.2 + 100.0 + 0.01) * 10.0 + 2.0))


def test_a_short_run_may_cost_one_try_on_spot_more_than_the_fallback_alone() -> None:
    place = spot("a", 3.0)
    market = a_market(place, firm(), steps=100, deadline=20.0, hands_over=False)

    lost = place.setup_hours + place.closing_hours + place.interval_hours + place.durable_hours
    assert market.most_usd == pytest.approx((0.2 + 1.0 + 0.01) * 10.0 + lost * 3.0)


def test_a_lease_is_paid_with_a_close_and_a_set_up_at_each_of_its_ends() -> None:
    plain, leased = firm(), firm(lease_hours=4.24)

    # 4 h of training in each lease: 10 h take three
    assert leased.finish_hours(1000) == pytest.approx(plain.finish_hours(1000) + 2 * (0.2 + 0.04))
    assert leased.finish_hours(300) == plain.finish_hours(300)
    assert firm(lease_hours=0.2).finish_hours(1) == math.inf


def test_a_place_is_of_use_from_its_opening_to_its_closing() -> None:
    place = firm(opens_at=2.0, closes_at=6.0, lease_hours=3.0)

    assert [place.usable_hours(at) for at in (1.0, 2.0, 5.0, 7.0)] == [0.0, 3.0, 1.0, 0.0]


def test_a_checkpoint_moves_from_its_newest_home_unless_it_is_there_already() -> None:
    market = a_market(moves={("x", "y"): 2.0, ("z", "y"): 5.0})
    there = spot(home="y")

    ways = ((), ("x",), ("z", "x"), ("x", "z"), ("y", "x"), ("w",))
    assert [market.move_usd(homes, there) for homes in ways] == [0.0, 2.0, 2.0, 5.0, 0.0, 0.0]


def test_a_changeover_takes_what_the_cheapest_spot_needs_on_average() -> None:
    market = a_market(spot("a", setup_hours=0.1), spot("b", setup_hours=0.3), spot("c", 6.0, setup_hours=2.0), firm())

    assert market.changeover_hours == pytest.approx(0.2)


def test_markets_whose_prices_hardly_differ_share_a_guide() -> None:
    one, other = a_market(spot("a", 3.0), firm()), a_market(spot("a", 3.0002), firm())

    assert one.guide is other.guide


@pytest.mark.parametrize("hazards", [LIFE_HAZARD, SPELL_HAZARD])
def test_what_is_left_of_a_life_grows_with_its_age_and_shrinks_with_its_hazard(
    hazards: tuple[tuple[float, float], ...],
) -> None:
    lives = [life_hours(hazards, 1.0, 24.0, age) for age in (0.0, 0.5, 2.0, 8.0)]
    scaled = [life_hours(hazards, scale, 24.0) for scale in (0.0, 0.5, 1.0, 4.0)]

    assert sorted(lives) == lives
    assert sorted(scaled, reverse=True) == scaled
    assert scaled[0] == 24.0


def test_a_life_at_a_constant_hazard_forgets_its_age() -> None:
    assert life_hours(((math.inf, 0.5),), 2.0, 3.0, 7.0) == pytest.approx(1 - math.exp(-3.0))
    assert life_hours(((math.inf, 0.5),), 2.0, 3.0) == pytest.approx(1 - math.exp(-3.0))


def test_a_feed_tells_the_age_of_the_spell_and_nobody_else_knows_it() -> None:
    assert hazards_seen(has_feed=True) is SPELL_HAZARD
    assert hazards_seen(has_feed=False) is LIFE_HAZARD


RULES = Rules()


def test_a_place_says_in_hours_what_its_option_says_in_seconds() -> None:
    offer = an_offer(opens_at=after(3600), closes_at=after(7200), lease_seconds=1800.0, preemptions_per_hour=0.16)
    charge = Charge(egress_usd=Decimal(2), requests_usd=Decimal("0.5"))
    option = an_option(
        a_placement(offer, usd_per_hour="6"),
        step_seconds=36.0,
        setup_seconds=720.0,
        save_seconds=18.0,
        durable_seconds=90.0,
        interval_seconds=180.0,
        preemptions_per_hour=FRESH_PREEMPTIONS_PER_HOUR / 2,
        move_usd=Decimal(7),
        traffic=Traffic(home="s3://here", read=charge, restore=charge, saves_usd_per_hour=Decimal(1)),
    )

    place = place_of(option, RULES, T0)

    assert (place.key, place.domain, place.home, place.is_spot) == (offer.key, "aws/us-east-2", "s3://here", True)
    assert (place.usd_per_hour, place.arrival_usd) == (7.0, 5.0)
    assert (place.step_hours, place.interval_hours) == pytest.approx((0.011, 0.055))
    assert (place.setup_hours, place.durable_hours, place.scale) == (0.2, 0.025, 0.5)
    assert (place.opens_at, place.closes_at, place.lease_hours) == (1.0, 2.0, 0.5)
    assert place.closing_hours == pytest.approx(closing_seconds(RULES, 90.0, 36.0) / 3600)


@pytest.mark.parametrize(("rank", "usd"), [("amortised", 6.0), ("marginal", 1.5)])
def test_reserved_capacity_costs_what_leaving_it_saves(rank: str, usd: float) -> None:
    placement = a_placement(an_offer(capacity=Capacity.RESERVED))
    sunk = replace(placement, price=replace(placement.price, marginal_usd_per_hour=Decimal("1.5")))

    place = place_of(an_option(sunk), replace(RULES, rank_reserved_by=rank), T0)  # type: ignore[arg-type]  # a literal

    assert place.usd_per_hour == usd


def market_for(*mode: str, **fields: Any) -> Market:
    options = [an_option(a_placement(an_offer(zone=c.value, capacity=c), usd_per_hour="6")) for c in Capacity]
    spec = a_spec(steps=100, mode=list(mode), **fields)
    deadline_at = after(7200)
    return market_of(options, spec, since=T0, deadline_at=deadline_at, deadline_assumed=True, rules=RULES)


def test_only_capacity_that_the_mode_names_is_in_the_market() -> None:
    market = market_for("spot", "on_demand")

    assert [place.option.capacity for place in market.places] == ["spot", "on_demand"]
    assert (market.steps, market.deadline, market.wait_price) == (100, 2.0, WAIT_PRICE)
    assert market.reserve_hours >= changeover_seconds(RULES) / 3600


def test_spot_comes_before_the_fallback_where_the_mode_says_so() -> None:
    assert market_for("spot", "on_demand").spot_first
    assert not market_for("on_demand", "spot").spot_first


def test_who_is_in_a_hurry_waits_for_no_lower_price() -> None:
    assert market_for("spot", "on_demand", priority="urgent").is_urgent
    assert not market_for("spot", "on_demand").is_urgent
