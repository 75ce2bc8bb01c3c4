"""The measuring itself, the same for every method: blocked, durable, lost and memory of one save between steps."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Self

import psutil

from benchmarks.checkpoint.methods import Method
from benchmarks.checkpoint.training import Training

PLAIN_STEPS = 3
MIN_STEPS = 3  # from the save on; more, until it is durable
SAMPLE_SECONDS = 0.005


@dataclass(slots=True, kw_only=True)
class Sample:
    """One save, and the steps until it was durable; `plain_seconds` are of steps just before."""

    blocked: float
    durable: float
    elapsed: float
    steps: int
    extra_bytes: int
    plain_seconds: Sequence[float]
    step: float = 0.0  # a plain one's seconds; known when the round is over

    @property
    def lost(self) -> float:
        return self.elapsed - self.steps * self.step


def measure(methods: Sequence[Method], training: Training, folder: Path, *, repeats: int) -> dict[str, list[Sample]]:
    """Samples by method's name. Methods take turns, each time in another order: a noisy minute meets all of them.

    A plain step is the median of those of the same round, so that a slower hour is not taken for lost time.
    """
    samples: dict[str, list[Sample]] = {method.name: [] for method in methods}
    for number in range(repeats):
        first = number * 5 % len(methods)
        for method in [*methods[first:], *methods[:first]]:
            print(f"round {number + 1} of {repeats}: {method.name}", file=sys.stderr, flush=True)
            samples[method.name].append(_sample(method, training, folder))
        this_round = [found[-1] for found in samples.values()]
        for sample in this_round:
            sample.step = median(seconds for one in this_round for seconds in one.plain_seconds)
    return samples


def save_and_train(method: Method, training: Training, *, min_steps: int = 1) -> tuple[float, float, int]:
    """Save once and train until it is durable: seconds blocked, seconds until durable, steps."""
    began = time.perf_counter()
    pending = method.save()
    blocked = time.perf_counter() - began + training.step()
    steps = 1
    while steps < min_steps or not pending.is_durable():
        began = time.perf_counter()
        method.advance()
        blocked += time.perf_counter() - began + training.step()
        steps += 1
    return max(blocked, pending.reported_blocked_seconds), pending.durable_seconds, steps


def _sample(method: Method, training: Training, parent: Path) -> Sample:
    """The first save of a method pays for buffers and processes; the second is the one that counts."""
    _free_memory()
    with TemporaryDirectory(dir=parent) as folder:
        with _PeakMemory() as without:
            plain = [_seconds_of_step(training) for _ in range(PLAIN_STEPS)]
        method.open(training, Path(folder))
        try:
            save_and_train(method, training)
            method.tidy()
            with _PeakMemory() as memory:
                began = time.perf_counter()
                blocked, durable, steps = save_and_train(method, training, min_steps=MIN_STEPS)
                elapsed = time.perf_counter() - began
        finally:
            method.close()
    extra_bytes = max(0, memory.peak_bytes - without.peak_bytes)
    return Sample(
        blocked=blocked, durable=durable, elapsed=elapsed, steps=steps, extra_bytes=extra_bytes, plain_seconds=plain
    )


def _seconds_of_step(training: Training) -> float:
    began = time.perf_counter()
    training.step()
    return time.perf_counter() - began


def _free_memory() -> None:
    """Else one method's freed memory is the next one's gift."""
    gc.collect()
    with suppress(AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class _PeakMemory(threading.Thread):
    """The most that this process and its children hold within the block; memory they share counts once."""

    def __enter__(self) -> Self:
        self._children = [child.pid for child in psutil.Process().children(recursive=True)]
        self._is_over = threading.Event()
        self.peak_bytes = 0
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            resident, _ = _pages("self")
            children = sum(mine - shared for mine, shared in map(_pages, self._children))
            self.peak_bytes = max(self.peak_bytes, (resident + children) * os.sysconf("SC_PAGESIZE"))


def _pages(pid: int | str) -> tuple[int, int]:
    """Resident, and shared of it. Finer numbers walk the page tables, which holds up the process they are of."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return int(resident), int(shared)
