"""The pretend market: what a file says, what a seed draws, and the offers both make."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.adapters.local_market import (
    Market,
    MarketPrices,
    Place,
    capacity,
    draw_market,
    is_available,
    load_market,
    next_outage,
    spot_usd_per_hour,
)
from launcher.adapters.system_clock import SystemClock
from launcher.core.offers import Capacity, Offer
from launcher.errors import InputError
from tests.local_lab import a_place

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
EPOCH = datetime(2026, 5, 1, 12, tzinfo=UTC)
DEMO = Path(__file__).parents[2] / "configs" / "local-demo-market.yaml"


def place(**terms: Any) -> Place:
    return Place.model_validate(a_place("use2-az1", **terms))


def an_offer(**terms: Any) -> Offer:
    usual: dict[str, Any] = {
        "provider": "aws",
        "region": "us-east-2",
        "zone": "use2-az1",
        "instance_type": "p5.48xlarge",
        "gpu": "H100",
        "count": 8,
        "capacity": Capacity.SPOT,
        "list_usd_per_hour": Decimal("11.2543"),
        "as_of": EPOCH.date(),
        "source": "price book",
        "notice_seconds": 120.0,
    }
    return Offer(**usual | terms)


def spells(drawn: Place, *, until: float) -> list[tuple[float, float]]:
    begun = itertools.takewhile(lambda interval: interval.start < until, capacity(drawn))
    return [(interval.start, interval.end or until) for interval in begun]


def test_a_price_holds_until_the_next_one() -> None:
    varying = place(spot_usd_per_hour=[{"at": "0 s", "usd_per_hour": 11}, {"at": "10 min", "usd_per_hour": "12.50"}])

    prices = [spot_usd_per_hour(varying, at) for at in (-5.0, 0.0, 599.9, 600.0, DAY)]

    assert prices == [Decimal(11), Decimal(11), Decimal(11), Decimal("12.50"), Decimal("12.50")]


@pytest.mark.parametrize(
    ("at_seconds", "expected"),
    [(0.0, False), (60.0, True), (539.9, True), (540.0, False), (1200.0, True), (1e9, True)],
)
def test_capacity_is_there_from_a_start_up_to_its_end(at_seconds: float, expected: bool) -> None:
    assert is_available(place(available=[["1 min", "9 min"], ["20 min"]]), at_seconds) is expected


def test_the_outage_ahead_is_the_end_of_the_present_interval() -> None:
    two = place(available=[[0, "9 min"], {"start": "20 min", "end": "30 min", "notice": {"via": "none"}}, ["1 h"]])
    first, second = next_outage(two, 60.0), next_outage(two, 1200.0)

    assert first is not None
    assert second is not None
    assert (first.at_seconds, first.notice) == (540.0, two.notice)
    assert (second.at_seconds, second.notice.via) == (1800.0, "none")
    assert next_outage(two, HOUR) is None


def test_nothing_can_be_asked_of_a_machine_that_is_not_granted() -> None:
    with pytest.raises(ValueError, match="no spot capacity at 600 s"):
        next_outage(place(available=[[0, "9 min"]]), 600.0)


def test_a_place_that_lists_no_capacity_always_has_it() -> None:
    assert is_available(place(), 1e9)
    assert next_outage(place(), 0.0) is None


def test_a_place_without_a_spot_price_has_no_spot_capacity() -> None:
    assert not is_available(place(spot_usd_per_hour=[]), 0.0)


@pytest.mark.parametrize(
    ("terms", "complaint"),
    [
        ({"colour": "blue"}, "colour"),
        ({"available": [["9 min", "1 min"]]}, "before it starts"),
        ({"available": [[0, "9 min"], ["5 min"]]}, "in order of time"),
        ({"available": [[0], ["5 min"]]}, "in order of time"),
        ({"available": [[0, 1, 2]]}, "not an interval"),
        ({"spot_usd_per_hour": [], "on_demand_usd_per_hour": None}, "has no price"),
        ({"spot_usd_per_hour": [{"at": 60, "usd_per_hour": 1}]}, "starts at 0 s"),
        ({"spot_usd_per_hour": [{"at": 0, "usd_per_hour": 1}, {"at": 0, "usd_per_hour": 2}]}, "forward in time"),
        ({"spot_usd_per_hour": "cheap"}, "not an amount"),
        ({"notice": {"via": "azure", "seconds": 30}}, "a trainer on aws hears ec2, signal"),
        ({"notice": {"via": "pigeon"}}, "via"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(terms: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        place(**terms)


def test_a_market_does_not_sell_one_place_twice() -> None:
    with pytest.raises(ValidationError, match=r"aws/us-east-2/a/p5\.48xlarge is there twice"):
        Market.model_validate({"places": [a_place("a"), a_place("b"), a_place("a")]})


def test_a_broken_file_is_answered_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "market.yaml"
    path.write_text(DEMO.read_text().replace("count: 8", "count: none", 1))

    with pytest.raises(InputError) as error:
        load_market(path)

    (problem,) = error.value.problems
    line = path.read_text().splitlines().index("    count: none") + 1
    assert problem.where == f"{path}:{line}"


def test_the_demo_market_preempts_with_notice_then_without_and_always_has_a_way_on() -> None:
    ohio, oregon, netherlands = load_market(DEMO).places
    first = next_outage(ohio, 0.0)
    assert first is not None
    assert (first.at_seconds, first.notice.via, first.notice.seconds) == (13 * MINUTE, "ec2", 120.0)

    assert not is_available(ohio, first.at_seconds)
    second = next_outage(oregon, first.at_seconds)
    assert second is not None
    assert (second.at_seconds, second.notice.via) == (29 * MINUTE, "none")

    assert is_available(ohio, second.at_seconds)
    assert next_outage(ohio, second.at_seconds) is None
    assert next_outage(netherlands, 0.0) is None

    prices = [spot_usd_per_hour(one, 0.0) for one in (ohio, oregon, netherlands)]
    assert prices == sorted(price for price in prices if price is not None)
    assert all(one.on_demand_usd_per_hour for one in (ohio, oregon, netherlands))


def test_offers_carry_the_price_of_now_and_are_marked_as_simulated() -> None:
    market = load_market(DEMO)
    prices = MarketPrices(market, SystemClock(epoch=EPOCH, scale=60.0))

    offers = prices.offers(EPOCH + timedelta(minutes=25))

    assert len(offers) == 6
    assert all(offer.simulated and offer.as_of == EPOCH.date() for offer in offers)
    assert {offer.source for offer in offers} == {"simulated market local-demo-market.yaml"}
    spot, on_demand = offers[:2]
    assert (spot.capacity, spot.list_usd_per_hour, spot.notice_seconds) == (Capacity.SPOT, Decimal("13.9120"), 120.0)
    assert (on_demand.capacity, on_demand.list_usd_per_hour) == (Capacity.ON_DEMAND, Decimal("55.04"))
    assert on_demand.notice_seconds == 0.0
    assert offers[2].notice_seconds == 0.0  # told by nobody
    assert [market.place(offer) for offer in offers[::2]] == list(market.places)


def test_a_place_that_was_drawn_is_the_same_however_it_is_asked() -> None:
    (drawn,) = draw_market([an_offer()], seed=7).places
    (again,) = draw_market(iter([an_offer()]), seed=7).places
    times = [index * 30 * MINUTE for index in range(500)]

    forwards = [is_available(drawn, at) for at in times]
    backwards = [is_available(again, at) for at in reversed(times)][::-1]

    assert forwards == backwards
    assert spells(drawn, until=10 * DAY) == spells(again, until=10 * DAY)
    assert {True, False} == set(forwards)


def test_seeds_and_places_are_drawn_apart() -> None:
    offers = [an_offer(zone=zone) for zone in ("use2-az1", "use2-az2")]
    places = [drawn for seed in (1, 2) for drawn in draw_market(offers, seed=seed).places]

    drawn_spells = [spells(drawn, until=5 * DAY) for drawn in places]

    assert all(one != other for one, other in itertools.combinations(drawn_spells, 2))


def test_drawn_spells_end_as_often_as_the_published_hazards_say() -> None:
    """Up to the age of 0.2 h a rate of 1.33 /h leaves exp(−0.266) of the spells, and so on from bucket to bucket."""
    market = draw_market([an_offer(zone=f"z{number}") for number in range(20)], seed=3)
    drawn = [spells(one, until=60 * DAY)[1:] for one in market.places]
    up_hours = [(end - start) / HOUR for one in drawn for start, end in one]
    down_hours = [(later[0] - earlier[1]) / HOUR for one in drawn for earlier, later in itertools.pairwise(one)]

    def survive(lengths: list[float], hours: float) -> float:
        return sum(length > hours for length in lengths) / len(lengths)

    assert len(up_hours) > 4000
    assert [survive(up_hours, h) for h in (0.2, 1.0, 4.0)] == pytest.approx([0.766, 0.389, 0.175], abs=0.02)
    assert [survive(down_hours, h) for h in (0.2, 1.0, 4.0)] == pytest.approx([0.762, 0.363, 0.126], abs=0.02)


def test_a_drawn_market_sells_what_the_price_book_does() -> None:
    offers = [
        an_offer(preemptions_per_hour=0.2),
        an_offer(capacity=Capacity.ON_DEMAND, list_usd_per_hour=Decimal("55.04"), notice_seconds=0.0),
        an_offer(capacity=Capacity.RESERVED, zone="reserved"),
        an_offer(zone="unpriced", list_usd_per_hour=None),
        an_offer(provider="lambda", zone=None, capacity=Capacity.ON_DEMAND, list_usd_per_hour=Decimal(24)),
        an_offer(provider="vast", zone=None, notice_seconds=0.0),
    ]

    aws, vast, fixed = draw_market(offers, seed=1).places

    assert (aws.notice.via, aws.notice.seconds, aws.preemptions_per_hour) == ("ec2", 120.0, 0.2)
    assert aws.on_demand_usd_per_hour == Decimal("55.04")
    assert vast.notice.via == "none"
    assert (fixed.provider, fixed.spot_usd_per_hour) == ("lambda", ())


def test_nothing_for_sale_is_no_market() -> None:
    with pytest.raises(ValueError, match="places"):
        draw_market([], seed=1)
