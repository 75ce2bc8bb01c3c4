"""Which checkpoints stay: the last ones, one in every so many steps, and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

BestMode = Literal["min", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """`keep`: the last so many. `every_steps`: besides, the first at or after each multiple, of the latest attempt that
    has one before the next multiple: an older one may have been left behind. `best`: by that metric.

    Raises: ValueError: a number is too small, or the mode is unknown.
    """

    keep: int = 2
    every_steps: int | None = None
    best: str | None = None
    best_mode: BestMode = "min"
    best_keep: int = 1

    def __post_init__(self) -> None:
        if self.keep < 2:
            raise ValueError(f"keep is {self.keep}; give 2 or more: if the last checkpoint is damaged, one is left")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps is {self.every_steps}; give 1 or more, or leave it out")
        if self.best_keep < 1:
            raise ValueError(f"best_keep is {self.best_keep}; give 1 or more")
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"best_mode is {self.best_mode!r}; give min or max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    name: str
    step: int
    attempt: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def kept(candidates: Sequence[Candidate], retention: Retention) -> set[str]:
    """Names of the checkpoints that stay.

    The choice is stable: what it drops would not be chosen later, so pruning after every save or once gives the same.
    """
    ordered = sorted(candidates, key=_age)
    chosen = ordered[-retention.keep :] + _spaced(ordered, retention) + _best(ordered, retention)
    return {one.name for one in chosen}


def _age(candidate: Candidate) -> tuple[int, int]:
    """A later attempt is newer whatever its step: it went on from where an older one was left."""
    return candidate.attempt, candidate.step


def _spaced(ordered: Sequence[Candidate], retention: Retention) -> list[Candidate]:
    every = retention.every_steps
    if every is None:
        return []
    first: dict[int, Candidate] = {}
    for one in sorted(ordered, key=lambda one: (-one.attempt, one.step)):
        if one.step >= every:  # step 0 is no milestone
            first.setdefault(one.step // every, one)
    return list(first.values())


def _best(ordered: Sequence[Candidate], retention: Retention) -> list[Candidate]:
    """Of equals, the newest. A checkpoint without the metric, or whose metric is no number, is never the best."""
    metric = retention.best
    if metric is None:
        return []
    sign = 1 if retention.best_mode == "max" else -1
    measured = [one for one in ordered if not math.isnan(one.metrics.get(metric, math.nan))]
    return sorted(measured, key=lambda one: (sign * one.metrics[metric], *_age(one)))[-retention.best_keep :]
