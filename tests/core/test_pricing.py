"""List → discount → commitment, and what is refused on the way."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from launcher.core.offers import Capacity, Offer, Placement, Price, Refusal
from launcher.core.prices.pricing import Terms, cash, credit_usd, price

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TODAY = NOW.date()
SECOND = timedelta(seconds=1)
CR = {
    "id": "cr-0a1b",
    "provider": "aws",
    "region": "us-east-2",
    "instance_type": "p5.48xlarge",
    "count": 4,
    "usd_per_hour": 22.4,
    "until": "2027-03-01",
}
DESK = {"name": "desk", "gpu": "rtx 4090", "gpus": 2}
PARTS = {"power_watts": 1100, "usd_per_kwh": 0.3, "depreciation_usd_per_hour": 0.4}
POOL = {"name": "gpu", "capacity": "on_demand", "gpu": "H100", "gpus": 4, "nodes": 2, "usd_per_gpu_hour": 3}


def a_cluster(provider: str = "slurm", **pool: Any) -> dict[str, Any]:
    return {"clusters": [{"name": "lab", "provider": provider, "pools": [POOL | pool]}]}


def an_offer(**changes: Any) -> Offer:
    usual: dict[str, Any] = {
        "provider": "aws",
        "region": "us-east-2",
        "zone": "use2-az1",
        "instance_type": "p5.48xlarge",
        "gpu": "H100",
        "count": 8,
        "capacity": Capacity.SPOT,
        "list_usd_per_hour": Decimal("11.25"),
        "as_of": TODAY,
        "source": "test",
        "on_demand_usd_per_hour": Decimal("55.04"),
    }
    return Offer(**(usual | changes))


def terms(**given: Any) -> Terms:
    return Terms.model_validate(given)


def priced(offer: Offer, under: Terms | None = None) -> Price:
    found = price(offer, under or Terms(), now=NOW)
    assert isinstance(found, Price), found
    return found


def refused(offer: Offer, under: Terms | None = None) -> str:
    found = price(offer, under or Terms(), now=NOW)
    assert isinstance(found, Refusal), found
    assert found.offer is offer
    return found.reason


def test_32_nodes_at_30_dollars_for_a_week_are_161280_dollars() -> None:
    offer = an_offer(list_usd_per_hour=Decimal(30))

    placement = Placement(offer=offer, nodes=32, price=priced(offer))

    assert placement.usd_per_hour * 168 == Decimal("161280.00")


def test_without_terms_the_list_price_counts() -> None:
    found = priced(an_offer())

    assert found == Price(
        list_usd_per_hour=Decimal("11.25"),
        usd_per_hour=Decimal("11.25"),
        marginal_usd_per_hour=Decimal("11.25"),
        basis="list of 2026-11-21",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"list_usd_per_hour": None}, "unknown"),
        ({"list_usd_per_hour": Decimal(0)}, r"\$0 an hour"),
        ({"list_usd_per_hour": Decimal("-1.5")}, "nobody rents out"),
        ({"list_usd_per_hour": Decimal("NaN")}, "nobody rents out"),
        ({"as_of": TODAY - timedelta(days=541)}, "541 days old; at most 540"),
        ({"list_usd_per_hour": Decimal("55.10")}, "dearer than on-demand"),
        ({"capacity": Capacity.RESERVED, "closes_at": NOW}, "closed on 2026-11-21 12:00 UTC"),
        ({"capacity": Capacity.RESERVED, "opens_at": NOW + SECOND}, "begins on 2026-11-21 12:00 UTC"),
    ],
)
def test_a_price_that_is_not_believed_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    assert re.search(reason, refused(an_offer(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"as_of": TODAY - timedelta(days=540)},
        {"list_usd_per_hour": Decimal("55.09")},  # 0.09 % above: rounding
        {"list_usd_per_hour": Decimal(60), "on_demand_usd_per_hour": None},
        {"list_usd_per_hour": Decimal(60), "capacity": Capacity.ON_DEMAND},
        {"capacity": Capacity.RESERVED, "opens_at": NOW, "closes_at": NOW + SECOND},
    ],
)
def test_what_is_just_within_a_limit_is_believed(changes: dict[str, Any]) -> None:
    priced(an_offer(**changes))


@pytest.mark.parametrize(
    ("spot", "on_demand", "is_believed"),
    [
        # skypilot-org/skypilot-catalog aws/vms.csv @ 00148f2: spot above on-demand by rounding only
        ("8.2261", "8.22609", True),  # g5.12xlarge apne1-az4
        ("27.433", "27.43298", True),  # p4d.24xlarge euc1-az2
        # gcp/vms.csv @ 006059e: a reservation product's rate stands in for on-demand, A100-80GB in us-central1
        ("1.964", "1.8462", False),
    ],
)
def test_rounding_is_told_from_an_error_in_real_catalogues(spot: str, on_demand: str, is_believed: bool) -> None:
    offer = an_offer(list_usd_per_hour=Decimal(spot), on_demand_usd_per_hour=Decimal(on_demand))

    assert isinstance(price(offer, Terms(), now=NOW), Price) is is_believed


def test_the_limits_are_the_users() -> None:
    strict = terms(max_price_age_days=30, max_spot_above_on_demand_percent=0)

    assert "31 days old" in refused(an_offer(as_of=TODAY - timedelta(days=31)), strict)
    assert "dearer" in refused(an_offer(list_usd_per_hour=Decimal("55.05")), strict)


DISCOUNTS = [
    {"provider": "aws", "percent": 5},
    {"provider": "aws", "capacity": "on_demand", "percent": 8},
    {"provider": "aws", "family": "p5", "percent": 12.5},
    {"provider": "aws", "family": "p5en", "percent": 3},
    {"provider": "aws", "family": "p5", "capacity": "on_demand", "percent": 20},
    {"provider": "gcp", "percent": 50},
]


@pytest.mark.parametrize(
    ("instance_type", "capacity", "percent"),
    [
        ("g6.xlarge", Capacity.SPOT, "5"),
        ("g6.xlarge", Capacity.ON_DEMAND, "8"),
        ("p5.48xlarge", Capacity.SPOT, "12.5"),
        ("p5en.48xlarge", Capacity.SPOT, "3"),
        ("p5en.48xlarge", Capacity.ON_DEMAND, "20"),  # two conditions beat one longer family
    ],
)
def test_the_most_specific_discount_counts_and_no_other(instance_type: str, capacity: Capacity, percent: str) -> None:
    offer = an_offer(instance_type=instance_type, capacity=capacity, list_usd_per_hour=Decimal(40))

    found = priced(offer, terms(discounts=DISCOUNTS))

    assert found.usd_per_hour == found.marginal_usd_per_hour == Decimal(40) * (100 - Decimal(percent)) / 100
    assert found.list_usd_per_hour == 40
    assert found.basis == f"list of 2026-11-21 − {percent} %"


def test_a_discount_is_its_providers_only() -> None:
    assert priced(an_offer(provider="oci"), terms(discounts=DISCOUNTS)).usd_per_hour == Decimal("11.25")


@given(st.decimals("0.01", "1000", places=4), st.decimals("0.1", "99.9", places=1))
def test_a_discount_lowers_the_price_and_leaves_the_list_alone(listed: Decimal, percent: Decimal) -> None:
    found = priced(
        an_offer(list_usd_per_hour=listed, capacity=Capacity.ON_DEMAND),
        terms(discounts=[{"provider": "aws", "percent": percent}]),
    )

    assert 0 < found.usd_per_hour < found.list_usd_per_hour == listed


def test_credits_of_the_provider_that_still_count_are_added() -> None:
    under = terms(
        credits=[
            {"provider": "aws", "usd": "$1,000"},
            {"provider": "aws", "usd": 500, "until": "2026-11-21"},
            {"provider": "aws", "usd": 70, "until": "2026-11-20"},
            {"provider": "gcp", "usd": 9},
        ]
    )

    assert credit_usd(under, "aws", TODAY) == Decimal(1500)
    assert credit_usd(under, "oci", TODAY) == Decimal(0)


@pytest.mark.parametrize(("cost", "credit", "left"), [(847, 300, 547), (847, 847, 0), (847, 2000, 0), (847, 0, 847)])
def test_cash_is_what_credits_leave(cost: int, credit: int, left: int) -> None:
    assert cash(Decimal(cost), Decimal(credit)) == left


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"discounts": [{"provider": "aws", "percent": 100}]}, "less than 100"),
        ({"discounts": [{"provider": "aws", "percent": 0}]}, "greater than 0"),
        ({"discounts": [{"provider": "aws", "capacity": "reserved", "percent": 5}]}, "spot"),
        ({"discounts": [{"provider": "aws", "percent": 5}, {"provider": "aws", "percent": 6}]}, "more than once"),
        ({"reserved": [CR, CR]}, "cr-0a1b more than once"),
        ({"reserved": [CR | {"usd_per_hour": 0}]}, "greater than 0"),
        ({"own": [DESK]}, "wants usd_per_hour, or power_watts"),
        ({"own": [DESK | {"power_watts": 100}]}, "wants usd_per_hour, or power_watts"),
        ({"own": [DESK | PARTS | {"usd_per_hour": 1}]}, "give one or the other"),
        ({"own": [DESK | {"usd_per_hour": 0}]}, "greater than 0"),
        ({"currencies": {"euro": {"usd_per_unit": 1.16, "as_of": "2026-11-01"}}}, "pattern"),
        ({"reserved": [CR | {"until": "soon"}]}, "no instant; write 2026-12-01T11:30Z"),
        ({"reserved": [CR | {"start": "2026-12-01T10:00"}]}, "no time zone; write 2026-12-01T10:00:00Z"),
        ({"reserved": [CR | {"start": "2027-03-02T00:00Z"}]}, "ends before it starts"),
        ({"reserved": [CR | {"provider": "gcp", "kind": "capacity_block", "project": "p"}]}, "only aws has them"),
        ({"reserved": [CR | {"provider": "gcp"}]}, "project is wanted for provider gcp"),
        ({"reserved": [CR | {"project": "p"}]}, "and for no other"),
        (a_cluster("slurm", labels={"pool": "burst"}), "gpu: slurm knows no labels"),
        (a_cluster("kubernetes", qos="high", time_limit="1 h"), "gpu: kubernetes knows no time_limit and no qos"),
        (a_cluster(notice="30 s"), "gpu is on_demand; notice belong"),
        (a_cluster(usd_per_gpu_hour=0), "greater than 0"),
        (a_cluster(partition="gpu"), "not permitted"),
        (a_cluster("pbs"), "slurm"),
        ({"clusters": a_cluster()["clusters"] * 2}, "slurm lab more than once"),
        ({"clusters": [{"name": "lab", "provider": "slurm", "pools": [POOL, POOL]}]}, "cluster lab has gpu"),
        ({"discount": []}, "not permitted"),
    ],
)
def test_terms_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Terms.model_validate(given)


def test_a_whole_pricing_file_is_understood() -> None:
    under = terms(
        discounts=DISCOUNTS,
        credits=[{"provider": "aws", "usd": 100}],
        reserved=[CR],
        own=[DESK | PARTS],
        clusters=a_cluster(capacity="spot", preemptions_per_hour=0.2, notice="30 s", time_limit="24 h")["clusters"],
        rank_reserved_by="marginal",
        currencies={"EUR": {"usd_per_unit": 1.16, "as_of": "2026-11-01"}},
    )

    assert under.currencies["EUR"].usd_per_unit == Decimal("1.16")
    assert under.rank_reserved_by == "marginal"
    assert Terms.model_validate_json(under.model_dump_json()) == under
