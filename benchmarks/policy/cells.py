"""One cell of a table: the same terms over many windows, each policy in each of them beside the optimum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from statistics import mean

from benchmarks.policy.oracle import optima
from benchmarks.policy.simulator import MakePolicy, Outcome, simulate
from benchmarks.policy.terms import Sights, Terms
from benchmarks.policy.traces import Zone, read_sets, starts


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, and what it gets to know of the zones; both must survive a pickle."""

    make: MakePolicy
    sights: Sights


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Where runs start: each market is one zone, or several between which a run may move."""

    set_name: str
    markets: tuple[tuple[str, ...], ...] | None  # parts of zones' names; every zone alone: None
    every_hours: int
    from_hour: int = 0
    longest_ticks: int  # that all cells of a table may have the same starts
    at_most: int | None = None  # starts in each market


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    labels: tuple[str, ...]
    windows: Windows
    terms: Callable[[Sequence[Zone]], Terms]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Window by window, costs in the unit of the prices."""

    labels: tuple[str, ...]
    on_demand: Sequence[float]
    optima: Sequence[float]
    outcomes: Mapping[str, Sequence[Outcome]]

    def cost(self, name: str) -> float:
        return mean(outcome.cost for outcome in self.outcomes[name])

    def ratio(self, name: str) -> float:
        """Mean cost to mean optimum."""
        return self.cost(name) / mean(self.optima)

    def worst(self, name: str) -> float:
        """The dearest window, to on-demand alone."""
        pairs = zip(self.outcomes[name], self.on_demand, strict=True)
        return max(outcome.cost / alone for outcome, alone in pairs)

    def num_late(self, name: str) -> int:
        return sum(outcome.work_ticks_missing > 0 for outcome in self.outcomes[name])


def measure(
    cells: Sequence[Cell],
    contenders: Mapping[str, Contender],
    *,
    folder: Path,
    sample: int | None,
    processes: int,
) -> list[Result]:
    """All cells, each in one process; `sample` takes so many of a cell's windows, evenly spread."""
    tasks = [(cell, contenders, folder, sample) for cell in cells]
    if processes == 1:
        return [_measure(*task) for task in tasks]
    # spawned: the parent may have loaded torch, whose threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_measure, *zip(*tasks, strict=True)))


def _measure(cell: Cell, contenders: Mapping[str, Contender], folder: Path, sample: int | None) -> Result:
    on_demand: list[float] = []
    best: list[float] = []
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    for zones, chosen in _markets(cell.windows, _sets(folder), sample):
        terms = cell.terms(zones)
        on_demand += [terms.on_demand_cost] * len(chosen)
        best += optima(zones, chosen, terms)
        for name, contender in contenders.items():
            outcomes[name] += _outcomes(contender, zones, chosen, terms)
    return Result(labels=cell.labels, on_demand=on_demand, optima=best, outcomes=outcomes)


def _outcomes(contender: Contender, zones: Sequence[Zone], chosen: Sequence[int], terms: Terms) -> list[Outcome]:
    seen = replace(terms, sights=contender.sights)
    return [simulate(contender.make(seen), zones, start, seen) for start in chosen]


def _markets(
    asked: Windows, sets: Mapping[str, Sequence[Zone]], sample: int | None
) -> Iterator[tuple[Sequence[Zone], list[int]]]:
    """The zones of each market and the starts in it."""
    zones = sets[asked.set_name]
    markets = [[one] for one in zones] if asked.markets is None else [named(zones, one) for one in asked.markets]
    windows = [(number, start) for number, market in enumerate(markets) for start in _starts(asked, market)]
    if sample and sample < len(windows):
        windows = [windows[index * len(windows) // sample] for index in range(sample)]
    for number, pairs in groupby(windows, key=itemgetter(0)):
        yield markets[number], [start for _, start in pairs]


def _starts(asked: Windows, market: Sequence[Zone]) -> range:
    fitting = starts(market, every_hours=asked.every_hours, window_ticks=asked.longest_ticks, from_hour=asked.from_hour)
    return fitting[: asked.at_most]


def named(zones: Sequence[Zone], prefixes: Sequence[str]) -> list[Zone]:
    """In the order of the names. Raises: ValueError: the set lacks one."""
    found = [one for prefix in prefixes for one in zones if one.name.startswith(prefix)]
    if len(found) < len(prefixes):
        raise ValueError(f"of the zones {', '.join(prefixes)} only {', '.join(one.name for one in found)} are there")
    return found


@cache
def _sets(folder: Path) -> dict[str, list[Zone]]:
    return read_sets(folder)
