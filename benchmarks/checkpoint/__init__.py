"""Saving a training's state, beside other libraries and beside the floors: a copy in memory, a raw write to the disk.

    python -m benchmarks checkpoint [saves gpu lora resume s3] [--size 0.3 1 3] [--methods NAME …] [--repeats 5]

*blocked*: the training stands still, between two steps or before an update. *durable*: until it is fsynced.
*lost*: training time lost altogether, that is the steps until then less as many plain ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.checkpoint import cases
from benchmarks.checkpoint.measure import Sample, measure
from benchmarks.checkpoint.methods import Memcpy, Method, RawWrite
from benchmarks.checkpoint.ours import Ours
from benchmarks.checkpoint.peers import peers
from benchmarks.checkpoint.training import Training

CASES = ("saves", "gpu", "lora", "resume", "s3")
CPU_SIZES_GB = (0.3, 1.0, 3.0)
GPU_SIZES_GB = (1.0, 8.0)


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoint")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all without any")
    parser.add_argument("--size", nargs="+", type=float, help="GB of state; the first one serves the small cases")
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of their names; the floors always run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the training; with one less than cores, one is free for saves")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to be measured")
    asked = parser.parse_args(options)
    if unknown := set(asked.cases) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    chosen = [one for one in [Ours("overlap"), Ours("lazy"), *peers()] if any(p in one.name for p in asked.methods)]
    for absent in [one for one in chosen if not one.is_installed()]:
        print(f"{absent.name} is left out: not installed\n")
    methods = [one for one in chosen if one.is_installed()]
    for case in asked.cases or CASES:
        _run(case, methods, asked)


def _run(case: str, methods: Sequence[Method], asked: argparse.Namespace) -> None:
    sizes, repeats = asked.size or CPU_SIZES_GB, asked.repeats
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        match case:
            case "saves":
                _saves(methods, sizes, folder, repeats=repeats, device="cpu")
            case "gpu" if torch.cuda.is_available():
                _saves(methods, asked.size or GPU_SIZES_GB, folder, repeats=repeats, device="cuda")
            case "gpu":
                print("### GPU\n\nnot measured: torch finds no CUDA here\n")
            case "lora":
                rows = cases.changed_little(methods, sizes[0], folder)
                print(f"### Frozen model of {sizes[0]} GB with adapters: the second save\n")
                _print_table(["method", "MB written", "MB changed", "ratio"], rows)
            case "resume":
                print(f"### Resume, {sizes[0]} GB, cold page cache\n")
                _print_seconds(cases.resume(Ours("overlap"), Training(sizes[0]), folder, repeats=repeats))
            case "s3":
                print(f"### S3, {sizes[0]} GB; the server, moto's in Python, is the limit\n")
                ours = Ours("overlap", poll_seconds=0.05)
                _print_seconds(cases.upload(ours, Training(sizes[0]), repeats=repeats))


def _saves(methods: Sequence[Method], sizes: Sequence[float], folder: Path, *, repeats: int, device: str) -> None:
    for size in sizes:
        training = Training(size, device=device)
        floors = [Memcpy(), RawWrite()]
        samples = measure([*floors, *methods], training, folder, repeats=repeats)
        step = median(sample.step for sample in samples[floors[0].name])
        print(f"### Saves, {device}: state {training.state_bytes / 1e9:.2f} GB, step {step:.3f} s, {repeats} repeats\n")
        header = ["method", "blocked s", "÷ memcpy", "÷ step", "durable s", "÷ raw disk", "lost s", "÷ memcpy"]
        _print_table([*header, "extra memory ÷ state"], _rows([*floors, *methods], samples, training.state_bytes))
        print("\\* fsynced by the benchmark, not by the library\n")


def _rows(methods: Sequence[Method], samples: Mapping[str, Sequence[Sample]], state_bytes: int) -> list[list[str]]:
    memcpy = median(sample.blocked for sample in samples[Memcpy.name])
    disk = median(sample.durable for sample in samples[RawWrite.name])
    rows = []
    for method in methods:
        found = samples[method.name]
        blocked, durable = [one.blocked for one in found], [one.durable for one in found]
        lost = [one.lost for one in found]
        rows.append([
            method.name if method.fsyncs else f"{method.name} \\*",
            _spread(blocked), f"{median(blocked) / memcpy:.2f}", f"{median(blocked) / found[0].step:.1%}",
            *(["", ""] if method.name == Memcpy.name else [_spread(durable), f"{median(durable) / disk:.2f}"]),
            _spread(lost), f"{median(lost) / memcpy:.1f}",
            f"{median(one.extra_bytes for one in found) / state_bytes:.2f}",
        ])  # fmt: skip
    return rows


def _print_seconds(seconds: Mapping[str, Sequence[float]]) -> None:
    """The first way is the floor of the others."""
    floor = median(next(iter(seconds.values())))
    rows = [[way, _spread(found), f"{median(found) / floor:.2f}"] for way, found in seconds.items()]
    _print_table(["way", "s", "ratio"], rows)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in [header, ["---"] * len(header), *rows]:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f}–{max(values):.3f})"
