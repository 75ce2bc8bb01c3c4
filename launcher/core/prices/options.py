"""Where a run may go, how long its supervisor waits for what, and the arithmetic of time between the two."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Literal

from launcher.core.offers import Capacity, Placement
from launcher.core.prices.traffic import Traffic, usd_per_gb


@dataclass(frozen=True, kw_only=True)
class Option:
    """A placement that the run may go to, and what an hour there is good for.

    Every decision asks all options for what follows from their fields, so that is worked out once.
    """

    placement: Placement
    step_seconds: float
    setup_seconds: float
    save_seconds: float  # of training that one save costs
    durable_seconds: float  # until it is committed: what is waited for at an attempt's end
    preemptions_per_hour: float  # of a fresh machine; 0 for capacity that stays
    interval_seconds: float = math.inf  # of training between two saves
    traffic: Traffic = field(default_factory=Traffic)
    move_from: str | None = None  # the home from which the newest checkpoint would be taken there
    move_usd: Decimal = Decimal(0)

    @property
    def capacity(self) -> Capacity:
        return self.placement.offer.capacity

    @property
    def saving_share(self) -> float:
        """Of the training time, that saves cost on top."""
        return self.save_seconds / self.interval_seconds

    @property
    def egress_usd_per_read(self) -> Decimal:
        return self.traffic.read.egress_usd

    @cached_property
    def effective_usd_per_step(self) -> float:
        """Price of a step, with one hour's saves and expected restarts and data reads added to that hour.

        The move there is spread over the expected life of the machine, as a restart is.
        """
        hourly = float(self.placement.usd_per_hour)
        restart = hourly * self.setup_seconds / 3600 + float(self.arrival_usd)
        saves = float(self.traffic.saves_usd_per_hour)
        return (hourly + saves + restart * self.preemptions_per_hour) * self.step_seconds / 3600

    @cached_property
    def arrival_usd(self) -> Decimal:
        """What a start there costs beside the machine."""
        return self.egress_usd_per_read + self.traffic.read.requests_usd + self.traffic.restore.usd + self.move_usd

    @property
    def move_usd_per_gb(self) -> Decimal:
        return usd_per_gb(self.move_usd, self.traffic.checkpoint_gb)

    def seconds_to_finish(self, steps: int) -> float:
        """Set-up, steps with their saves, and a last one; as many of the first and the last as the lease demands."""
        work = steps * self.step_seconds * (1.0 + self.saving_share)
        around = self.setup_seconds + self.durable_seconds
        lease = self.placement.offer.lease_seconds
        if lease is None:
            return around + work
        return work + max(1, math.ceil(work / (lease - around))) * around if lease > around else math.inf

    def is_open(self, now: datetime, rules: Rules) -> bool:
        """Whether an attempt that begins now could do useful work before the place closes."""
        offer = self.placement.offer
        is_early = offer.opens_at is not None and now < offer.opens_at
        return not is_early and offer.usable_seconds(now) >= useful_seconds(self, rules)

    def spare_seconds(self, steps: int, *, deadline_at: datetime, now: datetime, rules: Rules) -> float | None:
        """Until the last moment to begin `steps` there; `None`: they cannot be left to this place.

        Spot may be taken, a reservation may end too early, and one that begins later than that moment comes too late.
        """
        offer, needed = self.placement.offer, self.seconds_to_finish(steps)
        closes_at = offer.closes_at or datetime.max.replace(tzinfo=UTC)
        if self.capacity is Capacity.SPOT or math.isinf(needed) or (closes_at - now).total_seconds() < needed:
            return None
        spare = (min(deadline_at, closes_at) - now).total_seconds() - needed
        if offer.opens_at is None or offer.opens_at <= now:
            return spare
        opens_in = (offer.opens_at - now).total_seconds()
        return spare if spare >= opens_in + changeover_seconds(rules) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Waiting times and limits of the supervisor, in the run's own time."""

    poll_seconds: float = 10.0
    release_seconds: float = 30.0  # from the decision until nothing is billed
    grace_seconds: float = 300.0  # for a step and a save, after a trainer was asked to end
    silence_seconds: float = 600.0  # a trainer that once spoke and is silent for so long is lost
    cut_off_seconds: float = 120.0  # the same after a notice, or where its machine does not answer
    start_seconds: float = 3600.0  # a granted machine that does not come up, or whose set-up does not end, is lost
    launch_seconds: float = 1200.0  # a launch that shows no machine for so long is refused
    retry_seconds: float = 900.0  # until a place that had no capacity is asked again
    quota_retry_seconds: float = 6 * 3600.0
    fallback_delay_seconds: float = 3600.0  # until fallback capacity runs, at the worst
    max_fruitless_attempts: int = 6  # in a row, ended without a new step
    rank_reserved_by: Literal["amortised", "marginal"] = "amortised"  # what leaving reserved capacity saves


def closing_seconds(rules: Rules, save_seconds: float, step_seconds: float) -> float:
    """What must still be affordable at every look: until the next one, a step, a save, the look that finds it done
    and the release."""
    return rules.poll_seconds + step_seconds + save_seconds + rules.poll_seconds + rules.release_seconds


def changeover_seconds(rules: Rules) -> float:
    """Slack that is gone when the fallback runs: the poll that finds it due, the release, the fallback's start."""
    return rules.poll_seconds + rules.release_seconds + rules.fallback_delay_seconds


def useful_seconds(option: Option, rules: Rules) -> float:
    """A start, one step, one save and the release: below that a launch only burns money and time."""
    return option.setup_seconds + closing_seconds(rules, option.durable_seconds, option.step_seconds)


def least_usd(option: Option, rules: Rules) -> Decimal:
    """What so short an attempt costs."""
    seconds = Decimal(str(useful_seconds(option, rules)))
    return option.placement.usd_per_hour * seconds / 3600 + option.arrival_usd + option.traffic.save.usd
