"""What the hooks cost a training: a step when nothing is due, and a save beside `torch.save` with fsync."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from trainer_hooks import Session

STEPS = 20_000
STATE_GB = 0.3
REPEATS = 7


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # the meter's lines
    ):
        bare, hooked = _step_seconds(Path(folder) / "steps")
        ours, plain, copy = _save_seconds(Path(folder))
    print("| what | median | beside | ratio |\n|---|---|---|---|")
    print(f"| step, nothing due | {1e6 * hooked:.2f} µs | bare loop {1e6 * bare:.2f} µs | |")
    print(f"| save of {STATE_GB} GB, blocked | {ours:.3f} s | torch.save + fsync {plain:.3f} s | {ours / plain:.2f} |")
    print(f"| | | memcpy {copy:.3f} s | {ours / copy:.1f} |")


def _step_seconds(folder: Path) -> tuple[float, float]:
    model = torch.nn.Linear(2, 2)
    session = Session(model=model, run_uri=str(folder), checkpoint_every_steps=10 * STEPS)
    began = time.perf_counter()
    for _ in range(STEPS):
        pass
    bare = (time.perf_counter() - began) / STEPS
    laps = []
    for n, _ in enumerate(session(range(STEPS), epochs=1)):
        if n % 1000 == 0:
            laps.append(time.perf_counter())
    return bare, statistics.median(b - a for a, b in pairwise(laps)) / 1000


def _save_seconds(folder: Path) -> tuple[float, float, float]:
    """Medians of a session's save, `torch.save` with fsync, and a copy in memory, in turn."""
    width = int((STATE_GB * 1e9 / 4 / 8) ** 0.5)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(8)))
    session = Session(model=model, run_uri=str(folder / "run"), checkpoint_every_steps=10**9)
    ours, plain, copy = [], [], []
    for step in range(1, REPEATS + 1):
        began = time.perf_counter()
        session.after_step(step)
        session.save()
        ours.append(time.perf_counter() - began)
        plain.append(_torch_save(model, folder / f"plain-{step % 2}.pt"))
        began = time.perf_counter()
        copies = [parameter.detach().clone() for parameter in model.parameters()]
        copy.append(time.perf_counter() - began)
        del copies
    session.close()
    return tuple(statistics.median(seconds[1:]) for seconds in (ours, plain, copy))


def _torch_save(model: torch.nn.Module, path: Path) -> float:
    began = time.perf_counter()
    with path.open("wb") as file:
        torch.save(model.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
