"""What one future tells of itself where somebody wants to hear it: machines, refusals and decisions, in their order.

Instants are hours since the submit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from launcher.core.policy.decision import Action, Keep, Standing
from launcher.core.policy.market import Market, Place

Decide = Callable[[Standing, Market, float], Action]
Ending = Literal["preempted", "closed", "handed over", "left", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """One machine's life. Set up until `ready_at`, billed until `until`; it trained the rest, `lost_hours` in vain."""

    place: Place
    since: float
    ready_at: float  # behind `until`, if it never was
    until: float
    closing_hours: float  # at its end: the last save, and the release
    lost_hours: float
    ending: Ending
    usd: float  # of the machine, and of bytes on their way


@dataclass(slots=True)
class Diary:
    stays: list[Stay] = field(default_factory=list)
    refusals: list[tuple[float, Place]] = field(default_factory=list)
    decisions: list[tuple[float, Action]] = field(default_factory=list)

    def decided(self, at: float, action: Action) -> None:
        """To go on is no news."""
        if not isinstance(action, Keep):
            self.decisions.append((at, action))

    def refused(self, at: float, place: Place) -> None:
        self.refusals.append((at, place))
