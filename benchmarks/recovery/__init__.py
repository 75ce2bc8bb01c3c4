"""From a preemption to training again: `launch train.yaml` beside SkyPilot's managed jobs, in one lab, in one run.

    python -m benchmarks recovery slurm|aws [--repeats 3] [--sides spotlaunch FAILOVER …] [--poll 10] [--folder …]

Both train the same script under the same hooks, saved every 5 steps of 0.3 s to the same store. The clock runs from
the moment the machine is taken to the end of the first step that had not been done before. Needs root (tests/labs).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.recovery.scenes import SCENES, Scene
from benchmarks.recovery.sides import ManagedJob, Ours, Side, until
from benchmarks.recovery.steps import Step, done_again, first_new
from launcher.core.prices.options import Rules

STEPS_BEFORE = 10  # two checkpoints
PEER_POLL_SECONDS = 15.0  # sky/jobs/utils.py, 0.14.1: JOB_STATUS_CHECK_GAP_SECONDS
LOOK_SECONDS = 5.0  # the notes bear their instants: looking often would only cost the machine
START_SECONDS, RECOVERY_SECONDS, RELEASE_SECONDS = 600.0, 900.0, 120.0  # not expectations: ends of what would hang
MakeSide = Callable[[Scene, str], Side]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Seconds since the machine was taken, by what was reached."""

    training_again: float
    phases: Mapping[str, float]
    again: int  # steps that had to be done a second time
    load: float  # average of a minute, when it was over


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recovery")
    parser.add_argument("lab", choices=sorted(SCENES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--poll", type=float, default=Rules().poll_seconds, help="of our supervisor, seconds")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="parent of the lab's own")
    asked = parser.parse_args(options)
    scene: Scene = SCENES[asked.lab](asked.folder / f"recovery-{os.getpid()}")
    sides: dict[str, MakeSide] = {
        # first, for its controllers stay: ours shares the machine with them in every repeat
        **{f"managed job, {name}": partial(ManagedJob, strategy=name) for name in scene.strategies},
        Ours.name: partial(Ours, poll_seconds=asked.poll),
    }
    chosen = {name: make for name, make in sides.items() if any(part in name for part in asked.sides)}
    try:
        scene.up()
        samples = _measure(scene, chosen, repeats=asked.repeats)
    finally:
        scene.lab.down()
    print(f"### {asked.lab}: from the preemption to training again, {asked.repeats} repeats\n")
    _print_totals(samples)
    _print_phases(samples)


def _measure(scene: Scene, sides: Mapping[str, MakeSide], *, repeats: int) -> dict[str, list[Sample]]:
    """In turn, so that a noisy quarter of an hour meets all of them."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for number, (name, make) in enumerate(sides.items()):
            label = f"r{repeat}-{number}"
            stagger = PEER_POLL_SECONDS * (repeat + 0.5) / repeats
            sample = _sample(scene, make(scene, label), label, stagger_seconds=stagger)
            samples[name].append(sample)
            print(f"{repeat + 1} of {repeats}, {name}: {_told(sample)}", file=sys.stderr, flush=True)
    return samples


def _sample(scene: Scene, side: Side, label: str, *, stagger_seconds: float) -> Sample:
    """`stagger_seconds` spreads the preemptions of several samples over the time between two polls."""
    notes = f"{label}-notes"
    try:
        side.start()
        until(
            lambda: len(scene.steps(notes)) >= STEPS_BEFORE, patience_seconds=START_SECONDS, look_seconds=LOOK_SECONDS
        )
        until(side.is_ready, patience_seconds=START_SECONDS)
        time.sleep(stagger_seconds)
        before = {step.machine for step in scene.steps(notes)}
        taken_at = scene.take_away()
        step = _wait_for_new_step(scene, notes, before)
        load = os.getloadavg()[0]
        again = done_again(scene.steps(notes), before=before)
        side.end()
        phases = {phase: at - taken_at for phase, at in side.phases(taken_at).items()}
    finally:
        scene.give_back()
    until(lambda: not scene.in_use(), patience_seconds=RELEASE_SECONDS)
    return Sample(training_again=step.at - taken_at, phases=phases, again=again, load=load)


def _wait_for_new_step(scene: Scene, notes: str, before: set[str]) -> Step:
    end = time.monotonic() + RECOVERY_SECONDS
    while not (step := first_new(scene.steps(notes), before=before)):
        if time.monotonic() > end:
            raise TimeoutError(f"no new step within {RECOVERY_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)
    return step


def _told(sample: Sample) -> str:
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in sample.phases.items())
    return f"{sample.training_again:.1f} s ({phases}; {sample.again} steps again; load {sample.load:.1f})"


def _print_totals(samples: Mapping[str, Sequence[Sample]]) -> None:
    ours = median(sample.training_again for sample in samples[Ours.name]) if Ours.name in samples else None
    print("| side | s to a new step, median (min–max) | spotlaunch ÷ it | steps done again | load |")
    print("|---|---|---|---|---|")
    for name, found in samples.items():
        seconds = [sample.training_again for sample in found]
        ratio = f"{ours / median(seconds):.2f}" if ours and name != Ours.name else ""
        again = f"{median(sample.again for sample in found):.0f}"
        load = f"{min(s.load for s in found):.1f}–{max(s.load for s in found):.1f}"
        print(f"| {name} | {_spread(seconds)} | {ratio} | {again} | {load} |")
    print()


def _print_phases(samples: Mapping[str, Sequence[Sample]]) -> None:
    print(
        "| side | reached | s since the machine was taken, median (min–max) | of it since the last |\n|---|---|---|---|"
    )
    for name, found in samples.items():
        last = 0.0
        for phase in dict.fromkeys(phase for sample in found for phase in sample.phases):
            seconds = [sample.phases[phase] for sample in found if phase in sample.phases]
            print(f"| {name} | {phase} | {_spread(seconds)} | {median(seconds) - last:.1f} |")
            last = median(seconds)
    print(flush=True)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
