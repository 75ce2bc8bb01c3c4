"""When a save is due: pure functions over numbers. Durations in seconds.

    δ   training time that one save costs: standing still, and slower steps while it is written
    D   from the safe point until that save is durable, while the training goes on
    M   between two failures that give no time to save (SECONDS_BETWEEN_PREEMPTIONS)
    τ   training time between two saves

A failure costs the steps since the newest durable safe point, τ/2 + D on average, so saving every τ loses
δ/τ + (τ/2 + D)/M of the time. D is a constant there: the least is at τ = √(2·δ·M) (Young 1974, the first order of
Daly 2006). A save that costs next to nothing would be made all the time, so τ is held between bounds.
"""

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
"""Below it, requests and manifests cost more than the steps they keep are worth."""

MAX_SECONDS = 1800.0
"""A notice that does not come, or a checkpoint found damaged, costs no more than this."""

MAX_SAVING_SHARE = 0.05
"""Of the training time that saves may cost, however often machines are taken."""

MAX_WRITING_SHARE = 0.5
"""Of the time in which a save is being written: one is in flight at most, and the disk is not only ours."""


def is_due(
    every: Every, *, steps: int, step_seconds: float, lost_seconds: float | None, durable_seconds: float | None
) -> bool:
    """Whether `steps` steps since the last save began call for the next one.

    `step_seconds` is the mean of a step, the others are what the last complete save cost; `None`: there was none.
    """
    if steps <= 0:
        return False
    if every == "auto":
        return steps >= auto_steps(
            step_seconds=step_seconds, lost_seconds=lost_seconds, durable_seconds=durable_seconds
        )
    return steps >= every


def auto_steps(*, step_seconds: float, lost_seconds: float | None, durable_seconds: float | None) -> int:
    """The interval `auto` in whole steps, at least one."""
    if lost_seconds is None or durable_seconds is None:
        seconds = FIRST_SAVE_SECONDS
    else:
        seconds = interval_seconds(lost_seconds, durable_seconds)
    return max(1, math.ceil(seconds / max(step_seconds, 1e-9)))


def interval_seconds(
    lost_seconds: float,
    durable_seconds: float,
    *,
    seconds_between_preemptions: float = SECONDS_BETWEEN_PREEMPTIONS,
) -> float:
    """Training time between two saves that loses the least: τ of this module, within its bounds.

    Not under MIN_SECONDS, not over MAX_SECONDS; and, which counts for more, so seldom that saves take no more than
    MAX_SAVING_SHARE of the training time, and that one is being written for no more than MAX_WRITING_SHARE of it.
    """
    lost, durable = max(lost_seconds, 0.0), max(durable_seconds, 0.0)
    tau = math.sqrt(2.0 * lost * seconds_between_preemptions)
    return max(
        min(max(tau, MIN_SECONDS), MAX_SECONDS),
        lost * (1 / MAX_SAVING_SHARE - 1),
        durable / MAX_WRITING_SHARE,
    )
