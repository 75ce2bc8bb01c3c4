"""What a training's notes say: which machine finished which step, and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Step:
    at: float  # seconds since the epoch; all hosts of a lab have one clock
    number: int
    machine: str  # another one for each start of the training

    @classmethod
    def of_note(cls, name: str) -> Self:
        number, nanoseconds, machine = name.split("-")
        return cls(int(nanoseconds) / 1e9, int(number), machine)


def read_notes(names: Iterable[str]) -> list[Step]:
    """Oldest first."""
    return sorted(Step.of_note(name) for name in names)


def first_new(steps: Sequence[Step], *, before: set[str]) -> Step | None:
    """The first step that another machine than those of `before` finished and that none of them had: progress again."""
    reached = max((step.number for step in steps if step.machine in before), default=0)
    return next((step for step in steps if step.machine not in before and step.number > reached), None)


def done_again(steps: Sequence[Step], *, before: set[str]) -> int:
    """Steps that were lost and had to be done a second time."""
    old = {step.number for step in steps if step.machine in before}
    return len(old & {step.number for step in steps if step.machine not in before})
