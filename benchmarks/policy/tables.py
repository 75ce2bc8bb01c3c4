"""The tables: which traces, windows and terms make their cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from benchmarks.policy.cells import Cell, Windows
from benchmarks.policy.terms import Sights, equal_prices, list_prices
from benchmarks.policy.traces import TICKS_PER_HOUR

SLACKS, LAUNCH_MINUTES = (0.05, 0.15, 0.30, 0.60), (6, 12, 30)
WORK_HOURS = 48.0
LONGEST_TICKS = round(WORK_HOURS * (1 + max(SLACKS)) * TICKS_PER_HOUR)
V100 = "aws-02-15-2023"
H100 = "gcp-10-03-2025"
SETS = {  # name, hours between starts, spot price to on-demand
    V100: ("AWS V100 2023", 12, 0.3),
    "aws-10-26-2022": ("AWS K80/V100 2022", 12, 0.3),
    H100: ("GCP H100 2025", 8, 0.2),
}
REGIONS = {
    "west2": ("us-west-2a", "us-west-2b", "us-west-2c"),
    "east1": ("us-east-1a", "us-east-1c", "us-east-1d", "us-east-1f"),
    "3 regions": ("us-east-1c", "us-east-2a", "us-west-2b"),
    "all 9": ("us-",),
}
# SkyNomad's "Global Diverse" scenario; the deadline is of its runs
H100_ZONES = (
    "us-central1-a",
    "us-west1-a",
    "europe-west1-c",
    "europe-west3-c",
    "asia-southeast1-b",
    "asia-south2-b",
)
H100_DEADLINE_HOURS = 51 + 50 / 60
H100_USD_PER_HOUR = 82.525
RATIOS = (1.05, 1.10, 1.20, 1.50, 2.00)
TABLES = ("single", "sets", "regions", "h100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    columns: tuple[str, ...]  # of the cells' labels
    cells: Sequence[Cell]
    sights: Sights
    unit: str = "on-demand"
    shows_cells: bool = True
    has_means: bool = True  # over the cells that share their first label


def table(name: str) -> Table:
    match name:
        case "single":
            cells = _set_cells(V100)
            return Table(columns=("set", "slack", "d, min"), cells=cells, sights=Sights.KNOWN)
        case "sets":
            cells = [cell for set_name in SETS for cell in _set_cells(set_name)]
            return Table(columns=("set",), cells=cells, sights=Sights.KNOWN, shows_cells=False)
        case "regions":
            return Table(columns=("zones", "slack", "d, min"), cells=_region_cells(), sights=Sights.ATTEMPTS)
        case "h100":
            columns, cells = ("deadline ÷ work",), _h100_cells()
            return Table(columns=columns, cells=cells, sights=Sights.ATTEMPTS, unit="USD", has_means=False)
    raise ValueError(f"no table is called {name}; there are {', '.join(TABLES)}")


def _set_cells(set_name: str) -> list[Cell]:
    """Each zone alone."""
    label, every_hours, spot_ratio = SETS[set_name]
    windows = Windows(set_name=set_name, markets=None, every_hours=every_hours, longest_ticks=LONGEST_TICKS)
    return [
        _equal_cell(label, windows, slack, minutes, spot_ratio) for slack, minutes in product(SLACKS, LAUNCH_MINUTES)
    ]


def _region_cells() -> list[Cell]:
    """Several zones at one price; the first 14 days are left to those who learn."""
    _, every_hours, spot_ratio = SETS[V100]
    windows = {
        name: Windows(
            set_name=V100, markets=(zones,), every_hours=every_hours, from_hour=14 * 24, longest_ticks=LONGEST_TICKS
        )
        for name, zones in REGIONS.items()
    }
    return [
        _equal_cell(name, windows[name], slack, minutes, spot_ratio)
        for name, slack, minutes in product(REGIONS, SLACKS, LAUNCH_MINUTES)
    ]


def _h100_cells() -> list[Cell]:
    """Six zones at their list prices."""
    longest_ticks = round(H100_DEADLINE_HOURS * TICKS_PER_HOUR)
    windows = Windows(set_name=H100, markets=(H100_ZONES,), every_hours=6, longest_ticks=longest_ticks, at_most=50)
    terms = partial(
        list_prices,
        deadline_hours=H100_DEADLINE_HOURS,
        launch_minutes=12,
        on_demand_usd_per_hour=H100_USD_PER_HOUR,
    )
    return [Cell(labels=(f"{ratio:.2f}",), windows=windows, terms=partial(terms, ratio=ratio)) for ratio in RATIOS]


def _equal_cell(label: str, windows: Windows, slack: float, minutes: float, spot_ratio: float) -> Cell:
    terms = partial(equal_prices, work_hours=WORK_HOURS, slack=slack, launch_minutes=minutes, spot_ratio=spot_ratio)
    return Cell(labels=(label, f"{slack:.0%}", f"{minutes:.0f}"), windows=windows, terms=terms)
