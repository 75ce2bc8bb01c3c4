"""Prices that are not believed: every kind of error met in a real catalogue, and none of its honest rows."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from launcher.adapters.snapshot_prices import SnapshotPrices
from launcher.core.offers import Capacity, Offer
from launcher.core.prices.doubts import doubt, without_doubted_references
from tests.builders import an_offer

TODAY = date(2026, 5, 1)

# skypilot-org/skypilot-catalog, values as they stand there. gcp/vms.csv @ 006059e, host and GPU added: on-demand is
# the "DWS Defined Duration" rate, skypilot-org/skypilot PR 9634. azure/vms.csv @ 098741e: 12 GPUs, the machine has 8.
# zone or region, instance type, GPU, GPUs, on-demand, spot
SUSPECT = [
    ("gcp", "europe-west4-a", "a2-highgpu-1g", "A100-40GB", 1, "2.42771", "1.48734"),
    ("gcp", "asia-southeast1-c", "a2-highgpu-1g", "A100-40GB", 1, "2.61806", "1.84564"),
    ("gcp", "europe-west4-a", "a2-highgpu-8g", "A100-40GB", 8, "19.4217", "11.89872"),
    ("gcp", "asia-southeast1-c", "a2-highgpu-8g", "A100-40GB", 8, "20.94444", "14.76508"),
    ("gcp", "us-central1-a", "a2-ultragpu-1g", "A100-80GB", 1, "2.94582", "2.51378"),
    ("gcp", "europe-west4-a", "a2-ultragpu-1g", "A100-80GB", 1, "3.24335", "2.63588"),
    ("gcp", "us-east4-c", "a2-ultragpu-1g", "A100-80GB", 1, "3.3177", "2.26583"),
    ("gcp", "us-central1-a", "a2-ultragpu-8g", "A100-80GB", 8, "23.56656", "20.11024"),
    ("gcp", "europe-west4-a", "a2-ultragpu-8g", "A100-80GB", 8, "25.94681", "21.08704"),
    ("gcp", "us-east4-c", "a2-ultragpu-8g", "A100-80GB", 8, "26.54162", "18.12664"),
    ("gcp", "us-central1-a", "a3-highgpu-1g", "H100", 1, "5.38327", "3.35377"),
    ("gcp", "us-west1-a", "a3-highgpu-1g", "H100", 1, "5.38327", "3.35377"),
    ("gcp", "asia-northeast1-b", "a3-highgpu-1g", "H100", 1, "5.71934", "3.93782"),
    ("gcp", "asia-southeast1-b", "a3-highgpu-1g", "H100", 1, "5.65962", "3.39289"),
    ("gcp", "us-central1-a", "a3-highgpu-8g", "H100", 8, "43.06615", "26.83013"),
    ("gcp", "us-west1-a", "a3-highgpu-8g", "H100", 8, "43.06615", "26.83013"),
    ("gcp", "us-west4-a", "a3-highgpu-8g", "H100", 8, "44.26096", "22.61894"),
    ("gcp", "asia-northeast1-b", "a3-highgpu-8g", "H100", 8, "45.7547", "31.50253"),
    ("gcp", "asia-southeast1-b", "a3-highgpu-8g", "H100", 8, "45.27697", "27.14312"),
    ("gcp", "europe-west1-b", "a3-megagpu-8g", "H100", 8, "45.80796", "23.21701"),
    ("gcp", "us-east5-a", "a3-megagpu-8g", "H100", 8, "46.04636", "20.39027"),
    ("gcp", "europe-west1-b", "a3-ultragpu-8g", "H200", 8, "50.10867", "44.10105"),
    ("gcp", "europe-west4-a", "a3-ultragpu-8g", "H200", 8, "49.48188", "42.05909"),
    ("gcp", "us-south1-b", "a3-ultragpu-8g", "H200", 8, "51.07645", "47.10474"),
    ("gcp", "us-east4-b", "a4-highgpu-8g", "B200", 8, "64.44", "32.6064"),
    ("gcp", "asia-northeast1-b", "a4-highgpu-8g", "B200", 8, "64.44", "39.128"),
    ("gcp", "europe-north1-b", "a4-highgpu-8g", "B200", 8, "64.44", "35.8672"),
    ("azure", "eastus", "Standard_ND96isr_H100_v5", "H100", 12, "98.32", "98.32"),
    ("azure", "eastus2", "Standard_ND96isr_H100_v5", "H100", 12, "98.32", "98.32"),
    ("azure", "westus", "Standard_ND96isr_H100_v5", "H100", 12, "127.816", "127.816"),
]
BY_THE_HOUR = [  # the same file where it is right, at its lowest; a2-megagpu-16g has the cheapest A100
    ("us-central1-a", "a2-highgpu-1g", "A100-40GB", 1, "3.67339"),
    ("us-central1-a", "a2-megagpu-16g", "A100-40GB", 16, "55.73951"),
    ("us-east5-a", "a2-ultragpu-8g", "A100-80GB", 8, "44.19056"),
    ("us-east4-a", "a3-highgpu-8g", "H100", 8, "87.83247"),
    ("us-central1-b", "a3-ultragpu-8g", "H200", 8, "86.75992"),
    ("us-central1-b", "a4-highgpu-8g", "B200", 8, "90.216"),
]


def the_doubt(offer: Offer) -> str | None:
    return doubt(offer, today=TODAY, max_age_days=540, max_spot_above_on_demand_percent=Decimal("0.1"))


def listed(usd: str, **fields: Any) -> Offer:
    return an_offer(list_usd_per_hour=Decimal(usd), as_of=TODAY, **fields)


@pytest.mark.parametrize("row", SUSPECT, ids=lambda row: f"{row[2]} {row[1]}")
def test_every_row_that_was_found_wrong_by_hand_is_refused(row: tuple[str, str, str, str, int, str, str]) -> None:
    provider, place, instance_type, gpu, count, on_demand, _ = row

    reason = the_doubt(
        listed(
            on_demand,
            capacity=Capacity.ON_DEMAND,
            provider=provider,
            zone=place,
            instance_type=instance_type,
            gpu=gpu,
            count=count,
        )
    )

    assert reason is not None
    assert ("reserved ahead" in reason or "flex-start" in reason) == (provider == "gcp")
    assert ("has 8" in reason) == (provider == "azure")


@pytest.mark.parametrize(("zone", "instance_type", "gpu", "count", "usd"), BY_THE_HOUR)
def test_what_google_asks_by_the_hour_is_believed(
    zone: str, instance_type: str, gpu: str, count: int, usd: str
) -> None:
    place = {"provider": "gcp", "zone": zone, "instance_type": instance_type, "gpu": gpu, "count": count}

    assert the_doubt(listed(usd, capacity=Capacity.ON_DEMAND, **place)) is None


def test_the_small_a3_machines_are_not_rented_by_the_hour_whatever_the_catalogue_says() -> None:
    place = {"provider": "gcp", "zone": "us-east4-a", "instance_type": "a3-highgpu-1g", "count": 1}  # @ 006059e
    by_the_hour = listed("10.97906", capacity=Capacity.ON_DEMAND, **place)
    spot = listed("2.50556", on_demand_usd_per_hour=Decimal("10.97906"), **place)

    assert "spot or flex-start only" in str(the_doubt(by_the_hour))
    assert the_doubt(replace(by_the_hour, simulated=True)) is None
    assert the_doubt(spot) is None
    assert without_doubted_references([spot])[0].on_demand_usd_per_hour is None


def test_no_offer_of_the_embedded_price_book_is_doubted_but_for_its_age() -> None:
    offers = SnapshotPrices().offers(datetime(2026, 5, 1, tzinfo=UTC))

    doubts = {the_doubt(replace(offer, as_of=TODAY)) for offer in offers}

    assert len(offers) > 500
    assert doubts == {None}


def test_spot_beside_a_doubted_on_demand_price_is_believed_but_promises_no_saving() -> None:
    ahead, by_the_hour = (
        listed("20.11024", provider="gcp", instance_type="a2-ultragpu-8g", gpu="A100-80GB", on_demand_usd_per_hour=usd)
        for usd in (Decimal("23.56656"), Decimal("44.19056"))
    )

    quotes = [offer.on_demand_usd_per_hour for offer in without_doubted_references([ahead, by_the_hour])]

    assert quotes == [None, Decimal("44.19056")]
    assert the_doubt(ahead) is None


@pytest.mark.parametrize(
    ("spot", "on_demand", "reason"),
    [
        ("2.752", "55.04", None),  # 5 %
        ("2.75", "55.04", "no cloud goes so low"),
        ("55.10", "55.04", "dearer than on-demand"),
        ("55.09", "55.04", None),  # rounding
        ("62.9957", None, None),  # p5e.48xlarge use2-az1, aws/vms.csv @ 00148f2: nothing to hold it against
        ("1", "NaN", None),
        ("1", "0", None),
        ("0.00", "2.65", "nobody rents out for that"),  # vast/vms.csv @ 01b8cdd has it in every row
        ("-1", "2", "nobody rents out for that"),
        ("NaN", "2", "nobody rents out for that"),
        ("Infinity", "2", "nobody rents out for that"),
    ],
)
def test_spot_is_held_against_on_demand(spot: str, on_demand: str | None, reason: str | None) -> None:
    quoted = None if on_demand is None else Decimal(on_demand)

    found = the_doubt(listed(spot, on_demand_usd_per_hour=quoted))

    assert (found is None) if reason is None else re.search(reason, found or "")


@pytest.mark.parametrize("quoted", ["NaN", "0", "-3"])
def test_a_price_that_is_none_is_no_reference(quoted: str) -> None:
    (offer,) = without_doubted_references([listed("6", on_demand_usd_per_hour=Decimal(quoted))])

    assert offer.on_demand_usd_per_hour is None


def test_only_googles_rates_are_googles() -> None:
    cheap = {"capacity": Capacity.ON_DEMAND, "instance_type": "gpu_8x_h100_sxm5", "gpu": "H100", "count": 8}

    assert the_doubt(listed("23.92", provider="lambda", **cheap)) is None
    assert the_doubt(listed("5", provider="gcp", simulated=True, **cheap)) is None


def test_an_old_price_says_how_old_and_what_cannot_be_rented_says_why() -> None:
    old = listed("6")

    assert "541 days old; at most 540" in str(the_doubt(replace(old, as_of=date(2024, 11, 6))))
    assert the_doubt(replace(old, as_of=date(2024, 11, 7))) is None
    assert the_doubt(replace(old, barred="aws is not enabled here")) == "aws is not enabled here"
