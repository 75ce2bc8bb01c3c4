"""Catalogues as SkyPilot keeps them, for tests: `<home>/.sky/catalogs/v8/<cloud>/vms.csv`, and what SkyPilot says."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("sky_answers.py")
AWS = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch"
)
GCP = "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice"
LAMBDA = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice"
INFO = "{'Gpus': [{'MemoryInfo': {'SizeInMiB': 40960}}]}"  # commas and quotes, as there

_GPUS = ("A100", "A100-80GB", "H100", "L4", "T4", "V100")
# Compute Engine, us-central1 by the hour: an N1 machine is the sum of its vCPUs and GiB.
_N1 = (("standard", 3.75), ("highmem", 6.5), ("highcpu", 0.9))


def folder(home: Path) -> Path:
    return home / ".sky/catalogs/v8"


def write(home: Path, cloud: str, header: str, rows: Iterable[Sequence[object]]) -> Path:
    path = folder(home) / cloud / "vms.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(header.split(","))
        lines.writerows(rows)
    return path


def n1_machines(zone: str, *, dearer: float = 1.0) -> list[list[object]]:
    """Rows of the N1 machines of one of Google's zones."""
    return [
        [f"n1-{family}-{vcpus}", float(vcpus), vcpus * gib, "", "", "", zone[:-2], zone, *_n1_usd(vcpus, gib, dearer)]
        for family, gib in _N1
        for vcpus in (2, 4, 8, 16, 32, 64, 96)
    ]


def draw(home: Path, *, seed: int) -> None:
    """Three clouds with drawn prices: zones, spot, GPUs that are attached, and prices that come in two rows."""
    rng = random.Random(seed)
    write(home, "aws", AWS, _aws(rng))
    write(home, "gcp", GCP, _gcp(rng))
    write(home, "lambda", LAMBDA, _lambda(rng))


def ask_skypilot(home: Path, question: str, requests: object = None) -> Any:
    """What SkyPilot says of the catalogues in `home`, in a process of its own."""
    names = folder(home) / "common/accelerators.csv"  # which SkyPilot would download
    names.parent.mkdir(parents=True, exist_ok=True)
    lines = ["AcceleratorName,Clouds", *(f"{name},AWS GCP Lambda" for name in _GPUS)]
    names.write_text("\n".join(lines) + "\n", encoding="utf-8")
    environ = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "https_proxy": "http://127.0.0.1:9",  # nobody: a download would fail at once
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM), question],
        input=json.dumps(requests),
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("\nANSWER ")[2])


def _n1_usd(vcpus: int, gib: float, dearer: float) -> tuple[float, float]:
    usd = dearer * vcpus * (0.031611 + gib * 0.004237)
    return round(usd, 5), round(usd * 0.21, 5)


def _aws(rng: random.Random) -> Iterable[Sequence[object]]:
    machines = [
        ("p5.48xlarge", "H100", 8, 55.0),
        ("p5.4xlarge", "H100", 1, 6.9),
        ("p4d.24xlarge", "A100", 8, 22.0),
        ("p4de.24xlarge", "A100-80GB", 8, 27.5),
        ("p3.2xlarge", "V100", 1, 3.06),
        ("p3.16xlarge", "V100", 8, 24.5),
        ("g4dn.xlarge", "T4", 1, 0.526),
        ("g4dn.2xlarge", "T4", 1, 0.752),
        ("g4dn.12xlarge", "T4", 4, 3.9),
        ("g6.xlarge", "L4", 1, 0.8),
        ("g6.12xlarge", "L4", 4, 4.6),
        ("g6.48xlarge", "L4", 8, 13.4),
        ("m6i.large", "", "", 0.1),
    ]
    for region in ("us-east-1", "us-east-2", "us-west-2", "eu-west-1", "ap-northeast-1"):
        for name, gpu, count, usd in machines:
            if rng.random() < 0.85:
                on_demand = round(usd * rng.uniform(0.9, 1.4), 5)
                for zone in range(1, 4):
                    spot = round(on_demand * rng.uniform(0.12, 0.9), 6) if rng.random() < 0.8 else ""
                    info = INFO if gpu else ""
                    yield [name, gpu, count, 8.0, 32.0, info, on_demand, spot, region, f"{region}-az{zone}", "x86_64"]


def _gcp(rng: random.Random) -> Iterable[Sequence[object]]:
    machines = {f"a2-highgpu-{n}g": ("A100", n, 0.74 * n, 2.94 * n) for n in (1, 2, 4, 8)}
    machines |= {f"a2-ultragpu-{n}g": ("A100-80GB", n, 1.1 * n, 4.5 * n) for n in (1, 2, 4, 8)}
    machines |= {f"g2-standard-{v}": ("L4", 1, 0.036 * v, 0.56) for v in (4, 8, 12, 16, 32)}
    machines |= {f"g2-standard-{12 * n}": ("L4", n, 0.44 * n, 0.56 * n) for n in (2, 4, 8)}
    machines |= {"a3-highgpu-8g": ("H100", 8, 9.5, 80.0)}
    attached = [("T4", n, 0.35 * n) for n in (1, 2, 4)] + [("V100", n, 2.48 * n) for n in (1, 2, 4, 8)]
    for region in ("us-central1", "us-east4", "europe-west4", "asia-northeast1"):
        dearer, zones = rng.uniform(1.0, 1.3), [f"{region}-{letter}" for letter in "ab"]
        for zone in zones:
            yield from n1_machines(zone, dearer=round(dearer, 3))
            for name, (_, _, usd, _) in machines.items():
                yield [name, 12.0, 85.0, "", "", "", region, zone, round(usd * dearer, 5), round(usd * dearer * 0.3, 5)]
        for gpu, count, usd in sorted({(g, n, u) for g, n, _, u in machines.values()}) + attached:
            on_demand = round(usd * dearer * rng.uniform(1.0, 1.1), 5)
            for zone in zones:
                spot = round(on_demand * rng.uniform(0.15, 0.7), 5) if rng.random() < 0.8 else ""
                yield ["", "", "", gpu, count, INFO, region, zone, on_demand, spot]


def _lambda(rng: random.Random) -> Iterable[Sequence[object]]:
    machines = [
        ("gpu_8x_h100_sxm5", "H100", 8, 23.92),
        ("gpu_8x_a100", "A100", 8, 15.92),
        ("gpu_8x_a100_80gb_sxm4", "A100-80GB", 8, 22.3),
        ("gpu_1x_a100_sxm4", "A100", 1, 1.99),
        ("gpu_8x_v100", "V100", 8, 6.3),
    ]
    for name, gpu, count, usd in machines:
        price = round(usd * rng.uniform(0.5, 1.5), 2)
        for region in ("us-east-1", "us-west-1"):
            yield [name, gpu, count, 30.0, 200.0, price, region, INFO, ""]
