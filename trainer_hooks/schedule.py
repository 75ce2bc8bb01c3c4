"""When a save is due: pure functions over numbers. Durations in seconds.

    δ   training time that one save costs: standing still, and slower steps while it is written
    D   from the safe point until that save is durable, while the training goes on
    M   between two interruptions that give no time to save: preemptions, and machines that break
    τ   training time between two saves

An interruption costs the steps since the newest durable safe point, τ/2 + D on average, so saving every τ loses about
δ/τ + (τ/2 + D)/M of the time. D is a constant there: the best τ follows from δ and M. Its first order is Young's
√(2·δ·M) (1974); Daly's series (2006) is exact to 1 % up to δ = M/2, and costs no more. A save that costs next to
nothing would be made all the time, and on a machine that hardly ever fails hardly any, so τ is held between bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
"""A notice that does not come, or a checkpoint found damaged, costs no more than this …"""

CHEAP_SAVING_SHARE = 0.01
"""… unless saves every MAX_SECONDS would cost more than this share of the training time."""

MAX_SAVING_SHARE = 0.1
"""Of the training time that saves may cost, however often machines are taken. Of a save that blocks for 5 min on spot
that lasts 5 h, Daly's interval costs 9 %, and half as many saves cost the run more."""

MAX_WRITING_SHARE = 0.5
"""Of the time in which a save is being written: one is in flight at most, and the disk is not only ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stakes:
    """How often the machines are lost, and how much may be lost with them, as whoever pays for them says."""

    seconds_between_interruptions: float = SECONDS_BETWEEN_PREEMPTIONS
    max_loss_seconds: float = math.inf  # of the machines' time, since the newest save that outlives them


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCost:
    """Of the last complete save. The three grow in this order."""

    lost_seconds: float  # of training
    durable_seconds: float  # until it was committed
    safe_seconds: float  # until it lay where it outlives the machine


def is_due(every: Every, *, steps: int, step_seconds: float, cost: SaveCost | None, stakes: Stakes) -> bool:
    """Whether `steps` steps since the last save began call for the next one.

    `step_seconds` is the mean of a step; `cost` is `None` before the first save is complete.
    """
    if steps <= 0:
        return False
    wanted = auto_steps(step_seconds=step_seconds, cost=cost, stakes=stakes) if every == "auto" else every
    return steps >= min(wanted, _covered_steps(step_seconds, cost, stakes))


def auto_steps(*, step_seconds: float, cost: SaveCost | None, stakes: Stakes) -> int:
    """The interval `auto` in whole steps, at least one."""
    seconds = FIRST_SAVE_SECONDS if cost is None else interval_seconds(cost, stakes)
    return max(1, math.ceil(seconds / max(step_seconds, 1e-9)))


def interval_seconds(cost: SaveCost, stakes: Stakes) -> float:
    """Training time between two saves that loses the least: τ of this module, within its bounds.

    Not under MIN_SECONDS, not over MAX_SECONDS unless saves are dear; and, which counts for more, so seldom that saves
    take no more than MAX_SAVING_SHARE of the training time, and that one is being written for no more than
    MAX_WRITING_SHARE of it.
    """
    lost = max(cost.lost_seconds, 0.0)
    best = _best_seconds(lost, stakes.seconds_between_interruptions)
    longest = max(MAX_SECONDS, lost * (1 / CHEAP_SAVING_SHARE - 1))
    return max(min(best, longest), _shortest_seconds(cost.lost_seconds, cost.durable_seconds))


def least_loss_seconds(*, step_seconds: float, cost: SaveCost) -> float:
    """Of the machines' time, that an interruption may cost however often is saved: no `max_loss` can be below it."""
    return max(step_seconds, _shortest_seconds(cost.lost_seconds, cost.safe_seconds)) + cost.safe_seconds


def _best_seconds(lost: float, between: float) -> float:
    """Daly's series; `launcher/core/estimates/daly.py` has the form that it is the optimum of."""
    if lost <= 0.0:
        return 0.0
    if lost >= 2 * between or math.isinf(between):
        return between
    ratio = lost / (2 * between)
    return 2 * between * math.sqrt(ratio) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - lost


def _shortest_seconds(lost: float, written: float) -> float:
    return max(MIN_SECONDS, lost * (1 / MAX_SAVING_SHARE - 1), written / MAX_WRITING_SHARE)


def _covered_steps(step_seconds: float, cost: SaveCost | None, stakes: Stakes) -> float:
    """Whole steps whose loss is within `max_loss`, but no fewer than the bounds of `interval_seconds` allow."""
    if math.isinf(stakes.max_loss_seconds):
        return math.inf
    step, safe = max(step_seconds, 1e-9), cost.safe_seconds if cost else 0.0
    shortest = _shortest_seconds(cost.lost_seconds, safe) if cost else MIN_SECONDS
    return max(1, math.floor((stakes.max_loss_seconds - safe) / step), math.ceil(shortest / step))
