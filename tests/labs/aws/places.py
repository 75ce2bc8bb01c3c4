"""Where machines can be had and for how much: the catalogue that SkyPilot reads, in a few rows.

Prices are of skypilot-org/skypilot-catalog, catalogs/v8/aws/vms.csv @ 00148f2, rounded to cents; zones are ids,
as there. moto's account maps them: use1-az1 is us-east-1b, use1-az2 us-east-1c, use2-az1 us-east-2a,
use2-az2 us-east-2b, usw2-az1 us-west-2b, usw2-az2 us-west-2a.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

ACCOUNT_ID = "123456789012"
REGIONS = ("us-east-1", "us-east-2", "us-west-2")
GATEWAY = "172.31.255.254"  # in the default VPC's range, above all of its subnets
PORT = 5000
ENDPOINT = f"http://{GATEWAY}:{PORT}"
IMAGE = "ami-785db401"  # Ubuntu, known to moto in every region

# instance type, GPU, count, GiB of each, vCPUs, GiB, on demand $/h
_TYPES = {
    "m6i.large": ("", 0, 0, 2, 8, "0.096"),
    "m6i.2xlarge": ("", 0, 0, 8, 32, "0.384"),
    "g6.xlarge": ("L4", 1, 22, 4, 16, "0.81"),
    "g5.xlarge": ("A10G", 1, 22, 4, 16, "1.01"),
    "g5.12xlarge": ("A10G", 4, 22, 48, 192, "5.67"),
    "p4d.24xlarge": ("A100", 8, 40, 96, 1152, "21.96"),
    "p4de.24xlarge": ("A100-80GB", 8, 80, 96, 1152, "27.45"),
    "p5.48xlarge": ("H100", 8, 80, 192, 2048, "55.04"),
}
# zone → spot $/h of each type; a type that is not named is not sold there, None: on demand only
_SPOT: dict[str, dict[str, str | None]] = {
    "use1-az1": {"m6i.large": "0.04", "m6i.2xlarge": "0.15", "g6.xlarge": "0.40", "g5.xlarge": "0.45",
                 "g5.12xlarge": "2.78", "p4d.24xlarge": "9.20", "p5.48xlarge": None},
    "use1-az2": {"m6i.large": "0.04", "m6i.2xlarge": "0.16", "g6.xlarge": "0.37", "g5.xlarge": "0.42",
                 "g5.12xlarge": "2.08", "p4d.24xlarge": "8.19", "p4de.24xlarge": "9.97", "p5.48xlarge": "19.25"},
    "use2-az1": {"m6i.large": "0.03", "m6i.2xlarge": "0.12", "g6.xlarge": "0.28", "g5.xlarge": "0.38",
                 "g5.12xlarge": "2.02", "p4d.24xlarge": "6.04", "p5.48xlarge": "11.25"},
    "use2-az2": {"p4d.24xlarge": "6.10", "p5.48xlarge": "11.56"},
    "usw2-az1": {"m6i.large": "0.04", "m6i.2xlarge": "0.13", "g6.xlarge": "0.43", "g5.xlarge": "0.49",
                 "g5.12xlarge": "3.37", "p4d.24xlarge": "8.00", "p4de.24xlarge": "11.00", "p5.48xlarge": "12.69"},
    "usw2-az2": {"p4d.24xlarge": "8.23", "p5.48xlarge": "12.98"},
}  # fmt: skip
_REGION_OF = {"use1": "us-east-1", "use2": "us-east-2", "usw2": "us-west-2"}
_TAGS = ("custom-cpu-ubuntu", "custom-gpu-ubuntu", "custom-gpu-ubuntu-cuda13", "k80-ubuntu-2004", "neuron-ubuntu-2204")


def write_catalogues(folder: Path) -> None:
    """SkyPilot never refreshes a file whose checksum it has not noted itself, so these stay."""
    _write(folder / "aws/vms.csv", _VM_COLUMNS, _vms())
    _write(
        folder / "aws/images.csv",
        ["Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId"],
        (
            [f"skypilot:{tag}", region, "ubuntu", "22.04", IMAGE, "20240101", IMAGE]
            for tag in _TAGS
            for region in REGIONS
        ),
    )
    _write(folder / "aws/instance_quota_mapping.csv", ["InstanceType", "OnDemandInstanceCode", "SpotInstanceCode"], ())
    gpus = sorted({gpu for gpu, *_ in _TYPES.values()} - {""})
    _write(folder / "common/accelerators.csv", ["AcceleratorName", "Clouds"], ([gpu, "['AWS']"] for gpu in gpus))


_VM_COLUMNS = ["InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo"]
_VM_COLUMNS += ["Price", "SpotPrice", "Region", "AvailabilityZone", "Arch"]


def _vms() -> Iterable[list[object]]:
    for zone, sold in _SPOT.items():
        for name, spot in sold.items():
            gpu, count, gib, cpus, memory, price = _TYPES[name]
            info = _gpu_info(gpu, count, gib) if gpu else ""
            yield [
                *(name, gpu, float(count) if gpu else "", float(cpus), float(memory), info),
                *(price, spot or "", _REGION_OF[zone[:4]], zone, "x86_64"),
            ]


def _gpu_info(gpu: str, count: int, gib: int) -> dict[str, object]:
    one = {"Name": gpu, "Manufacturer": "NVIDIA", "Count": float(count), "MemoryInfo": {"SizeInMiB": gib * 1024}}
    return {"Gpus": [one], "TotalGpuMemoryInMiB": count * gib * 1024}


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
