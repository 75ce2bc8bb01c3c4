"""A run at one instant, as decisions see it: what is left to do and to spend, and where that could be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cached_property

from launcher.core.prices.options import Option, Rules, closing_seconds, least_usd
from launcher.core.runs.state import Attempt, RunState, egress_usd, spent_usd, trainer_usd_per_hour


@dataclass(frozen=True, kw_only=True)
class View:
    """What follows from the four fields is worked out once."""

    state: RunState
    options: Sequence[Option]
    now: datetime
    rules: Rules

    @property
    def hours(self) -> float:
        """Since the submit."""
        return (self.now - self.state.submitted_at).total_seconds() / 3600

    @cached_property
    def wanted(self) -> list[Option]:
        """Of the capacity that the spec names."""
        return [o for o in self.options if o.capacity in self.state.spec.mode]

    @cached_property
    def left_usd(self) -> Decimal:
        return self.state.approved_usd - spent_usd(self.state, self.now)

    @cached_property
    def affordable(self) -> list[Option]:
        return [o for o in self.wanted if self.left_usd > least_usd(o, self.rules)]

    @cached_property
    def slack_seconds(self) -> float:
        """Time that can be wasted before only an immediate fallback meets the deadline.

        Counts from the last commit: what is not committed may be lost. Infinite where there is no fallback that what
        is left can still start.
        """
        return max((spare for o in self.affordable if (spare := self.spare_seconds(o)) is not None), default=math.inf)

    def spare_seconds(self, option: Option) -> float | None:
        steps, deadline_at = self.steps_from(self.state.committed_step), self.state.submitted.deadline_at
        return option.spare_seconds(steps, deadline_at=deadline_at, now=self.now, rules=self.rules)

    def steps_from(self, step: int) -> int:
        return max(0, self.state.spec.workload.steps - step)

    def here(self, live: Attempt) -> Option | None:
        """Where the attempt is, as it would be found now."""
        return next((o for o in self.wanted if o.placement.offer.key == live.placement.offer.key), None)

    def closing_seconds(self, live: Attempt) -> float:
        save_seconds = self.state.submitted.pace.closing_save_seconds
        return closing_seconds(self.rules, save_seconds, live.step_seconds or 0.0)

    @property
    def saved_gb(self) -> Decimal:
        """Of one checkpoint."""
        newest, pace = self.state.checkpoint, self.state.submitted.pace
        return Decimal(str(newest.bytes / 1e9 if newest else pace.checkpoint_gb))

    def ahead_usd(self, live: Attempt, seconds: float) -> Decimal:
        """What `seconds` more cost, with the data read since the trainer was last heard of and a last save's way home.

        A machine that waits beside it is not among them.
        """
        state = self.state
        machine = trainer_usd_per_hour(state) * Decimal(str(seconds)) / 3600 + live.save_usd_per_gb * self.saved_gb
        pace = live.step_seconds or state.submitted.pace.step_seconds.get(live.placement.offer.gpu)
        if live.heard_at is None or not pace:
            return machine
        unheard = (self.now - live.heard_at).total_seconds() + seconds
        then = replace(live, step=live.step + math.ceil(unheard / pace))
        return machine + egress_usd(state, then) - egress_usd(state, live)
