"""What is heard of spot capacity, laid over offers."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from launcher.core.hazards import FRESH_PREEMPTIONS_PER_HOUR, LIFE_HAZARD, cumulated, lived_hours
from launcher.core.offers import Capacity
from launcher.core.prices.feeds import EvictedPercent, Heard, Signal, fresh_preemptions_per_hour, place_of, with_signals
from tests.builders import T0, an_offer

OFFER = an_offer(list_usd_per_hour=Decimal(30), as_of=date(2025, 12, 1), source="snapshot")


def a_signal(**fields: Any) -> Signal:
    plain: dict[str, Any] = {"place": place_of(OFFER), "at": T0, "source": "EC2 spot price history"}
    return Signal(**plain | fields)


def heard(*signals: Signal, **silent: Any) -> Heard:
    return Heard(signals=signals, silent=silent.get("silent", {}))


def test_a_price_in_force_replaces_the_older_listed_one_and_says_of_when_it_is() -> None:
    (offer,) = with_signals([OFFER], heard(a_signal(usd_per_hour=Decimal("21.4031"))))

    assert offer.list_usd_per_hour == Decimal("21.4031")
    assert offer.as_of == date(2026, 1, 5)
    assert offer.source == "EC2 spot price history of 12:00 UTC"


def test_only_spot_offers_of_the_very_place_and_type_change() -> None:
    others = [
        an_offer(capacity=Capacity.ON_DEMAND),
        an_offer(capacity=Capacity.RESERVED, reservation="cr-1"),
        an_offer(zone="b"),
        an_offer(instance_type="p4d.24xlarge"),
        an_offer(region="us-west-2"),
        an_offer(provider="gcp"),
        an_offer(simulated=True),
    ]

    assert with_signals(others, heard(a_signal(usd_per_hour=Decimal(1)))) == tuple(others)


def test_what_is_said_of_a_whole_region_holds_in_its_zones() -> None:
    wide = (*place_of(OFFER)[:2], None, OFFER.instance_type)

    (offer,) = with_signals([OFFER], heard(a_signal(place=wide, usd_per_hour=Decimal(5))))

    assert offer.list_usd_per_hour == 5


@pytest.mark.parametrize("price", [Decimal(0), Decimal(-1), None])
def test_no_price_replaces_none(price: Decimal | None) -> None:
    assert with_signals([OFFER], heard(a_signal(usd_per_hour=price))) == (OFFER,)


def test_a_listed_price_younger_than_the_signal_stays() -> None:
    young = an_offer(as_of=date(2026, 1, 6))

    assert with_signals([young], heard(a_signal(usd_per_hour=Decimal(1)))) == (young,)


def test_of_whom_nothing_was_heard_the_listed_price_stays_and_says_so() -> None:
    silent = {place_of(OFFER): ("no live price: EC2 answered 503",)}

    (offer,) = with_signals([OFFER], heard(silent=silent))

    assert offer.list_usd_per_hour == 30
    assert offer.as_of == OFFER.as_of
    assert offer.source == "snapshot; no live price: EC2 answered 503"


def test_a_share_of_stops_and_a_score_are_shown_and_are_no_rate() -> None:
    signals = heard(
        a_signal(source="GCP capacity history", usd_per_hour=Decimal(2), preempted_share=0.214),
        a_signal(source="EC2 placement scores for any of 3 types", placement_score=7),
    )

    (offer,) = with_signals([OFFER], signals)

    assert offer.preemptions_per_hour is None
    assert offer.source == (
        "GCP capacity history of 12:00 UTC, 21% of the machines that stopped in a day were preempted; "
        "placement score 7 of 10 (EC2 placement scores for any of 3 types of 12:00 UTC)"
    )


@pytest.mark.parametrize(
    ("evicted", "chance"), [((0, 5), 0.025), ((5, 10), 0.075), ((15, 20), 0.175), ((20, None), 0.2)]
)
def test_an_hourly_chance_of_eviction_becomes_the_law_under_which_machines_live_as_long(
    evicted: EvictedPercent, chance: float
) -> None:
    (offer,) = with_signals([OFFER], heard(a_signal(evicted_percent=evicted)))

    assert offer.preemptions_per_hour == fresh_preemptions_per_hour(evicted)
    scale = offer.preemptions_per_hour / FRESH_PREEMPTIONS_PER_HOUR
    mean_hours = lived_hours(LIFE_HAZARD, scale, math.inf)
    assert 1 - math.exp(-1 / mean_hours) == pytest.approx(chance, rel=1e-6)


def test_an_eviction_rate_is_told_with_its_source() -> None:
    (offer,) = with_signals([OFFER], heard(a_signal(source="Azure Resource Graph", evicted_percent=(20, None))))

    assert offer.source == "snapshot; 20 % or more evicted an hour (Azure Resource Graph of 12:00 UTC)"


def test_who_hardly_has_capacity_is_marked_by_a_low_chance_or_by_half_the_best_score() -> None:
    zones = [an_offer(zone=zone) for zone in "abcd"]
    said = [
        a_signal(place=place_of(zones[0]), obtainability=0.3),
        a_signal(place=place_of(zones[1]), obtainability=0.4),
        a_signal(place=place_of(zones[2]), placement_score=3),
        a_signal(place=place_of(zones[3]), placement_score=6),
    ]

    offers = with_signals(zones, heard(*said))

    assert [offer.is_scarce for offer in offers] == [True, False, True, False]
    assert [offer.obtainability for offer in offers] == [0.3, 0.4, None, None]


@pytest.mark.parametrize(("seconds", "half_life_hours"), [(60, 600**0.5 * 60**0.5 / 3600), (600, 6**0.5 * 600 / 3600)])
def test_half_of_the_machines_outlive_the_mean_of_the_stated_uptime_and_the_next_longer_one(
    seconds: float, half_life_hours: float
) -> None:
    (offer,) = with_signals([OFFER], heard(a_signal(uptime_seconds=seconds)))

    assert offer.preemptions_per_hour is not None
    scale = offer.preemptions_per_hour / FRESH_PREEMPTIONS_PER_HOUR
    assert math.exp(-scale * cumulated(LIFE_HAZARD, half_life_hours)) == pytest.approx(0.5)


def test_the_longest_uptime_that_is_told_apart_leaves_the_traces_hazards() -> None:
    (offer,) = with_signals([OFFER], heard(a_signal(source="GCP capacity advice", uptime_seconds=3600)))

    assert offer.preemptions_per_hour is None
    assert offer.source == "snapshot; most machines run for 1 h 00 m or longer (GCP capacity advice of 12:00 UTC)"
