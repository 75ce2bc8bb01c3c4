"""What a run's bytes cost: data that is read, checkpoints that are saved, restored and moved along."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from launcher.adapters.snapshot_prices import load_tariffs
from launcher.core.gravity import Found
from launcher.core.offers import Offer
from launcher.core.prices.traffic import (
    CHUNK_BYTES,
    Charge,
    Traffic,
    cheapest_move,
    checkpoint_home,
    home_region,
    homes,
    move_charge,
    read_charge,
    size,
    traffic_at,
)
from launcher.core.unknown import Unknown
from tests.builders import a_spec, an_offer

TARIFFS = load_tariffs()
NEAR, FAR = an_offer(), an_offer(region="us-west-2")
GCP = an_offer(provider="gcp", region="us-central1")
AT = datetime(2026, 11, 21, tzinfo=UTC)
BUCKETS = {"aws/us-east-2": "s3://use2/runs/", "aws": "s3://aws/runs", "gcp/us-central1": "gs://usc1/runs"}


def read(offer: Offer, **data: Any) -> Charge:
    found = read_charge(a_spec(data={"uri": "s3://b/x", "region": "aws/us-east-2"} | data), offer, TARIFFS)
    assert isinstance(found, Charge), found
    return found


def why_not(found: object) -> str:
    assert isinstance(found, Unknown), found
    return found.reason


def traffic(offer: Offer, gb: float, **checkpoint: Any) -> Traffic:
    found = traffic_at(a_spec(checkpoint=checkpoint), offer, TARIFFS, gb)
    assert isinstance(found, Traffic), found
    return found


def listed(gb: float, *, is_complete: bool = False, num_objects: int = 1000) -> Found:
    return Found(
        region="aws/us-east-2", gb=gb, is_complete=is_complete, num_objects=num_objects, basis="listing", at=AT
    )


def test_a_request_reads_no_more_than_a_piece_or_an_object() -> None:
    large = read(NEAR, size="8.388608 GB")
    small = read(NEAR, size=None, found=listed(0.001, is_complete=True, num_objects=1_000_000))

    assert large.requests_usd == 1000 * Decimal("0.0000004")
    assert small.requests_usd == Decimal("0.4")


def test_a_free_tranche_serves_all_reads_together_and_not_each() -> None:
    """Ten reads of 100 GB: 900 GB are paid for."""
    once, ten = read(GCP, size="100 GB"), read(GCP, size="100 GB", reads=10)

    assert once.egress_usd == 0
    assert 10 * ten.egress_usd == 900 * Decimal("0.09")


def test_a_nat_gateway_is_paid_for_even_beside_the_bucket_where_the_user_has_one() -> None:
    assert read(NEAR, size="1 TB").egress_usd == 0
    assert read(NEAR, size="1 TB", nat=["aws"]).egress_usd == 45
    assert read(GCP, size="1 TB", nat=["aws"]).egress_usd == 900 * Decimal("0.09")
    spec = a_spec(data={"uri": "s3://b", "region": "aws/us-east-2", "size": "1 TB", "nat": ["lambda"]})
    assert "no NAT" in why_not(read_charge(spec, an_offer(provider="lambda"), TARIFFS))


def test_a_lower_bound_is_enough_beside_the_bucket_and_nowhere_else() -> None:
    """50 GB lie within the free tranche to another provider; of how much more there is, nothing is known."""
    for gb in (0.0, 50.0, 1200.0):
        assert read(NEAR, found=listed(gb)).egress_usd == 0
        for offer in (FAR, GCP):
            spec = a_spec(data={"uri": "s3://b/x", "found": listed(gb)})
            assert "write data.size" in why_not(read_charge(spec, offer, TARIFFS))
    spec = a_spec(data={"uri": "s3://b/x", "found": listed(1200.0)})
    reason = why_not(read_charge(spec, FAR, TARIFFS))
    assert "at least 1.2 TB" in reason
    assert "at least $24.00" in reason


def test_a_place_has_the_bucket_of_its_region_then_of_its_provider_then_the_runs() -> None:
    spec = a_spec(checkpoint={"uri": "s3://run/x/", "buckets": BUCKETS})

    assert checkpoint_home(spec, NEAR) == "s3://use2/runs"
    assert checkpoint_home(spec, FAR) == "s3://aws/runs"
    assert checkpoint_home(spec, GCP) == "gs://usc1/runs"
    assert checkpoint_home(spec, an_offer(provider="lambda")) == "s3://run/x"
    assert checkpoint_home(a_spec(), NEAR) is None
    assert homes(spec) == ("s3://use2/runs", "s3://aws/runs", "gs://usc1/runs", "s3://run/x")


def test_a_bucket_is_where_the_user_says_or_where_it_says_itself() -> None:
    regions = {"s3://aws/runs": "aws/eu-west-1"}
    spec = a_spec(checkpoint={"uri": "s3://run/x", "region": "aws/us-west-2", "buckets": BUCKETS, "regions": regions})

    assert home_region(spec, "s3://use2/runs") == "aws/us-east-2"
    assert home_region(spec, "s3://aws/runs") == "aws/eu-west-1"
    assert home_region(spec, "s3://run/x") == "aws/us-west-2"
    assert home_region(spec, "/shared/runs") is None
    assert "checkpoint.region" in why_not(home_region(spec, "s3://nobody/knows"))


def test_another_providers_bucket_is_not_beside_the_gpu_for_being_named_so() -> None:
    spec = a_spec(checkpoint={"buckets": {"lambda/us-east-1": "s3://b/runs"}})

    assert isinstance(home_region(spec, "s3://b/runs"), Unknown)


def test_beside_the_gpu_a_save_costs_its_requests_and_elsewhere_its_way_too() -> None:
    here = traffic(NEAR, 100.0, uri="s3://b/x", region="aws/us-east-2")
    there = traffic(FAR, 100.0, uri="s3://b/x", region="aws/us-east-2")
    disk = traffic(NEAR, 100.0, uri="/shared/runs")

    puts = -(-100_000_000_000 // CHUNK_BYTES) + 1
    assert (here.save.egress_usd, here.save.requests_usd) == (0, puts * Decimal("0.000005"))
    assert here.restore.requests_usd == puts * Decimal("0.0000004")
    assert (there.save.egress_usd, there.restore.egress_usd) == (2, 2)
    assert there.save_usd_per_gb * 100 == there.save.usd
    assert (disk.save.usd, disk.restore.usd) == (0, 0)


def test_out_of_another_cloud_every_save_is_paid_for_in_full() -> None:
    """98 GB are less than a month's free 100 GB; the second save is not free."""
    assert traffic(NEAR, 98.0, uri="gs://b/x", region="gcp/us-central1").save.egress_usd == 98 * Decimal("0.09")


def test_ones_own_line_sends_for_nothing_and_the_cloud_does_not() -> None:
    own = traffic(an_offer(provider="local", region="desk"), 10.0, uri="s3://b/x", region="aws/us-east-2")

    assert own.save.egress_usd == 0
    assert own.restore.egress_usd == 10 * Decimal("0.09")


def test_saving_from_a_place_without_a_tariff_is_unknown() -> None:
    spec = a_spec(checkpoint={"uri": "s3://b/x", "region": "aws/us-east-2"})

    assert "vast" in why_not(traffic_at(spec, an_offer(provider="vast", region="Texas, US, NA"), TARIFFS, 1.0))


def test_a_move_is_the_egress_of_one_checkpoint_and_nothing_within_a_bucket() -> None:
    spec = a_spec(checkpoint={"buckets": BUCKETS, "regions": {"s3://aws/runs": "aws/us-west-2"}})

    def move(old: str | None, new: str | None) -> Charge:
        found = move_charge(spec, TARIFFS, from_home=old, to_home=new, gb=100.0)
        assert isinstance(found, Charge)
        return found

    assert move("s3://use2/runs", "s3://use2/runs").usd == 0
    assert move("s3://use2/runs", "s3://aws/runs").egress_usd == 2
    assert move("s3://use2/runs", "gs://usc1/runs").egress_usd == 9
    assert move("gs://usc1/runs", "s3://use2/runs").egress_usd == 12
    assert move("/shared", "s3://use2/runs").egress_usd == 0
    assert move("s3://use2/runs", None).egress_usd == 9  # to a disk of one's own
    assert move("s3://use2/runs", "s3://aws/runs").requests_usd > 0


def test_of_several_copies_the_nearest_one_is_moved() -> None:
    spec = a_spec(checkpoint={"buckets": BUCKETS, "regions": {"s3://aws/runs": "aws/us-west-2"}})
    lying = ["gs://usc1/runs", "s3://use2/runs"]

    def cheapest(to: str) -> tuple[str, Decimal]:
        found = cheapest_move(spec, TARIFFS, lying, to, 100.0)
        assert not isinstance(found, Unknown)
        return found[0], round(found[1].egress_usd, 2)

    assert cheapest("gs://usc1/runs") == ("gs://usc1/runs", 0)
    assert cheapest("s3://aws/runs") == ("s3://use2/runs", 2)
    assert isinstance(cheapest_move(spec, TARIFFS, ["s3://nobody/knows"], "s3://aws/runs", 100.0), Unknown)


def test_a_chunk_of_the_estimate_is_one_of_the_hooks() -> None:
    from trainer_hooks.checkpoint import layout

    assert layout.CHUNK_BYTES == CHUNK_BYTES


@pytest.mark.parametrize(
    ("gb", "text"), [(0.0, "0 MB"), (0.08, "80 MB"), (1.0, "1 GB"), (1234.0, "1.23 TB"), (2e6, "2 PB")]
)
def test_sizes_are_written_as_people_write_them(gb: float, text: str) -> None:
    assert size(gb) == text


def test_a_restore_from_a_zone_less_bucket_is_free_in_every_zone() -> None:
    for zone in ("use2-az1", "use2-az2", None):
        assert traffic(replace(NEAR, zone=zone), 10.0, uri="s3://b", region="aws/us-east-2").restore.egress_usd == 0
