"""What earlier runs of the same name showed: the best source for the next estimate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from statistics import median

from launcher.core.estimates.workload import History, Measured
from launcher.core.runs.state import RunState
from launcher.core.spec import RunSpec

NEWEST_RUNS = 5  # older ones may be of older code
_FEWEST_STEPS = 5  # an attempt that did fewer says little about the pace


def measured(spec: RunSpec, states: Iterable[RunState]) -> Measured:
    """Step, set-up and save times of the newest runs of this workload in the same kind of time, real or simulated."""
    scale = spec.market.time_scale if spec.market else 1.0
    like = [s for s in states if s.spec.name == spec.name and s.submitted.time_scale == scale]
    used = [s for s in sorted(like, key=_submitted_at, reverse=True) if any(_pace(s))][:NEWEST_RUNS]
    attempts = [a for s in used for a in s.attempts]
    saved = [a for a in attempts if a.num_saves]
    checkpoints = [s.checkpoint.bytes for s in used if s.checkpoint]
    return Measured(
        history=_histories(used),
        setup_seconds=_middle([seconds for a in attempts if (seconds := a.setup_seconds) is not None]),
        save_seconds=_middle([a.save_seconds / a.num_saves for a in saved]),
        durable_seconds=_middle([a.durable_seconds / a.num_durable for a in saved if a.num_durable]),
        checkpoint_gb=max(checkpoints, default=0) / 1e9 if checkpoints else None,
        num_runs=len(used),
    )


def _submitted_at(state: RunState) -> datetime:
    return state.submitted_at


def _pace(state: RunState) -> Iterator[tuple[str, int, float, int]]:
    """`(GPU type, number of GPUs, step seconds, steps)` of the attempts that did enough steps."""
    for attempt in state.attempts:
        steps = attempt.step - attempt.first_step
        if attempt.step_seconds and steps >= _FEWEST_STEPS:
            placement = attempt.placement
            yield placement.offer.gpu, placement.num_gpus, attempt.step_seconds, steps


def _histories(states: Iterable[RunState]) -> tuple[History, ...]:
    """One sample a run and placement: the mean of its attempts, weighted by their steps."""
    samples: dict[tuple[str, int], list[float]] = defaultdict(list)
    for state in states:
        sums: dict[tuple[str, int], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for gpu, num_gpus, seconds, steps in _pace(state):
            total, count = sums[gpu, num_gpus]
            sums[gpu, num_gpus] = (total + seconds * steps, count + steps)
        for place, (total, count) in sums.items():
            samples[place].append(total / count)
    return tuple(
        History(gpu=gpu, num_gpus=num_gpus, step_seconds=tuple(seconds)) for (gpu, num_gpus), seconds in samples.items()
    )


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None
