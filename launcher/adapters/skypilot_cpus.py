"""What a supervisor's machine costs: the cheapest small one of each region in SkyPilot's catalogues, read without it.

Only of the families that SkyPilot 0.14.1 itself takes for a task without a GPU (`_DEFAULT_INSTANCE_FAMILY` in
sky/catalog/<cloud>_catalog.py): machines that share their cores bill bursts on top, and some are not x86.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from launcher.adapters.skypilot_catalog import SOURCE, fetched_at, reading, rows_of
from launcher.core.prices.supervision import MEMORY_GIB, VCPUS, Machine, cheapest

FAMILIES = {
    "aws": re.compile(r"[mcr](6id?|7i)\..+"),
    "azure": re.compile(r"Standard_([DE]\d+s_v5|F\d+s_v2)"),
    "gcp": re.compile(r"n2-(standard|highmem|highcpu)-\d+"),
}


def small_machines(folder: Path) -> dict[tuple[str, str], Machine]:
    """By provider and region. Raises: InputError: a file is not a catalogue."""
    found: dict[tuple[str, str], Machine] = {}
    for provider, family in FAMILIES.items():
        path = folder / provider / "vms.csv"
        if not path.exists():
            continue
        with reading(path):
            source = f"{SOURCE} of {fetched_at(path):%Y-%m-%d}"
            found |= cheapest(_machines(path, provider, family), source=source)
    return found


def _machines(path: Path, provider: str, family: re.Pattern[str]) -> Iterator[tuple[str, str, str, Decimal]]:
    for row in rows_of(path, lambda kind, gpu: not gpu and family.fullmatch(kind) is not None):
        usd = Decimal(row.on_demand or 0)
        if usd.is_finite() and usd > 0 and float(row.vcpus) >= VCPUS and float(row.memory_gib) >= MEMORY_GIB:
            yield provider, row.region, row.instance_type, usd
