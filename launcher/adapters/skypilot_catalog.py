"""Prices from the catalogues that SkyPilot keeps on disk, read without SkyPilot: `<folder>/<cloud>/vms.csv`.

A row is an instance type in a zone with its on-demand and its spot price; an empty price is not sold. Google's file has
machines and GPUs in rows of their own, whose prices add up; which machine a GPU goes into is as in SkyPilot 0.14.1,
sky/catalog/gcp_catalog.py. AWS zones are zone ids, use1-az1. Left out: no GPU, a fraction of one, an unknown one.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from launcher.adapters.snapshot_prices import NOTICE_SECONDS
from launcher.core.gpus import GpuCatalog
from launcher.core.offers import Capacity, Offer
from launcher.errors import InputError, Problem

SOURCE = "SkyPilot catalogue"

# Google's machines that come with their GPUs: type → GPU as the catalogue calls it, and how many.
GCP_BUILT_IN = {
    **{f"a2-highgpu-{n}g": ("A100", n) for n in (1, 2, 4, 8)},
    "a2-megagpu-16g": ("A100", 16),
    **{f"a2-ultragpu-{n}g": ("A100-80GB", n) for n in (1, 2, 4, 8)},
    **{f"g2-standard-{vcpus}": ("L4", 1) for vcpus in (4, 8, 12, 16, 32)},
    **{f"g2-standard-{12 * n}": ("L4", n) for n in (2, 4, 8)},
    **{f"a3-highgpu-{n}g": ("H100", n) for n in (1, 2, 4, 8)},
    "a3-megagpu-8g": ("H100-MEGA", 8),
    "a3-ultragpu-8g": ("H200", 8),
    "a4-highgpu-8g": ("B200", 8),
    **{f"g4-standard-{48 * n}": ("RTXPRO6000", n) for n in (1, 2, 4, 8)},
}
# Other GPUs are attached to an N1 machine: the vCPUs that SkyPilot asks of it, by count; four times as many GiB.
_N1_VCPUS = {
    "K80": {1: 4, 2: 8, 4: 16, 8: 32},
    "P100": {1: 8, 2: 16, 4: 32},
    "T4": {1: 4, 2: 8, 4: 48},
    "V100": {1: 8, 2: 16, 4: 32, 8: 64},
}
_N1_GIB_PER_VCPU = 4
_GCP_GPUS = {*_N1_VCPUS, *(gpu for gpu, _ in GCP_BUILT_IN.values())}

# Boards that the catalogue calls by a bigger sister's name: cloud, what the instance type has in it, name → board.
_BOARDS = (
    ("azure", "Standard_NC", "H100", "H100-NVL"),  # Microsoft Learn, NCads H100 v5: NVL, 94 GB
    ("vast", "H100_NVL", "H100", "H100-NVL"),  # Vast's own name stands in the instance type: 1x-H100_NVL-32-65536
    ("vast", "H100_PCIE", "H100", "H100-PCIE"),
    ("lambda", "h100_pcie", "H100", "H100-PCIE"),  # Lambda's API: gpu_1x_h100_pcie, beside gpu_1x_h100_sxm5
    ("runpod", "x_H100_", "H100", "H100-PCIE"),  # skypilot-org/skypilot#3794: PCIe, beside 1x_H100-SXM_SECURE
)

_COLUMNS = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Region", "Price", "SpotPrice")
_NOT_EVERYWHERE = ("AvailabilityZone", "vCPUs", "MemoryGiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """One cloud's file."""

    provider: str
    as_of: date
    offers: tuple[Offer, ...]
    unknown_gpus: Mapping[str, int]  # rows left out, by GPU: its type is not known here, or Google's machine for it


@dataclass(frozen=True, kw_only=True)
class SkypilotCatalog:
    """All catalogues in `folder`; a file is read again only once it has changed."""

    folder: Path
    gpus: GpuCatalog
    _known: dict[Path, tuple[tuple[int, int], Catalogue]] = field(default_factory=dict, repr=False, compare=False)

    def catalogues(self) -> tuple[Catalogue, ...]:
        """Of every cloud whose file is there, by name. Raises: InputError: a file is not a catalogue."""
        return tuple(self._catalogue(path) for path in sorted(self.folder.glob("*/vms.csv")))

    def _catalogue(self, path: Path) -> Catalogue:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = self._known[path] = (stamp, read_catalogue(path, self.gpus))
        return known[1]


def read_catalogue(path: Path, gpus: GpuCatalog) -> Catalogue:
    """Raises: InputError: the file is not a catalogue."""
    provider = path.parent.name
    as_of = fetched_at(path).date()
    with reading(path):
        rows = _with_machines(rows_of(path, _is_googles)) if provider == "gcp" else rows_of(path, _has_gpu)
        offers, unknown = _offers(rows, provider=provider, as_of=as_of, gpus=gpus)
    return Catalogue(provider=provider, as_of=as_of, offers=offers, unknown_gpus=unknown)


def fetched_at(path: Path) -> datetime:
    """When a catalogue was downloaded; one that was put there by hand has no download, but a last change.

    SkyPilot touches a file that it could not renew, so that its own time says little. The checksum beside it is written
    with each download and never else (sky/catalog/common.py, 0.14.1).
    """
    checksum = path.parents[1] / ".meta" / path.parent.name / f"{path.name}.md5"
    return datetime.fromtimestamp((checksum if checksum.exists() else path).stat().st_mtime, UTC)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises: InputError: what is found in the file is no catalogue."""
    try:
        yield
    except (OSError, ValueError, ArithmeticError, csv.Error) as error:
        fix = "delete it; `launch offers --refresh` fetches it again"
        raise InputError([Problem("L220", f"is no catalogue of SkyPilot's: {error}", str(path), fix)]) from error


class Row(NamedTuple):
    """What is used of a line, as it stands there."""

    instance_type: str
    gpu: str
    num_gpus: str
    region: str
    on_demand: str
    spot: str
    zone: str
    vcpus: str
    memory_gib: str


def rows_of(path: Path, is_wanted: Callable[[str, str], bool]) -> Iterator[Row]:
    """Those whose instance type and GPU are wanted. Raises: ValueError: a column is missing, on top or in a line."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        missing = [name for name in _COLUMNS if name not in header]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        width = len(header)
        pick = itemgetter(*(header.index(n) if n in header else width for n in (*_COLUMNS, *_NOT_EVERYWHERE)))
        kind, gpu = header.index("InstanceType"), header.index("AcceleratorName")
        for cells in lines:
            if len(cells) != width:
                raise ValueError(f"{len(cells)} of {width} columns in line {lines.line_num}")
            if is_wanted(cells[kind], cells[gpu]):
                cells.append("")  # what a column that is not everywhere says
                yield Row._make(pick(cells))


def _has_gpu(_: str, gpu: str) -> bool:
    return gpu != "" and not gpu.startswith("tpu-")


def _is_googles(instance_type: str, gpu: str) -> bool:
    return instance_type in GCP_BUILT_IN or instance_type.startswith("n1-") or _has_gpu(instance_type, gpu)


def _with_machines(rows: Iterable[Row]) -> Iterator[Row]:
    """Google's GPUs, each in the cheapest machine of its zone that it goes into; where there is none, it is not sold.

    A GPU of which nobody here knows the machine stays as it is, without an instance type.
    """
    boards: list[Row] = []
    machines: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.gpu:
            boards.append(row)
        elif row.on_demand:
            kind = "n1" if row.instance_type.startswith("n1-") else row.instance_type
            machines[row.zone, kind].append(row)
    for board in boards:
        fitting = _fitting(board, machines)
        if fitting:
            machine = min(fitting, key=lambda row: float(row.on_demand))
            yield board._replace(
                instance_type=machine.instance_type,
                on_demand=_sum(board.on_demand, machine.on_demand),
                spot=_sum(board.spot, machine.spot),
            )
        elif board.gpu not in _GCP_GPUS:
            yield board


def _fitting(board: Row, machines: Mapping[tuple[str, str], Sequence[Row]]) -> list[Row]:
    wanted = (board.gpu, float(board.num_gpus))
    built_in = [kind for kind, has in GCP_BUILT_IN.items() if has == wanted]
    if built_in:
        return [row for kind in built_in for row in machines.get((board.zone, kind), ())]
    vcpus = _N1_VCPUS.get(board.gpu, {}).get(int(wanted[1]), math.inf)
    return [
        row
        for row in machines.get((board.zone, "n1"), ())
        if float(row.vcpus) >= vcpus and float(row.memory_gib) >= vcpus * _N1_GIB_PER_VCPU
    ]


def _sum(first: str, second: str) -> str:
    return str(Decimal(first) + Decimal(second)) if first and second else ""


def _offers(
    rows: Iterable[Row], *, provider: str, as_of: date, gpus: GpuCatalog
) -> tuple[tuple[Offer, ...], Mapping[str, int]]:
    """What the rows sell, the cheapest where two sell the same; and how often each unknown GPU was met."""
    found: dict[tuple[str, str, str | None, Capacity], Offer] = {}
    unknown: Counter[str] = Counter()
    names: dict[str, str | None] = {}
    for row in rows:
        board = _board(provider, row)
        if board not in names:
            names[board] = gpus.canonical(board)
        gpu, count = names[board], float(row.num_gpus)
        if gpu is None or not row.instance_type:
            unknown[board] += 1
        elif count >= 1 and count.is_integer():
            for offer in _both(row, provider=provider, as_of=as_of, gpu=gpu, count=int(count)):
                key = (offer.instance_type, offer.region, offer.zone, offer.capacity)
                if key not in found or _listed(offer) < _listed(found[key]):
                    found[key] = offer
    return tuple(found.values()), dict(unknown)


def _board(provider: str, row: Row) -> str:
    for cloud, mark, name, board in _BOARDS:
        if cloud == provider and name == row.gpu and mark in row.instance_type:
            return board
    return row.gpu


def _both(row: Row, *, provider: str, as_of: date, gpu: str, count: int) -> Iterator[Offer]:
    """The on-demand and the spot offer, as far as there is a price."""
    on_demand = _usd(row.on_demand)
    for capacity, listed in ((Capacity.ON_DEMAND, on_demand), (Capacity.SPOT, _usd(row.spot))):
        if listed is not None:
            is_attached = provider == "gcp" and row.instance_type.startswith("n1-")
            yield Offer(
                provider=provider,
                region=row.region,
                zone=row.zone or None,
                instance_type=f"{row.instance_type}+{count}x{gpu}" if is_attached else row.instance_type,
                gpu=gpu,
                count=count,
                capacity=capacity,
                list_usd_per_hour=listed,
                as_of=as_of,
                source=SOURCE,
                on_demand_usd_per_hour=on_demand,
                notice_seconds=NOTICE_SECONDS.get(provider, 0.0) if capacity is Capacity.SPOT else 0.0,
            )


def _usd(cell: str) -> Decimal | None:
    usd = Decimal(cell) if cell else None
    return usd if usd is not None and usd.is_finite() else None


def _listed(offer: Offer) -> Decimal:
    assert offer.list_usd_per_hour is not None
    return offer.list_usd_per_hour
