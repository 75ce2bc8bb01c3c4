"""The distribution of cost and time: its parts, its seeds, its order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.estimates.estimate import NUM_FUTURES, Estimate, estimate
from launcher.core.estimates.rollout import PARTS
from launcher.core.estimates.weather import habits
from launcher.core.offers import Capacity
from launcher.core.policy.market import Market
from launcher.core.prices.options import Option
from launcher.core.prices.traffic import Charge, Traffic
from launcher.core.unknown import Unknown
from tests.builders import a_placement, an_offer, reading
from tests.core.futures import a_market, an_option, an_outlook, on_demand, place_in, spot

CALM = 0.32  # preemptions an hour, as on the traces


def estimated(option: Option, market: Market | None = None, **fields: Any) -> Estimate:
    market = market or a_market(option)
    history = fields.pop("history", None)
    found = estimate(place_in(market, option), market, an_outlook(**fields), [], history=history)
    assert isinstance(found, Estimate)
    return found


def medians(options: Iterable[Option], **market: Any) -> list[Decimal]:
    chosen = list(options)
    return [estimated(option, a_market(*chosen, **market)).cost_usd.p50 for option in chosen]


def test_32_nodes_at_30_dollars_for_a_week_cost_161280_dollars() -> None:
    placement = a_placement(an_offer(capacity=Capacity.ON_DEMAND), usd_per_hour="30", nodes=32)
    week = an_option(placement, step_seconds=3600.0, setup_seconds=0.0, save_seconds=0.0)

    found = estimated(week, a_market(week, steps=168, hours=500), idle_seconds=0.0)

    assert found.cost_usd.p10 == found.cost_usd.p50 == found.cost_usd.p90 == Decimal("161280.00")
    assert found.naive_usd == found.parts["steps"] == Decimal("161280.00")
    assert found.hours.p50 == pytest.approx(168)


def test_a_place_that_is_always_up_has_one_price_and_one_length() -> None:
    steady = spot(preemptions_per_hour=0.0, setup_seconds=0.0, save_seconds=0.0)
    market = a_market(steady, steps=17_280)

    found = estimated(
        steady, market, idle_seconds=0.0, history={place_in(market, steady).key: habits((True, (336.0,)))}
    )

    assert found.cost_usd.p10 == found.cost_usd.p50 == found.cost_usd.p90 == found.naive_usd == Decimal(48 * 6)
    assert found.hours.p10 == found.hours.p90 == pytest.approx(48)
    assert found.on_time == 1.0


def test_100_tb_read_at_9_cents_are_9000_dollars_of_egress() -> None:
    far = an_option(on_demand().placement, traffic=reading(Decimal(9000)))

    assert estimated(far, reads=1.0).parts["egress"] == Decimal("9000.00")


def test_the_last_save_is_waited_for() -> None:
    beside = on_demand(usd_per_hour="36", save_seconds=0.0, durable_seconds=100.0)

    assert estimated(beside).parts["saves"] == Decimal("1.00")


def test_a_save_costs_what_it_blocks_and_not_what_it_is_written_for() -> None:
    """A hundred saves between the steps, and the last one."""
    beside = on_demand(usd_per_hour="36", save_seconds=1.0, durable_seconds=50.0, interval_seconds=100.0)

    assert estimated(beside).parts["saves"] == Decimal("1.00") + Decimal("0.50")


@settings(max_examples=40, deadline=None)
@given(
    steps=st.sampled_from([1, 300, 3000]),
    price=st.decimals("0.05", "400", places=4),
    hazard=st.floats(0, 1),
    gb=st.floats(0, 2000),
    egress=st.decimals(0, 300, places=2),
    hours=st.sampled_from([1.0, 12.0, 90.0]),
)
def test_the_parts_add_up_to_the_median_to_the_cent(
    steps: int, price: Decimal, hazard: float, gb: float, egress: Decimal, hours: float
) -> None:
    option = an_option(a_placement(usd_per_hour=str(price)), preemptions_per_hour=hazard, traffic=reading(egress))
    market = a_market(option, on_demand(), steps=steps, hours=hours)

    found = estimated(option, market, reads=1.0, checkpoint_gb=gb, storage_usd_per_gb_month=Decimal("0.023"))

    assert sum(found.parts.values()) == found.cost_usd.p50
    assert set(found.parts) == set(PARTS)
    assert found.cost_usd.p10 <= found.cost_usd.p50 <= found.cost_usd.p90 <= found.high_usd
    assert found.hours.p10 <= found.hours.p50 <= found.hours.p90 < math.inf
    assert min(found.parts.values()) >= 0


def test_the_same_question_gets_the_same_answer() -> None:
    option = spot(preemptions_per_hour=0.5)

    assert estimated(option) == estimated(option)


def test_capacity_that_stays_has_no_preemptions_and_a_range_as_wide_as_the_throughput_error() -> None:
    found = estimated(on_demand(setup_seconds=0.0, save_seconds=0.0), throughput_factor80=1.3)

    assert found.preemptions == found.restart_hours == found.fallback_hours == 0
    assert found.parts["lost"] == found.parts["restarts"] == found.parts["fallback"] == 0
    assert float(found.cost_usd.p90 / found.cost_usd.p50) == pytest.approx(1.3, rel=0.03)
    assert float(found.cost_usd.p50 / found.cost_usd.p10) == pytest.approx(1.3, rel=0.03)


def test_more_preemptions_cost_more_and_take_longer() -> None:
    calm, stormy = (estimated(option, a_market(option, steps=5000)) for option in map(hazardous, (0.05, 0.5)))

    assert stormy.preemptions > calm.preemptions
    assert stormy.restart_hours > calm.restart_hours
    assert stormy.cost_usd.p50 > calm.cost_usd.p50
    assert stormy.hours.p50 > calm.hours.p50


def hazardous(preemptions_per_hour: float) -> Option:
    return spot(preemptions_per_hour=preemptions_per_hour)


def test_many_places_shorten_the_wait_for_capacity() -> None:
    zones = [spot(zone, preemptions_per_hour=0.5) for zone in "abcdefghi"]

    alone, among_many = (estimated(zones[0], a_market(*zones[:count], steps=5000)) for count in (1, 9))

    assert among_many.hours.p50 < alone.hours.p50
    assert among_many.hours.p90 < alone.hours.p90


def test_going_on_at_a_dearer_place_is_in_the_estimate() -> None:
    near = spot("a", preemptions_per_hour=0.5)
    same, dearer = (spot("b", usd_per_hour=usd, preemptions_per_hour=0.5) for usd in ("6", "18"))

    cheap, dear = (estimated(near, a_market(near, other, steps=5000)) for other in (same, dearer))

    assert dear.cost_usd.p50 > Decimal("1.2") * cheap.cost_usd.p50


NOISE = Decimal("1.02")  # of 101 futures, whose decisions and so their skies differ a little


def test_more_slack_never_makes_it_dearer() -> None:
    options = (spot(preemptions_per_hour=CALM), on_demand())

    usd = [estimated(options[0], a_market(*options, steps=17_280, hours=48 * ratio)).cost_usd.p50 for ratio in
           (1.05, 1.15, 1.3, 1.6, 2.0)]  # fmt: skip

    assert all(more <= less * NOISE for less, more in pairwise(usd))
    assert usd[-1] < Decimal("0.7") * usd[0]


def test_more_places_never_make_it_dearer() -> None:
    regions = [
        an_option(a_placement(an_offer(zone=zone, region=f"region-{zone}")), preemptions_per_hour=CALM)
        for zone in "abcdefgh"
    ]

    usd = [
        estimated(regions[0], a_market(*regions[:count], on_demand(), steps=17_280, hours=55)).cost_usd.p50
        for count in (1, 2, 4, 8)
    ]

    assert all(more <= less * NOISE for less, more in pairwise(usd))
    assert usd[-1] < Decimal("0.8") * usd[0]


def test_a_longer_set_up_never_makes_it_cheaper_or_sooner() -> None:
    found = []
    for minutes in (3, 6, 12, 30):
        zones = [spot(zone, preemptions_per_hour=CALM, setup_seconds=60.0 * minutes) for zone in "abc"]
        firm = on_demand(setup_seconds=60.0 * minutes)
        found.append(estimated(zones[0], a_market(*zones, firm, steps=4320, hours=18)))

    assert all(less.cost_usd.p50 < more.cost_usd.p50 for less, more in pairwise(found))
    assert all(less.hours.p50 < more.hours.p50 for less, more in pairwise(found))


def test_a_twin_of_every_zone_does_not_make_it_dearer() -> None:
    once = [spot(zone, preemptions_per_hour=CALM) for zone in "ab"]
    twice = [*once, *(spot(f"{zone}2", preemptions_per_hour=CALM) for zone in "ab")]

    single, double = (
        estimated(once[0], a_market(*zones, on_demand(), steps=17_280, hours=60)) for zones in (once, twice)
    )

    assert double.cost_usd.p50 <= single.cost_usd.p50 * NOISE


def test_a_place_that_is_never_up_costs_half_a_percent_at_most() -> None:
    here, never = spot("a", preemptions_per_hour=CALM), spot("b", preemptions_per_hour=CALM)
    alone, beside = (a_market(*zones, on_demand(), steps=17_280, hours=60) for zones in ((here,), (here, never)))
    history = {place_in(beside, never).key: habits((False, (336.0,)))}

    without, with_it = (estimated(here, market, history=history) for market in (alone, beside))

    assert with_it.cost_usd.p50 <= without.cost_usd.p50 * Decimal("1.05")


def test_spot_as_dear_as_on_demand_is_only_where_it_begins() -> None:
    option = spot(usd_per_hour="20", preemptions_per_hour=CALM)

    found = estimated(option, a_market(option, on_demand(usd_per_hour="20"), steps=17_280, hours=90))

    assert found.preemptions < 1.5


def test_marginal_cash_leaves_out_what_is_paid_for_anyway() -> None:
    placement = a_placement(an_offer(capacity=Capacity.RESERVED), usd_per_hour="22")
    committed = replace(placement, price=replace(placement.price, marginal_usd_per_hour=Decimal(0)))

    found = estimated(an_option(committed, traffic=reading(Decimal(5))), reads=1.0)

    assert found.cost_usd.p50 > Decimal(60)
    assert Decimal("4.90") <= found.marginal_usd <= Decimal("5.10")


def test_saves_are_paid_for_by_their_number_and_a_start_from_one_by_its_restore() -> None:
    """1,000 steps of 10 s with a save every 600 s of training, and the last one."""
    traffic = Traffic(
        home="s3://b",
        save=Charge(egress_usd=Decimal(2), requests_usd=Decimal("0.5")),
        restore=Charge(egress_usd=Decimal(3)),
    )
    firm = on_demand(save_seconds=0.0, traffic=traffic)

    found = estimated(firm)

    saves = Decimal(10_000) / 600 + 1
    assert found.parts["egress"] == (2 * saves).quantize(Decimal("0.01"))
    assert found.parts["requests"] == (saves / 2).quantize(Decimal("0.01"))


def test_a_preempted_run_pays_for_its_restores() -> None:
    traffic = Traffic(home="s3://a", restore=Charge(egress_usd=Decimal(100)))
    option = spot(traffic=traffic, preemptions_per_hour=0.5)

    found = estimated(option, a_market(option, steps=5000))

    assert found.parts["egress"] >= 100
    assert found.parts["egress"] % 100 == 0


def test_what_was_seen_of_a_place_makes_the_range_its_own() -> None:
    """Fourteen days, half a day after the other: up for ten hours of each, or for two."""
    option = spot(preemptions_per_hour=CALM)
    market = a_market(option, on_demand(), steps=17_280, hours=60)
    key = place_in(market, option).key

    def seen(hours: float) -> Estimate:
        changes = tuple(12.0 * half_day + hour for half_day in range(28) for hour in (hours, 12.0))
        return estimated(option, market, history={key: habits((True, changes))})

    good, poor, unseen = seen(10.0), seen(2.0), estimated(option, market)

    assert good.cost_usd.p50 < Decimal("0.8") * unseen.cost_usd.p90
    assert good.cost_usd.p50 < Decimal("0.6") * poor.cost_usd.p50
    assert good.fallback_hours < poor.fallback_hours


def test_a_place_where_most_runs_never_end_is_unknown_and_says_why() -> None:
    option = spot(preemptions_per_hour=50.0, setup_seconds=1800.0)
    market = a_market(option, steps=5000)

    found = estimate(place_in(market, option), market, an_outlook(), [])

    assert isinstance(found, Unknown)
    assert found.reason == "it comes to no end in more than 10% of its futures"


def test_one_that_begins_on_capacity_that_stays_stays_there() -> None:
    firm = on_demand()

    found = estimated(firm, a_market(spot(usd_per_hour="1"), firm, steps=5000))

    assert found.cost_usd.p10 == found.cost_usd.p90
    assert found.preemptions == 0


def test_the_median_is_one_of_the_futures() -> None:
    assert NUM_FUTURES % 2 == 1
