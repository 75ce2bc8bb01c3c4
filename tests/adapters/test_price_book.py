"""What the price book is made of, and what is barred in it."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from launcher.adapters.price_book import PriceBook
from launcher.adapters.skypilot_catalog import SOURCE, SkypilotCatalog
from launcher.adapters.skypilot_clouds import Clouds, read_clouds
from launcher.adapters.snapshot_prices import SnapshotPrices, load_catalog
from launcher.core.offers import Capacity, Offer, Refusal
from launcher.core.prices.pricing import LOCAL, Terms, price
from launcher.errors import InputError
from tests.adapters.catalogues import AWS, GCP, INFO, folder, write

NOW = datetime(2026, 10, 18, tzinfo=UTC)
P5 = ["p5.48xlarge", "H100", 8.0, 192.0, 2048.0, INFO, "55.04", "16.1", "us-east-2", "use2-az1", "x86_64"]
TERMS = Terms.model_validate(
    {
        "own": [{"name": "desk", "gpu": "RTX4090", "gpus": 2, "usd_per_hour": 0.8}],
        "reserved": [
            {
                "id": "cr-0a1b",
                "provider": "aws",
                "region": "us-east-2",
                "zone": "use2-az1",
                "instance_type": "p5.48xlarge",
                "count": 4,
                "usd_per_hour": 22.4,
                "until": "2027-03-01",
            }
        ],
    }
)


def a_book(home: Path, *, terms: Terms | None = None, clouds: Path | None = None) -> PriceBook:
    gpus = load_catalog()
    catalogues = SkypilotCatalog(folder=folder(home), gpus=gpus)
    return PriceBook(terms=terms or Terms(), gpus=gpus, catalogues=catalogues, clouds=clouds)


def of(provider: str, offers: tuple[Offer, ...]) -> list[Offer]:
    return [offer for offer in offers if offer.provider == provider]


def test_a_younger_catalogue_replaces_a_cloud_of_the_snapshot_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, "aws", AWS, [P5])

    offers = a_book(tmp_path).offers(NOW)

    assert [(o.instance_type, o.source) for o in of("aws", offers)] == [("p5.48xlarge", SOURCE)] * 2
    assert of("gcp", offers) == of("gcp", SnapshotPrices().offers(NOW))


def test_an_older_catalogue_is_not_preferred(tmp_path: Path) -> None:
    path = write(tmp_path, "aws", AWS, [P5])
    os.utime(path, (0, datetime(2025, 11, 30, tzinfo=UTC).timestamp()))

    assert of("aws", a_book(tmp_path).offers(NOW)) == of("aws", SnapshotPrices().offers(NOW))


def test_a_cloud_that_the_snapshot_does_not_have_is_added(tmp_path: Path) -> None:
    header = "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region"
    path = write(tmp_path, "cudo", header, [["epyc-1xa40", "A40", 1, "0.79", "", "no-luster-1"]])
    os.utime(path, (0, datetime(2020, 1, 1, tzinfo=UTC).timestamp()))

    (offer,) = of("cudo", a_book(tmp_path).offers(NOW))

    assert offer.as_of == date(2020, 1, 1)
    assert isinstance(price(offer, Terms(), now=NOW), Refusal)


def test_reservations_take_their_machine_and_list_price_from_the_catalogue(tmp_path: Path) -> None:
    write(tmp_path, "aws", AWS, [P5])

    offers = a_book(tmp_path, terms=TERMS).offers(NOW)

    (reserved,) = (o for o in offers if o.capacity is Capacity.RESERVED)
    assert (reserved.gpu, reserved.count, reserved.on_demand_usd_per_hour) == ("H100", 8, Decimal("55.04"))
    assert [o.instance_type for o in of(LOCAL, offers)] == ["desk"]


def test_spot_of_a_catalogue_does_not_quote_a_doubted_on_demand_price(tmp_path: Path) -> None:
    machine = ["a2-ultragpu-1g", 12.0, 170.0, "", "", "", "us-central1", "us-central1-a", "1.09962", "0.54978"]
    board = ["", "", "", "A100-80GB", 1, INFO, "us-central1", "us-central1-a", "1.8462", "1.964"]
    write(tmp_path, "gcp", GCP, [machine, board])  # gcp/vms.csv @ 006059e

    on_demand, spot = of("gcp", a_book(tmp_path).offers(NOW))

    refused = price(on_demand, Terms(), now=NOW)
    assert isinstance(refused, Refusal)
    assert "reserved ahead" in refused.reason
    assert (spot.list_usd_per_hour, spot.on_demand_usd_per_hour) == (Decimal("2.51378"), None)


def test_nobody_is_barred_before_the_first_check(tmp_path: Path) -> None:
    offers = a_book(tmp_path, clouds=tmp_path / "clouds.json").offers(NOW)

    assert {offer.barred for offer in offers} == {None}


def test_what_skypilot_may_not_use_is_refused_and_own_machines_never_are(tmp_path: Path) -> None:
    record = tmp_path / "clouds.json"
    record.write_text(Clouds(checked_at=NOW, enabled=("gcp", "kubernetes")).model_dump_json())

    offers = a_book(tmp_path, terms=TERMS, clouds=record).offers(NOW)

    barred = {offer.provider for offer in offers if offer.barred}
    assert {offer.provider for offer in offers} - barred == {"gcp", LOCAL}
    (reserved,) = (o for o in offers if o.capacity is Capacity.RESERVED)
    refused = price(reserved, TERMS, now=NOW)
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith("aws is not enabled here; `sky check aws` says why")


@pytest.mark.parametrize("text", ["", "[]", '{"enabled": ["aws"]}', '{"checked_at": "2026-10-18", "enabled": "aws"}'])
def test_a_record_that_is_none_is_one_clear_error(tmp_path: Path, text: str) -> None:
    record = tmp_path / "clouds.json"
    record.write_text(text)

    with pytest.raises(InputError, match="no record of enabled clouds"):
        read_clouds(record)


def test_what_is_left_out_is_known_by_provider_and_gpu(tmp_path: Path) -> None:
    trn1 = ["trn1.2xlarge", "Trainium", 1.0, 8.0, 32.0, INFO, "1.34", "", "us-east-1", "use1-az1", "x86_64"]
    write(tmp_path, "aws", AWS, [P5, trn1])

    assert a_book(tmp_path).left_out() == {"aws": {"Trainium": 1}}
