"""Ranking, refusing, and the ladder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.adapters.snapshot_prices import SnapshotPrices, load_catalog, load_tariffs
from launcher.core.offers import Capacity, Offer
from launcher.core.planner import Book, Plan, plan, why_nothing
from launcher.core.policy import Rules
from launcher.core.pricing import Terms
from launcher.core.workload import History, Measured
from tests.builders import T0, a_spec, an_offer

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def a_book(*offers: Offer, terms: Terms | None = None) -> Book:
    return Book(offers=offers, terms=terms or Terms(), tariffs=load_tariffs(), catalog=load_catalog())


def planned(
    *offers: Offer, now: datetime = T0, measured: Measured | None = None, terms: Terms | None = None, **spec: Any
) -> Plan:
    return plan(a_spec(**spec), a_book(*offers, terms=terms), measured or Measured(), now=now, rules=Rules())


def on_demand(**fields: Any) -> Offer:
    return an_offer(capacity=Capacity.ON_DEMAND, list_usd_per_hour=Decimal(20), **fields)


def reasons(made: Plan) -> list[str]:
    return [r.reason for r in made.refused]


def test_the_cheapest_place_comes_first() -> None:
    made = planned(an_offer(zone="dear", list_usd_per_hour=Decimal(9)), an_offer(zone="cheap"), on_demand())

    assert [e.placement.offer.zone for e in made.ranked] == ["cheap", "dear", "a"]


def test_egress_can_make_the_lower_price_the_dearer_place() -> None:
    near, far = an_offer(zone="near"), an_offer(zone="far", region="us-west-2", list_usd_per_hour=Decimal(5))
    data = {"uri": "s3://b/x", "region": "aws/us-east-2", "size": "5 TB"}

    assert planned(near, far).best.placement.offer.zone == "far"
    assert planned(near, far, data=data).best.placement.offer.zone == "near"


@pytest.mark.parametrize(
    ("offer", "spec", "reason"),
    [
        (an_offer(), {"providers": ["gcp"]}, "provider aws is not in providers"),
        (an_offer(), {"regions": ["eu-west-1"]}, "region us-east-2 is not in regions"),
        (an_offer(), {"mode": ["on_demand"]}, "spot is not in mode"),
        (an_offer(count=4), {}, "has 4 GPUs a node; gpus asks for 8"),
        (an_offer(available_count=1), {"nodes": 2}, "only 1 of 2 nodes are reserved"),
        (an_offer(list_usd_per_hour=None), {}, "unknown"),
        (an_offer(list_usd_per_hour=Decimal(0)), {}, "0"),
        (an_offer(on_demand_usd_per_hour=Decimal(5)), {}, "on-demand"),
        (an_offer(), {"cost": {"cap": 1}}, "cost.cap is $1.00"),
        (an_offer(), {"deadline": "1 h"}, "the deadline is earlier"),
        (
            an_offer(region="us-west-2"),
            {"data": {"uri": "s3://b", "region": "aws/us-east-2", "size": "5 TB", "max_egress_usd": 10}},
            "above data.max_egress_usd $10.00",
        ),
        (
            an_offer(),
            {"data": {"uri": "x://b", "region": "nowhere/one", "size": "5 TB"}},
            "no egress tariff is known for nowhere",
        ),
        (an_offer(), {"workload": {"steps": 10}}, "unknown: give one number"),
    ],
)
def test_a_refused_offer_says_why(offer: Offer, spec: dict[str, Any], reason: str) -> None:
    made = planned(offer, **spec)

    assert made.ranked == ()
    assert reason in reasons(made)[0]
    assert reason in why_nothing(made)


def test_types_that_were_not_asked_for_are_neither_ranked_nor_refused() -> None:
    made = planned(an_offer(gpu="L4", count=1))

    assert (made.ranked, made.refused) == ((), ())
    assert "nobody in the price book offers H100" in why_nothing(made)


def test_the_ladder_names_the_last_moment_to_switch() -> None:
    made = planned(an_offer(), on_demand(), deadline="10 h")

    spot, firm = made.ladder
    work = timedelta(seconds=firm.estimate.option.seconds_to_finish(1000))
    assert (spot.capacity, spot.last_switch_at) == (Capacity.SPOT, None)
    assert firm.last_switch_at == T0 + timedelta(hours=10) - work - timedelta(seconds=Rules().fallback_delay_seconds)


def test_without_a_deadline_one_is_assumed_and_said_so() -> None:
    made = planned(an_offer())

    assert made.deadline_assumed
    assert made.deadline_at > T0 + timedelta(seconds=2 * 1000 * 10)


def test_the_users_own_runs_are_the_first_source() -> None:
    ran = Measured(history=(History(gpu="H100", num_gpus=8, step_seconds=(20.0,)),), num_runs=1, setup_seconds=33.0)

    best = planned(an_offer(), measured=ran).best

    assert best.option.step_seconds == 20.0
    assert best.option.setup_seconds == 33.0
    assert "1 earlier run" in best.assumptions[0].source


def test_an_alternative_type_is_estimated_by_measured_throughput() -> None:
    made = planned(
        an_offer(),
        an_offer(zone="old", gpu="A100-80GB", list_usd_per_hour=Decimal(1)),
        gpus={"H100": 8, "A100-80GB": 8},
    )

    old = next(e for e in made.ranked if e.placement.offer.gpu == "A100-80GB")
    assert old.option.step_seconds == pytest.approx(10 * 1.93, rel=0.02)


def test_reserved_capacity_can_be_ranked_by_what_it_costs_in_cash() -> None:
    book = tuple(o for o in SnapshotPrices().offers(NOW) if o.instance_type == "p5.48xlarge")
    held = {
        "id": "cr-1",
        "provider": "aws",
        "region": "us-east-2",
        "instance_type": "p5.48xlarge",
        "count": 2,
        "usd_per_hour": 22,
        "until": "2027-12-31",
    }
    from launcher.core.pricing import reserved_offers

    def best(rank_by: str) -> Capacity:
        terms = Terms.model_validate({"reserved": [held], "rank_reserved_by": rank_by})
        offers = (*book, *reserved_offers(terms, book, catalog=load_catalog(), today=NOW.date()))
        return planned(*offers, now=NOW, terms=terms).best.placement.offer.capacity

    assert best("amortised") is Capacity.SPOT
    assert best("marginal") is Capacity.RESERVED


@settings(max_examples=40)
@given(caps=st.tuples(st.integers(1, 200), st.integers(1, 200)), deadline=st.none() | st.integers(2, 60))
def test_a_bigger_budget_never_makes_the_best_plan_worse(caps: tuple[int, int], deadline: int | None) -> None:
    offers = [an_offer(zone=str(n), list_usd_per_hour=Decimal(4 + 3 * n)) for n in range(4)] + [on_demand()]
    limit = {} if deadline is None else {"deadline": f"{deadline} h"}

    small, big = (planned(*offers, cost={"cap": cap}, **limit) for cap in sorted(caps))

    if small.ranked:
        assert big.ranked
        assert big.best.cost_usd.p50 <= small.best.cost_usd.p50


def test_the_embedded_book_plans_20_real_places_of_5_providers() -> None:
    made = plan(a_spec(gpus={"H100": 8}), a_book(*SnapshotPrices().offers(NOW)), Measured(), now=NOW, rules=Rules())

    assert len(made.ranked) >= 20
    assert len({e.placement.offer.provider for e in made.ranked}) >= 5
    assert all(r.reason for r in made.refused)
