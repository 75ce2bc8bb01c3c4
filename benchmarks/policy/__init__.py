"""What policies cost on public traces of spot availability, beside the least that a run could have cost there.

    python -m benchmarks policy single|sets|regions|h100 [--traces FOLDER] [--sample N] [--policies …] [--cap 1.05]
    python -m benchmarks policy calibration [--traces FOLDER] [--half first|second|both]
    python -m benchmarks policy fuzz [--cases N] [--processes N] [--seed N] [--tell CASE]

single: one zone, 12 cells of slack and launch. sets: the means of these for each set of traces. regions: several zones
at one price. h100: six zones at list prices, with egress. The traces stay where they are: SPOTLAUNCH_TRACES names them.
calibration: estimates beside what runs then cost (`calibration.py`). fuzz: adversarial markets, made to break the
guards (`adversary.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.policy import adversary, calibration
from benchmarks.policy.baselines import Greedy, OnDemand, Rule, UniformProgress, UniformProgressWithoutHysteresis
from benchmarks.policy.cells import Contender, Result, measure
from benchmarks.policy.guards import Guard
from benchmarks.policy.simulator import MakePolicy
from benchmarks.policy.subject import Subject
from benchmarks.policy.tables import TABLES, Table, table
from benchmarks.policy.terms import Sights
from benchmarks.policy.traces import NoTraces, traces_folder

BASELINES: dict[str, MakePolicy] = {
    "on demand": OnDemand,
    "Greedy": Greedy,
    "UP": UniformProgress,
    "UP w/o hysteresis": UniformProgressWithoutHysteresis,
}


def main(options: Sequence[str]) -> None:
    if options[:1] == ["fuzz"]:
        adversary.main(options[1:])
        return
    if options[:1] == ["calibration"]:
        calibration.main(options[1:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks policy")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--traces", type=Path, help="folder with spot_availability.json; else SPOTLAUNCH_TRACES")
    parser.add_argument("--sample", type=int, help="windows of each cell; all of them without")
    parser.add_argument("--policies", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--cap", type=float, help="money guard: the most it may cost, as a multiple of on-demand alone")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args(options)
    try:
        folder = traces_folder(asked.traces)
    except NoTraces as absent:
        print(absent)
        return
    chosen_table = table(asked.table)
    everyone = contenders(chosen_table.sights, cap=asked.cap)
    chosen = {name: one for name, one in everyone.items() if any(part in name for part in asked.policies)}
    results = measure(chosen_table.cells, chosen, folder=folder, sample=asked.sample, processes=asked.processes)
    print(f"### {asked.table}: mean cost (÷ optimum; worst window ÷ on-demand alone)\n")
    _print_table(chosen_table, results, list(chosen))


def contenders(sights: Sights, *, cap: float | None) -> dict[str, Contender]:
    """All baselines, guarded. RULE is for one zone whose state is known."""
    makes = {**BASELINES, "RULE": Rule} if sights is Sights.KNOWN else BASELINES
    guarded = {name: Contender(Guard(make, cap), sights) for name, make in makes.items()}
    ours = {"spotlaunch w/o handover": Subject(hands_over=False), "spotlaunch": Subject()}
    subjects = {name: Contender(make, sights) for name, make in ours.items()}
    if sights is Sights.ATTEMPTS:
        subjects["spotlaunch with a feed"] = Contender(Subject(), Sights.FEED)
    return guarded | subjects


def _print_table(asked: Table, results: Sequence[Result], names: Sequence[str]) -> None:
    if asked.shows_cells:
        _print_row([*asked.columns, "n", f"optimum, {asked.unit}", *names])
        _print_row(["---"] * (len(asked.columns) + 2 + len(names)))
        for result in results:
            _print_row([*result.labels, str(len(result.optima)), *_told(asked, result, names)])
        print()
    if asked.has_means:
        _print_means(asked, results, names)
    late = {name: sum(result.num_late(name) for result in results) for name in names}
    print(f"late: {', '.join(f'{name} {number}' for name, number in late.items())}\n", flush=True)


def _told(asked: Table, result: Result, names: Iterable[str]) -> list[str]:
    """In dollars, or in units of on-demand alone."""
    unit, form = (1.0, ".0f") if asked.unit == "USD" else (mean(result.on_demand), ".3f")
    told = [format(mean(result.optima) / unit, form)]
    for name in names:
        cost = format(result.cost(name) / unit, form)
        told.append(f"{cost} ({result.ratio(name):.3f}; {result.worst(name):.2f})")
    return told


def _print_means(asked: Table, results: Sequence[Result], names: Sequence[str]) -> None:
    """Over the cells that share their first label."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.labels[0], []).append(result)
    _print_row([asked.columns[0], "cells", "n each", "optimum", *(f"{name} ÷ optimum (worst)" for name in names)])
    _print_row(["---"] * (4 + len(names)))
    for label, group in groups.items():
        best = mean(mean(one.optima) / mean(one.on_demand) for one in group)
        ratios = []
        for name in names:
            ratio, worst = mean(one.ratio(name) for one in group), max(one.worst(name) for one in group)
            ratios.append(f"{ratio:.3f} ({worst:.2f})")
        _print_row([label, str(len(group)), str(len(group[0].optima)), f"{best:.3f}", *ratios])
    print()


def _print_row(entries: Sequence[str]) -> None:
    print(f"| {' | '.join(entries)} |")
