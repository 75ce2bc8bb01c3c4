"""What a run has learned of its places, and the two gambles on spot: to wait for it, and to go back to it.

Whether a place has capacity is known only from asking, and a run holds one machine at a time: to ask, it gives up the
one it has. Refused, it has lost a closing save and a start, `c` dollars; granted, it saves `g` dollars an hour. An
outage that ends at the rate `h` is asked about every √(2c / (g·h)) hours, as one saves every √(2·cost / hazard) hours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256

from launcher.core.hazards import (
    AVAILABLE,
    FRESH_PREEMPTIONS_PER_HOUR,
    LIFE_HAZARD,
    RETURN_HAZARD,
    cumulated,
    hazard_at,
    lived_hours,
)
from launcher.core.offers import Capacity
from launcher.core.options import Option, Rules, closing_seconds
from launcher.core.state import Attempt, RunState

PRIOR_EVENTS = 2.0  # preemptions, that weigh as much as what a place states of itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A place without capacity, as far as is known: from one instant on, and still at another."""

    since: datetime
    seen_at: datetime
    attempt: int  # that saw it
    is_quota: bool
    refusals: int  # in a row

    def hours(self, now: datetime) -> float:
        return (now - self.since).total_seconds() / 3600

    def unseen_hours(self, now: datetime) -> float:
        return (now - self.seen_at).total_seconds() / 3600

    def chance(self, now: datetime) -> float:
        """That there is capacity again: it comes back at `RETURN_HAZARD`, and does not stay for ever."""
        mass = cumulated(RETURN_HAZARD, self.hours(now)) - cumulated(RETURN_HAZARD, self.hours(self.seen_at))
        return AVAILABLE * -math.expm1(-mass / AVAILABLE)


def outages(state: RunState) -> dict[str, Outage]:
    """By an offer's key; a place that granted a machine since is not among them."""
    known: dict[str, Outage] = {}
    for attempt in state.attempts:
        key = attempt.placement.offer.key
        if attempt.started_at is not None:
            known.pop(key, None)
        down_at = attempt.refused_at or (attempt.ended_at if _is_taken(attempt) else None)
        if down_at is not None:
            before = known.get(key)
            since, refusals = (before.since, before.refusals) if before else (down_at, 0)
            known[key] = Outage(
                since=since,
                seen_at=down_at,
                attempt=attempt.number,
                is_quota=attempt.refused.startswith("quota"),
                refusals=refusals + 1,
            )
    return known


def blocks(state: RunState, rules: Rules, *, doubling: bool = False) -> dict[str, datetime]:
    """Places that refused or were taken away lately, and when to ask again; twice as late each time, if `doubling`."""
    ends = {}
    for key, outage in outages(state).items():
        pause = rules.quota_retry_seconds if outage.is_quota else rules.retry_seconds
        seconds = pause * jitter(state, outage.attempt)
        if doubling:
            seconds = max(seconds, min(seconds * 2.0 ** (outage.refusals - 1), rules.quota_retry_seconds))
        ends[key] = outage.seen_at + timedelta(seconds=seconds)
    return ends


def jitter(state: RunState, attempt: int) -> float:
    """0.8 … 1.2, from the run's id: a hundred runs that lost one zone do not come back in the same second."""
    digest = sha256(f"{state.run_id}-{attempt}".encode()).digest()
    return 0.8 + 0.4 * float(digest[0]) / 255


def worth_waiting(state: RunState, options: Sequence[Option], slack: float, now: datetime) -> bool:
    """Most outages are short: wait while the slack is large against the work left and the outage young.

    The threshold S ≥ p·(0.08 + 0.12·(1 − e^−a))·√(d / 0.1 h) (p hours of work, a outage's age, d changeover) was
    fitted on the 2022 AWS spot availability traces of Wu et al., "Can't Be Late", NSDI 2024.
    """
    spot = [o for o in options if o.capacity is Capacity.SPOT]
    if not spot:
        return False
    steps = state.spec.workload.steps - state.committed_step
    work_hours = min(o.step_seconds for o in spot) * steps / 3600
    changeover_hours = max(min(o.setup_seconds for o in spot), 60.0) / 3600
    known = outages(state)
    age_hours = max((known[key].hours(now) for o in spot if (key := o.placement.offer.key) in known), default=0.0)
    threshold = work_hours * (0.08 + 0.12 * (1 - math.exp(-age_hours))) * math.sqrt(changeover_hours / 0.1)
    return slack >= threshold * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What may be expected of giving up `here`, capacity that stays, to ask for spot `there`.

    Of what spot saves only the first life of its machine counts, and that another start on the fallback may follow.
    """

    here: Option
    there: Option
    outage: Outage | None
    closing_usd: float  # for the last save there, and the release
    failed_usd: float  # lost if the place refuses: that, and a start on the fallback
    usd_per_hour: float  # saved while spot trains
    expected_usd: float  # saved, all in all

    def is_worth_it(self, now: datetime) -> bool:
        """More is to be won than risked, and the place was not asked too short a time ago."""
        if self.usd_per_hour <= 0 or self.expected_usd <= self.failed_usd:
            return False
        if self.outage is None:
            return True
        pace = self.usd_per_hour * hazard_at(RETURN_HAZARD, self.outage.hours(now))
        return self.outage.unseen_hours(now) >= math.sqrt(2 * self.failed_usd / pace)

    @property
    def risked_usd(self) -> Decimal:
        """Billed at the worst: the closing save, and both starts without a step in between."""
        starts = sum(
            o.placement.usd_per_hour * Decimal(str(o.setup_seconds)) / 3600 + o.arrival_usd
            for o in (self.here, self.there)
        )
        return starts + Decimal(str(self.closing_usd))


def return_to(state: RunState, here: Option, there: Option, *, steps: int, now: datetime, rules: Rules) -> Return:
    """What to expect of asking for spot `there` with `steps` left to do."""
    old, new = _usd_per_hour(here, rules), _usd_per_hour(there, rules)
    outage = outages(state).get(there.placement.offer.key)
    chance = AVAILABLE if outage is None else outage.chance(now)
    setup_hours, work_hours = there.setup_seconds / 3600, steps * there.step_seconds / 3600
    scale = _hazard_scale(state, there, now)
    life_hours = lived_hours(LIFE_HAZARD, scale, setup_hours + work_hours)
    taken = -math.expm1(-scale * cumulated(LIFE_HAZARD, setup_hours + work_hours))
    saved = old * here.step_seconds / there.step_seconds - new
    start = old * here.setup_seconds / 3600 + float(here.arrival_usd)
    closing = old * closing_seconds(rules, here.durable_seconds, here.step_seconds) / 3600
    arrival = new * setup_hours + float(there.arrival_usd)
    granted = saved * max(0.0, life_hours - setup_hours) - arrival - taken * start
    return Return(
        here=here,
        there=there,
        outage=outage,
        closing_usd=closing,
        failed_usd=closing + start,
        usd_per_hour=saved,
        expected_usd=chance * granted - (1 - chance) * start - closing,
    )


def _usd_per_hour(option: Option, rules: Rules) -> float:
    placement = option.placement
    is_sunk = option.capacity is Capacity.RESERVED and rules.rank_reserved_by == "marginal"
    machine = placement.marginal_usd_per_hour if is_sunk else placement.usd_per_hour
    return float(machine + option.traffic.saves_usd_per_hour)


def _hazard_scale(state: RunState, option: Option, now: datetime) -> float:
    """Of the place's own machines against `LIFE_HAZARD`: what was stated counts as much as one preemption seen."""
    stated = option.preemptions_per_hour / FRESH_PREEMPTIONS_PER_HOUR
    lives = [a for a in state.attempts if a.placement.offer.key == option.placement.offer.key and a.started_at]
    expected = sum(stated * cumulated(LIFE_HAZARD, _hours(a, now)) for a in lives)
    return stated * (1 + sum(_is_taken(a) for a in lives)) / (1 + expected)


def learned_scale(stated: float, *, taken: int, expected: float) -> float:
    """Of hazards, after `taken` preemptions where `stated` let one expect `expected`.

    The mean of a Gamma distribution that two preemptions would have told as much as what was stated.
    """
    return stated * (PRIOR_EVENTS + taken) / (PRIOR_EVENTS + expected)


def _hours(attempt: Attempt, now: datetime) -> float:
    assert attempt.started_at is not None
    return ((attempt.gone_at or attempt.ended_at or now) - attempt.started_at).total_seconds() / 3600


def _is_taken(attempt: Attempt) -> bool:
    return attempt.outcome in ("preempted", "lost") and attempt.placement.offer.capacity is Capacity.SPOT
