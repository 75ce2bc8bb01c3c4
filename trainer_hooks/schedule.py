"""When a save is due: pure functions over numbers. Durations in seconds."""

from __future__ import annotations

import math
from typing import Literal

Every = int | Literal["auto"]

SECONDS_BETWEEN_PREEMPTIONS = 3 * 3600.0
"""Where nobody knows better. Published traces of spot GPUs on AWS and GCP, 2022 to 2025 (the data sets of
SkyPilot's and SkyNomad's papers): machines stay up for 1 to 10 hours on average, by zone."""

FIRST_SAVE_SECONDS = 15.0
"""Of training before `auto` saves for the first time: only then is it known what a save costs."""

MIN_SECONDS = 5.0
MAX_SECONDS = 1800.0
"""A notice that does not come, or a checkpoint found damaged, costs no more than this."""

MAX_SAVING_SHARE = 0.05
"""Of the training time, however often machines are taken."""


def is_due(every: Every, *, steps: int, step_seconds: float, save_seconds: float | None) -> bool:
    """Whether `steps` steps since the last save call for the next one.

    `step_seconds` is the mean of a step, `save_seconds` what the last save took; `None`: there was none.
    """
    if steps <= 0:
        return False
    if every == "auto":
        return steps >= auto_steps(step_seconds=step_seconds, save_seconds=save_seconds)
    return steps >= every


def auto_steps(*, step_seconds: float, save_seconds: float | None) -> int:
    """The interval `auto` in whole steps, at least one."""
    seconds = FIRST_SAVE_SECONDS if save_seconds is None else interval_seconds(save_seconds)
    return max(1, math.ceil(seconds / max(step_seconds, 1e-9)))


def interval_seconds(save_seconds: float, *, seconds_between_preemptions: float = SECONDS_BETWEEN_PREEMPTIONS) -> float:
    """Training time between two saves that loses the least: τ = √(2 · save · mean time between preemptions).

    Young 1974, and the first order of Daly 2006. Held between MIN_SECONDS and MAX_SECONDS; a save so slow that
    it would take more than MAX_SAVING_SHARE of the time is made less often than that.
    """
    tau = math.sqrt(2.0 * max(save_seconds, 0.0) * seconds_between_preemptions)
    return max(min(max(tau, MIN_SECONDS), MAX_SECONDS), save_seconds * (1 / MAX_SAVING_SHARE - 1))
