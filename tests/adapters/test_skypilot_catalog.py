"""SkyPilot's catalogues, read without SkyPilot: rows as the public files have them, and equality with SkyPilot."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from launcher.adapters.skypilot_catalog import GCP_BUILT_IN, SOURCE, SkypilotCatalog, read_catalogue
from launcher.adapters.snapshot_prices import load_catalog
from launcher.core.offers import Capacity, Offer
from launcher.errors import InputError
from tests.adapters.catalogues import AWS, GCP, INFO, LAMBDA, ask_skypilot, draw, folder, n1_machines, write

NOW = datetime(2026, 10, 18, tzinfo=UTC)

# aws/vms.csv @ 00148f2
P4D = ["p4d.24xlarge", "A100", 8.0, 96.0, 1152.0, INFO, "30.09784", "7.520500", "ap-northeast-1", "apne1-az4", "x86_64"]
P3_WITHOUT_SPOT = ["p3.8xlarge", "V100", 4.0, 32.0, 244.0, INFO, "12.24", "", "us-east-1", "use1-az3", "x86_64"]
M6I = ["m6i.large", "", "", 2.0, 8.0, "", "0.096", "0.0312", "us-east-1", "use1-az1", "x86_64"]
TRN1 = ["trn1.2xlarge", "Trainium", 1.0, 8.0, 32.0, INFO, "1.34", "", "us-east-1", "use1-az1", "x86_64"]
# gcp/vms.csv @ 006059e: machine and GPU in rows of their own, a region without the machine, a TPU
A2 = ["a2-highgpu-1g", 12.0, 85.0, "", "", "", "us-central1", "us-central1-a", "0.73948", "0.36975"]
A100 = ["", "", "", "A100", 1, INFO, "us-central1", "us-central1-a", "2.93391", "1.4341"]
A100_ALONE = ["", "", "", "A100", 16, INFO, "asia-northeast1", "asia-northeast1-a", "27.29373", "19.6912"]
T4 = ["", "", "", "T4", 1, INFO, "us-central1", "us-central1-a", "0.35", "0.11"]
V100 = ["", "", "", "V100", 1, INFO, "us-central1", "us-central1-a", "2.48", ""]
A2_80GB = ["a2-ultragpu-1g", 12.0, 170.0, "", "", "", "us-east5", "us-east5-a", "1.09962", ""]
A100_80GB = ["", "", "", "A100-80GB", 1, INFO, "us-east5", "us-east5-a", "4.4242", "1.3356"]
P4 = ["", "", "", "P4", 1, INFO, "us-central1", "us-central1-a", "0.6", "0.2"]
TPU = ["", "", "", "tpu-v2-8", 1, "", "us-central1", "us-central1-a", "4.5", "1.35"]


def offers_of(path: Path) -> tuple[Offer, ...]:
    return read_catalogue(path, load_catalog()).offers


def test_a_row_is_an_on_demand_and_a_spot_offer_in_its_zone(tmp_path: Path) -> None:
    path = write(tmp_path, "aws", AWS, [P4D])
    os.utime(path, (0, datetime(2026, 10, 17, 23, 59, tzinfo=UTC).timestamp()))

    on_demand, spot = offers_of(path)

    assert spot == Offer(
        provider="aws",
        region="ap-northeast-1",
        zone="apne1-az4",
        instance_type="p4d.24xlarge",
        gpu="A100-40GB",
        count=8,
        capacity=Capacity.SPOT,
        list_usd_per_hour=Decimal("7.520500"),
        as_of=date(2026, 10, 17),
        source=SOURCE,
        on_demand_usd_per_hour=Decimal("30.09784"),
        notice_seconds=120.0,
    )
    assert (on_demand.capacity, on_demand.list_usd_per_hour) == (Capacity.ON_DEMAND, Decimal("30.09784"))
    assert on_demand.notice_seconds == 0


def test_an_empty_price_is_not_sold_and_what_is_no_known_gpu_is_counted(tmp_path: Path) -> None:
    not_a_price = [*P4D[:6], "nan", "NaN", *P4D[8:]]
    fraction = ["g6f.large", "L4", 0.125, 2.0, 8.0, INFO, "0.2", "0.1", "us-east-1", "use1-az1", "x86_64"]

    rows = [P3_WITHOUT_SPOT, M6I, TRN1, TRN1, not_a_price, fraction]

    found = read_catalogue(write(tmp_path, "aws", AWS, rows), load_catalog())

    assert [offer.key for offer in found.offers] == ["aws/us-east-1/use1-az3/p3.8xlarge/on_demand"]
    assert found.unknown_gpus == {"Trainium": 2}


def test_googles_machine_and_gpu_add_up(tmp_path: Path) -> None:
    rows = [A2, A2_80GB, *n1_machines("us-central1-a"), A100, A100_ALONE, A100_80GB, T4, V100, TPU, P4, P4]
    path = write(tmp_path, "gcp", GCP, rows)

    found = {(offer.instance_type, offer.capacity.value): offer for offer in offers_of(path)}

    assert {key: offer.list_usd_per_hour for key, offer in found.items()} == {
        ("a2-highgpu-1g", "on_demand"): Decimal("3.67339"),
        ("a2-highgpu-1g", "spot"): Decimal("1.80385"),
        ("a2-ultragpu-1g", "on_demand"): Decimal("5.52382"),
        ("n1-highmem-4+1xT4", "on_demand"): Decimal("0.35") + Decimal("0.23661"),
        ("n1-highmem-4+1xT4", "spot"): Decimal("0.11") + Decimal("0.04969"),
        ("n1-highmem-8+1xV100-16GB", "on_demand"): Decimal("2.48") + Decimal("0.47321"),
    }
    assert found["a2-highgpu-1g", "spot"].notice_seconds == 30.0
    assert read_catalogue(path, load_catalog()).unknown_gpus == {"P4": 2}


@pytest.mark.parametrize(
    ("cloud", "instance_type", "name", "gpu"),
    [
        ("azure", "Standard_NC40ads_H100_v5", "H100", "H100-NVL"),
        ("azure", "Standard_ND96isr_H100_v5", "H100", "H100"),
        ("vast", "1x-H100_NVL-32-65536", "H100", "H100-NVL"),
        ("vast", "1x-H100_SXM-32-65536", "H100", "H100"),
        ("lambda", "gpu_1x_h100_pcie", "H100", "H100-PCIE"),
        ("lambda", "gpu_8x_h100_sxm5", "H100", "H100"),
        ("runpod", "1x_H100_SECURE", "H100", "H100-PCIE"),
        ("runpod", "8x_H100-SXM_SECURE", "H100-SXM", "H100"),
        ("oci", "BM.GPU.H100.8", "H100", "H100"),
    ],
)
def test_a_board_is_not_taken_for_its_bigger_sister(
    tmp_path: Path, cloud: str, instance_type: str, name: str, gpu: str
) -> None:
    path = write(tmp_path, cloud, LAMBDA, [[instance_type, name, 1.0, 8, 64, "2.5", "somewhere", INFO, ""]])

    (offer,) = offers_of(path)

    assert (offer.gpu, offer.zone) == (gpu, None)


def test_of_two_rows_that_sell_the_same_the_cheaper_counts(tmp_path: Path) -> None:
    rows = [["1x-L4", "L4", 1, 8, 64, usd, "Texas, US", INFO, ""] for usd in ("0.4", "0.3", "0.5")]

    (offer,) = offers_of(write(tmp_path, "vast", LAMBDA, rows))

    assert (offer.list_usd_per_hour, offer.region) == (Decimal("0.3"), "Texas, US")


def test_the_prices_are_of_the_download_although_skypilot_touches_the_file_later(tmp_path: Path) -> None:
    path = write(tmp_path, "aws", AWS, [P4D])
    checksum = folder(tmp_path) / ".meta/aws/vms.csv.md5"
    checksum.parent.mkdir(parents=True)
    checksum.write_text("0123")
    os.utime(checksum, (0, datetime(2026, 9, 1, tzinfo=UTC).timestamp()))
    os.utime(path, (0, NOW.timestamp()))

    assert read_catalogue(path, load_catalog()).as_of == date(2026, 9, 1)


def test_a_file_that_changed_is_read_again_and_one_that_did_not_is_not(tmp_path: Path) -> None:
    path = write(tmp_path, "aws", AWS, [P4D])
    catalog = SkypilotCatalog(folder=folder(tmp_path), gpus=load_catalog())

    (first,), (again,) = catalog.catalogues(), catalog.catalogues()
    write(tmp_path, "aws", AWS, [P4D, P3_WITHOUT_SPOT])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    (changed,) = catalog.catalogues()

    assert again is first
    assert (len(first.offers), len(changed.offers)) == (2, 3)


def test_no_folder_is_no_catalogue(tmp_path: Path) -> None:
    assert SkypilotCatalog(folder=tmp_path / "nowhere", gpus=load_catalog()).catalogues() == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column InstanceType"),
        ("InstanceType,AcceleratorName,AcceleratorCount,Region,Price\n", "no column SpotPrice"),
        (AWS + "\np4d,A100,8.0\n", "3 of 11 columns in line 2"),
        (AWS + "\np4d,A100,eight,1,1,,1,1,r,z,x\n", "eight"),
        (AWS + "\np4d,A100,8,1,1,,cheap,1,r,z,x\n", "ConversionSyntax"),
        (AWS + "\np4d,A100,8,1,1,,1\xff,1,r,z,x\n", "decode"),
    ],
)
def test_what_is_no_catalogue_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "aws", AWS, [])
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(InputError) as caught:
        read_catalogue(path, load_catalog())

    (problem,) = caught.value.problems
    assert problem.where == str(path)
    assert message in problem.message
    assert "--refresh" in problem.fix


@pytest.mark.system
def test_googles_machines_and_prices_are_those_of_skypilot(tmp_path: Path) -> None:
    pytest.importorskip("sky")
    draw(tmp_path, seed=1)

    theirs = ask_skypilot(tmp_path, "gcp")

    ours = [
        [o.zone, o.instance_type.partition("+")[0], o.count, o.capacity is Capacity.SPOT, o.list_usd_per_hour]
        for o in offers_of(folder(tmp_path) / "gcp/vms.csv")
    ]
    assert len(ours) == len(theirs["offers"]) > 200
    for mine, other in zip(sorted(ours), sorted(theirs["offers"]), strict=True):
        assert mine[:4] == other[:4]
        assert float(mine[4]) == pytest.approx(other[4])
    assert {kind: tuple(*has.items()) for kind, has in theirs["built_in"].items()} == GCP_BUILT_IN
