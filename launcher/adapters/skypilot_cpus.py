"""What a supervisor's machine costs: the cheapest small one of each region in SkyPilot's catalogues, read without it.

Only of the families that SkyPilot 0.14.1 itself takes for a task without a GPU (`_DEFAULT_INSTANCE_FAMILY` in
sky/catalog/<cloud>_catalog.py): machines that share their cores bill bursts on top, and some are not x86.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from launcher.adapters.skypilot_catalog import SOURCE, fetched_at
from launcher.core.supervision import MEMORY_GIB, VCPUS, Machine, cheapest
from launcher.errors import InputError, Problem

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
        try:
            source = f"{SOURCE} of {fetched_at(path):%Y-%m-%d}"
            found |= cheapest(_rows(path, provider, family), source=source)
        except (OSError, KeyError, ValueError, ArithmeticError, csv.Error) as error:
            fix = "delete it; `launch offers --refresh` fetches it again"
            raise InputError([Problem("L220", f"is no catalogue of SkyPilot's: {error}", str(path), fix)]) from error
    return found


def _rows(path: Path, provider: str, family: re.Pattern[str]) -> Iterator[tuple[str, str, str, Decimal]]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kind, price = row["InstanceType"], row["Price"]
            if row["AcceleratorName"] or not price or not family.fullmatch(kind):
                continue
            if float(row["vCPUs"]) >= VCPUS and float(row["MemoryGiB"]) >= MEMORY_GIB:
                usd = Decimal(price)
                if usd.is_finite() and usd > 0:
                    yield provider, row["Region"], kind, usd
