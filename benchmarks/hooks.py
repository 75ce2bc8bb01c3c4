"""What the hooks cost a training at steps when nothing is due. What saves cost: see `benchmarks.checkpoint`."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import torch

from trainer_hooks import Session

STEPS = 20_000
LAP = 1000  # steps; the median is of laps


def main() -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    bare, stepped = _step_seconds(range(STEPS), _nothing), _step_seconds(range(STEPS), optimizer.step)
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # the meter's lines
    ):
        session = Session(optimizer=optimizer, run_uri=folder, checkpoint_every_steps=10 * STEPS)
        hooked = _step_seconds(session(_forever(), steps=STEPS), _nothing)
        both = _step_seconds(session(_forever(), steps=STEPS), optimizer.step)
        session.close()
    print("| what, with nothing due | median | without hooks |\n|---|---|---|")
    print(f"| a step | {1e6 * hooked:.2f} µs | {1e6 * bare:.2f} µs |")
    print(f"| a step with `optimizer.step()` of SGD | {1e6 * both:.2f} µs | {1e6 * stepped:.2f} µs |")


def _step_seconds(steps: Iterable[int], act: Callable[[], object]) -> float:
    laps = []
    for n, _ in enumerate(steps):
        if n % LAP == 0:
            laps.append(time.perf_counter())
        act()
    return statistics.median(b - a for a, b in pairwise(laps)) / LAP


def _forever() -> Iterator[int]:
    while True:
        yield 0


def _nothing() -> None:
    """A step that does nothing."""


if __name__ == "__main__":
    main()
