"""Estimates before the submit beside what our own policy then cost on public traces.

The estimate is the one that `launch plan` shows: futures of the same `decide`, in places that come and go as hazards
say; with a history, as those hazards do that the last days of the trace before the start teach. What it cost is what
the simulator says of `decide` in the window. `weather.FRAILTY` was chosen with a look at the traces of 2022 and 2023.

    python -m benchmarks policy calibration [--traces FOLDER] [--set NAME] [--half first|second|both] [--days N]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Literal, get_args

from benchmarks.policy.cells import named
from benchmarks.policy.simulator import simulate
from benchmarks.policy.subject import Subject
from benchmarks.policy.tables import REGIONS, V100, WORK_HOURS
from benchmarks.policy.terms import Sights, Terms, equal_prices
from benchmarks.policy.traces import TICKS_PER_HOUR, NoTraces, Zone, read_sets, traces_folder
from launcher.core.estimates.estimate import Estimate, estimate
from launcher.core.estimates.rollout import Outlook
from launcher.core.estimates.weather import Record, habits
from launcher.core.policy.market import Market, Place

Half = Literal["first", "second", "both"]
HISTORY_DAYS = 14
SPOT_RATIO, LAUNCH_MINUTES = 0.3, 12
SLACKS = (0.05, 0.15, 0.30, 0.60)
ROOMY = (0.15, 0.30)
LONGEST_TICKS = round(WORK_HOURS * (1 + max(SLACKS)) * TICKS_PER_HOUR)
UNSAVED_HOURS = 1e-3  # the simulator's preemptions take no progress
WAYS = ("price × hours", "hazards alone", "history")
OUTLOOK = Outlook(
    throughput_factor80=1.0,
    idle_seconds=0.0,
    closing_seconds=0.0,
    retry_seconds=900.0,
    reads=0.0,
    checkpoint_gb=0.0,
    kept=0,
    storage_usd_per_gb_month=Decimal(0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    label: str
    slack: float
    zones: tuple[str, ...] | None  # parts of their names; every zone of the set alone: None
    num_windows: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One window: the three quantiles, and what it cost; on-demand at 1 an hour."""

    p10: float
    p50: float
    p90: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    cell: Cell
    by: Mapping[str, Sequence[Judged]]  # way of estimating


CELLS = (
    *(Cell(label="one zone", slack=slack, zones=None, num_windows=54) for slack in SLACKS),
    *(
        Cell(label=name, slack=slack, zones=REGIONS[name], num_windows=30)
        for name in ("3 regions", "all 9")
        for slack in ROOMY
    ),
)


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks policy calibration")
    parser.add_argument("--traces", type=Path, help="folder with spot_availability.json; else SPOTLAUNCH_TRACES")
    parser.add_argument("--set", default=V100, help="of the traces; one zone each where it is not %(default)s")
    parser.add_argument("--half", choices=get_args(Half), default="both", help="of the starts")
    parser.add_argument("--days", type=int, default=HISTORY_DAYS, help="of history; 0: none is known")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args(options)
    try:
        folder = traces_folder(asked.traces)
    except NoTraces as absent:
        print(absent)
        return
    cells = [cell for cell in CELLS if cell.zones is None or asked.set == V100]
    found = judge(cells, folder, set_name=asked.set, half=asked.half, days=asked.days, processes=asked.processes)
    about = f"{asked.set}, {asked.half} of the halves, {asked.days} days known; d 12 min, spot at 0.3 of on-demand"
    print(f"### calibration: 48 h on {about}\n")
    print(
        "bias: mean p50 ÷ mean cost − 1 · off: mean of cost ÷ p50 − 1 · inside: of p10–p90 · width: of p10–p90 to p50\n"
    )
    columns = ("market", "slack", "n", "cost ÷ on-demand", "by", "bias", "off", "MAPE", "inside", "≤ p90", "width")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for one in found:
        for way, judged in one.by.items():
            print(f"| {' | '.join((*_labels(one, judged), way, *_figures(judged)))} |")
    print(flush=True)


def judge(
    cells: Sequence[Cell], folder: Path, *, set_name: str, half: Half, processes: int, days: int = HISTORY_DAYS
) -> list[Found]:
    """Every cell, each in one process."""
    ask = partial(_judge, folder=folder, set_name=set_name, half=half, days=days)
    if processes == 1:
        return [ask(cell) for cell in cells]
    # spawned: the parent may have loaded torch, whose threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(ask, cells))


def bias(judged: Sequence[Judged]) -> float:
    """In money over many runs."""
    return mean(one.p50 for one in judged) / mean(one.cost for one in judged) - 1


def inside(judged: Sequence[Judged]) -> float:
    return mean(one.p10 <= one.cost <= one.p90 for one in judged)


def _labels(one: Found, judged: Sequence[Judged]) -> tuple[str, ...]:
    share = mean(each.cost for each in judged) / (WORK_HOURS + LAUNCH_MINUTES / 60)
    return one.cell.label, f"{one.cell.slack:.0%}", str(len(judged)), f"{share:.3f}"


def _figures(judged: Sequence[Judged]) -> tuple[str, ...]:
    off = mean(one.cost / one.p50 - 1 for one in judged)
    error = mean(abs(one.cost / one.p50 - 1) for one in judged)
    below, width = mean(one.cost <= one.p90 for one in judged), mean((one.p90 - one.p10) / one.p50 for one in judged)
    return (
        f"{bias(judged):+.1%}",
        f"{off:+.1%}",
        f"{error:.3f}",
        f"{inside(judged):.0%}",
        f"{below:.0%}",
        f"{width:.2f}",
    )


def _judge(cell: Cell, *, folder: Path, set_name: str, half: Half, days: int) -> Found:
    zones = read_sets(folder)[set_name]
    markets = [[one] for one in zones] if cell.zones is None else [named(zones, cell.zones)]
    by: dict[str, list[Judged]] = {way: [] for way in WAYS[: 3 if days else 2]}
    for market in markets:
        for start in _starts(market, half, cell.num_windows // len(markets), days):
            for way, judged in zip(by, _window(market, start, cell.slack, days), strict=True):
                by[way].append(judged)
    return Found(cell=cell, by=by)


def _starts(zones: Sequence[Zone], half: Half, count: int, days: int) -> list[int]:
    """Evenly spread; a window of the first half ends before the second half begins."""
    first, last = days * 24 * TICKS_PER_HOUR, min(one.ticks for one in zones) - LONGEST_TICKS
    middle = (first + last + LONGEST_TICKS) // 2
    begin = middle if half == "second" else first
    end = middle - LONGEST_TICKS if half == "first" else last
    return [begin + (end - begin) * number // max(1, count - 1) for number in range(count)]


def _window(zones: Sequence[Zone], start: int, slack: float, days: int) -> Iterator[Judged]:
    """In the order of `WAYS`."""
    asked = equal_prices(
        zones, work_hours=WORK_HOURS, slack=slack, launch_minutes=LAUNCH_MINUTES, spot_ratio=SPOT_RATIO
    )
    terms = replace(asked, sights=Sights.ATTEMPTS)
    cost = round(simulate(Subject()(terms), zones, start, terms).cost, 2)  # as estimates, to the cent
    naive = SPOT_RATIO * WORK_HOURS
    yield Judged(naive, naive, naive, cost)
    market = _market(terms)
    pairs = zip(market.places, zones, strict=False)
    history = {place.key: habits(record(zone, start, days)) for place, zone in pairs} if days else {}
    for known in (None, history) if days else (None,):
        found = estimate(market.tiers[0][0], market, OUTLOOK, (), history=known)
        assert isinstance(found, Estimate)
        usd = found.cost_usd
        yield Judged(float(usd.p10), float(usd.p50), float(usd.p90), cost)


def _market(terms: Terms) -> Market:
    """The subject's, whose places save so often that a preemption takes no progress, as in the simulator."""
    market = Subject()(terms).market
    return replace(market, places=tuple(_saving(place) for place in market.places))


def _saving(place: Place) -> Place:
    option = replace(place.option, interval_seconds=UNSAVED_HOURS * 3600)
    return replace(place, option=option, interval_hours=UNSAVED_HOURS)


def record(zone: Zone, start: int, days: int = HISTORY_DAYS) -> Record:
    """The last days before a tick, in hours."""
    begin = start - days * 24 * TICKS_PER_HOUR
    changes, tick = [], begin
    while tick < start:
        tick = min(start, zone.until[tick])
        changes.append((tick - begin) / TICKS_PER_HOUR)
    return zone.up[begin], tuple(changes)
