"""Reservations, own machines and pools of clusters as offers, and how SkyPilot is told of a reservation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from launcher.adapters.snapshot_prices import load_catalog
from launcher.core.offers import Capacity, Offer, Price, Refusal
from launcher.core.prices.inventory import cluster_offers, own_offers, pool_of, reservation_config, reserved_offers
from launcher.core.prices.pricing import Terms, price
from launcher.errors import InputError
from tests.core.test_pricing import CR, DESK, DISCOUNTS, NOW, PARTS, POOL, TODAY, a_cluster, an_offer, priced, terms

MIDNIGHT = datetime(2027, 3, 2, tzinfo=UTC)  # behind the last day of CR
GCP = (
    CR
    | {"id": "h100s", "provider": "gcp", "project": "acme", "region": "us-central1", "zone": "us-central1-a"}
    | {"gpu": "H100", "gpus": 8}
)
SPOT = POOL | {
    "name": "spot",
    "capacity": "spot",
    "usd_per_gpu_hour": 1.5,
    "preemptions_per_hour": 0.2,
    "notice": "30 s",
}
PAID = POOL | {"name": "paid", "capacity": "reserved", "usd_per_gpu_hour": 4, "account": "nlp", "time_limit": "24 h"}
LAB = {"clusters": [{"name": "lab", "provider": "slurm", "pools": [POOL, SPOT, PAID]}]}


def reserved(*entries: dict[str, Any]) -> tuple[Offer, ...]:
    return reserved_offers(terms(reserved=list(entries)), [an_offer()], catalog=load_catalog(), today=TODAY)


def pools(under: Terms) -> tuple[Offer, ...]:
    return cluster_offers(under, catalog=load_catalog(), today=TODAY)


def test_reserved_capacity_is_charged_as_committed_and_costs_no_further_cash() -> None:
    under = terms(reserved=[CR], discounts=DISCOUNTS)
    book = [an_offer(), an_offer(capacity=Capacity.ON_DEMAND, list_usd_per_hour=Decimal("55.04"))]

    (offer,) = reserved_offers(under, book, catalog=load_catalog(), today=TODAY)

    assert (offer.gpu, offer.count, offer.capacity) == ("H100", 8, Capacity.RESERVED)
    assert (offer.reservation, offer.available_count) == ("cr-0a1b", 4)
    assert priced(offer, under) == Price(
        list_usd_per_hour=Decimal("55.04"),
        usd_per_hour=Decimal("22.4"),
        marginal_usd_per_hour=Decimal(0),
        basis="amortised cr-0a1b",
    )


def test_a_reservation_in_a_region_with_two_on_demand_prices_claims_neither() -> None:
    on_demand = [
        an_offer(zone=f"use2-az{i}", capacity=Capacity.ON_DEMAND, list_usd_per_hour=Decimal(50 + i)) for i in (1, 2)
    ]

    (offer,) = reserved_offers(terms(reserved=[CR]), on_demand, catalog=load_catalog(), today=TODAY)

    assert offer.on_demand_usd_per_hour is None


def test_a_reservation_of_a_type_outside_the_book_says_its_gpus_itself() -> None:
    private = CR | {"instance_type": "hgx-7", "gpu": "h100-sxm", "gpus": 4}

    (offer,) = reserved_offers(terms(reserved=[private]), [], catalog=load_catalog(), today=TODAY)

    assert (offer.gpu, offer.count) == ("H100", 4)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"instance_type": "hgx-7"}, "L210"),
        ({"instance_type": "hgx-7", "gpu": "H100"}, "L210"),
        ({"gpus": 4}, "L211"),
        ({"gpu": "A100"}, "L211"),
        ({"gpu": "H1000"}, "L212"),
    ],
)
def test_a_reservation_without_known_gpus_is_an_error_of_the_input(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError, match="cr-0a1b") as caught:
        reserved_offers(terms(reserved=[CR | changes]), [an_offer()], catalog=load_catalog(), today=TODAY)

    assert [problem.code for problem in caught.value.problems] == [code]


def test_an_own_machine_costs_what_its_parts_cost_and_its_next_hour_only_power() -> None:
    under = terms(own=[DESK | PARTS])

    (offer,) = own_offers(under, catalog=load_catalog(), today=TODAY)

    assert (offer.provider, offer.region, offer.instance_type) == ("local", "desk", "desk")
    assert (offer.gpu, offer.count, offer.capacity) == ("RTX4090", 2, Capacity.ON_DEMAND)
    assert priced(offer, under) == Price(
        list_usd_per_hour=Decimal("0.73"),
        usd_per_hour=Decimal("0.73"),
        marginal_usd_per_hour=Decimal("0.33"),
        basis="own machine desk, $0.33 of it power",
    )


def test_an_own_machine_with_one_price_costs_it_every_hour() -> None:
    under = terms(own=[DESK | {"usd_per_hour": 0.5}], discounts=[{"provider": "local", "percent": 50}])

    (offer,) = own_offers(under, catalog=load_catalog(), today=TODAY)

    assert priced(offer, under).usd_per_hour == priced(offer, under).marginal_usd_per_hour == Decimal("0.5")


def test_an_own_machine_with_an_unknown_gpu_is_an_error_of_the_input() -> None:
    with pytest.raises(InputError, match="sofa"):
        own_offers(terms(own=[DESK | {"gpu": "sofa", "usd_per_hour": 1}]), catalog=load_catalog(), today=TODAY)


@pytest.mark.parametrize(
    ("given", "closes_at"),
    [
        ({"until": "2027-03-01"}, MIDNIGHT),
        ({"until": "2027-03-01T11:30+01:00"}, datetime(2027, 3, 1, 10, 30, tzinfo=UTC)),
        ({"until": "2027-03-01", "kind": "capacity_block"}, MIDNIGHT - timedelta(minutes=30)),
    ],
    ids=["a day counts whole", "an instant", "a block is cleared before its end"],
)
def test_a_reservation_closes_when_its_machines_go_back(given: dict[str, Any], closes_at: datetime) -> None:
    (offer,) = reserved(CR | given)

    assert offer.closes_at == closes_at


def test_a_reservation_that_begins_later_is_refused_until_then_and_has_its_price_from_then() -> None:
    under = terms(reserved=[CR | {"start": "2026-12-01T11:30Z"}])
    (offer,) = reserved_offers(under, [an_offer()], catalog=load_catalog(), today=TODAY)
    assert offer.opens_at is not None

    before = price(offer, under, now=NOW)

    assert isinstance(before, Refusal)
    assert before.reason == "it begins on 2026-12-01 11:30 UTC"
    assert isinstance(price(offer, under, now=offer.opens_at), Price)


def test_an_offer_is_usable_from_its_opening_to_its_closing_and_no_longer_than_a_lease() -> None:
    (offer,) = reserved(CR | {"start": "2027-02-28T12:00Z", "until": "2027-03-01T12:00Z"})
    whole = pools(terms(**LAB))[-1]

    assert offer.usable_seconds(NOW) == 24 * 3600
    assert offer.usable_seconds(datetime(2027, 3, 1, 11, tzinfo=UTC)) == 3600
    assert offer.usable_seconds(MIDNIGHT) == 0
    assert whole.usable_seconds(NOW) == 24 * 3600
    assert an_offer().usable_seconds(NOW) == float("inf")


def test_skypilot_is_told_the_reservation_in_the_form_of_its_cloud() -> None:
    under = terms(reserved=[CR, GCP], **LAB)
    aws, gcp = reserved_offers(under, [an_offer()], catalog=load_catalog(), today=TODAY)

    assert reservation_config(under, aws) == {"aws": {"specific_reservations": ["cr-0a1b"]}}
    assert reservation_config(under, gcp) == {"gcp": {"specific_reservations": ["projects/acme/reservations/h100s"]}}
    for other in (an_offer(), *pools(under)):
        assert reservation_config(under, other) == {}


def test_a_pool_is_offered_by_powers_of_two_and_by_the_whole_node() -> None:
    offers = pools(terms(**a_cluster(gpu="h100-sxm", gpus=6)))

    assert [(o.instance_type, o.count, o.list_usd_per_hour) for o in offers] == [
        ("h100-sxm:1", 1, Decimal(3)),
        ("h100-sxm:2", 2, Decimal(6)),
        ("h100-sxm:4", 4, Decimal(12)),
        ("h100-sxm:6", 6, Decimal(18)),
    ]
    assert {(o.provider, o.region, o.zone, o.gpu) for o in offers} == {("slurm", "lab", "gpu", "H100")}
    assert {o.where for o in offers} == {"slurm lab/gpu"}


def test_slurm_gives_every_node_of_a_job_a_machine_and_kubernetes_packs_pods() -> None:
    slurm, kubernetes = pools(terms(**a_cluster())), pools(terms(**a_cluster("kubernetes")))

    assert [(o.count, o.available_count) for o in slurm] == [(1, 2), (2, 2), (4, 2)]
    assert [(o.count, o.available_count) for o in kubernetes] == [(1, 8), (2, 4), (4, 2)]


def test_tiers_of_a_cluster_are_priced_as_spot_committed_and_on_demand() -> None:
    under = terms(**LAB, discounts=[{"provider": "slurm", "capacity": "spot", "percent": 10}])
    on_demand, spot, paid = (o for o in pools(under) if o.count == 4)

    assert priced(on_demand, under).basis == "pricing.yaml"
    assert (priced(spot, under).usd_per_hour, priced(spot, under).basis) == (Decimal("5.40"), "pricing.yaml − 10 %")
    assert (spot.preemptions_per_hour, spot.notice_seconds, spot.on_demand_usd_per_hour) == (0.2, 30.0, Decimal(12))
    assert priced(paid, under) == Price(
        list_usd_per_hour=Decimal(12),
        usd_per_hour=Decimal(16),
        marginal_usd_per_hour=Decimal(0),
        basis="amortised lab/paid",
    )


def test_an_offer_leads_back_to_its_pool() -> None:
    tiers = [POOL, SPOT, POOL | {"gpu": "A100-80GB"}, POOL | {"capacity": "spot", "qos": "preemptible"}]
    under = terms(clusters=[{"name": "lab", "provider": "slurm", "pools": tiers}, *a_cluster("kubernetes")["clusters"]])

    for offer in pools(under):
        pool = pool_of(under, offer)
        assert pool is not None
        assert (pool.name, pool.capacity, pool.gpus >= offer.count) == (offer.zone, offer.capacity, True)
        assert load_catalog().canonical(pool.gpu) == offer.gpu
    assert len({o.key for o in pools(under)}) == len(pools(under))
    assert pool_of(under, an_offer()) is None


def test_a_pool_with_an_unknown_gpu_is_an_error_of_the_input() -> None:
    with pytest.raises(InputError, match="cluster lab, pool gpu: no GPU type 'H1000'"):
        pools(terms(**a_cluster(gpu="H1000")))


def test_a_cluster_with_two_on_demand_prices_for_a_gpu_claims_neither() -> None:
    dear = POOL | {"name": "dear", "usd_per_gpu_hour": 5}

    offers = pools(terms(clusters=[{"name": "lab", "provider": "slurm", "pools": [POOL, dear, SPOT]}]))

    assert {o.on_demand_usd_per_hour for o in offers if o.capacity is Capacity.SPOT} == {None}
