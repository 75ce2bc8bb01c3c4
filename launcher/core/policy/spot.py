"""What a run has learned of its places: outages, when to ask again, and how long machines live there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from launcher.core.offers import Capacity
from launcher.core.prices.options import Rules
from launcher.core.runs.state import Attempt, RunState

OUTAGE_SHARE, LONGEST_PAUSE_HOURS = 0.1, 1.0  # of an outage's age, that goes by between two asks, and the most of it
PRIOR_EVENTS = 2.0  # preemptions, that weigh as much as what a place states of itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A place without capacity, as far as is known: from one instant on, and still at another."""

    since: datetime
    seen_at: datetime
    attempt: int  # that saw it
    is_quota: bool
    refusals: int  # in a row


def outages(state: RunState) -> dict[str, Outage]:
    """By an offer's key; a place that granted a machine since is not among them."""
    known: dict[str, Outage] = {}
    for attempt in state.attempts:
        key = attempt.placement.offer.key
        if attempt.started_at is not None:
            known.pop(key, None)
        down_at = attempt.refused_at or (attempt.ended_at if is_taken(attempt) else None)
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
        retry_hours = (rules.quota_retry_seconds if outage.is_quota else rules.retry_seconds) / 3600
        known_hours = (outage.seen_at - outage.since).total_seconds() / 3600
        seconds = pause_hours(retry_hours, known_hours) * 3600 * jitter(state, outage.attempt)
        if doubling:
            seconds = max(seconds, min(seconds * 2.0 ** (outage.refusals - 1), rules.quota_retry_seconds))
        ends[key] = outage.seen_at + timedelta(seconds=seconds)
    return ends


def pause_hours(retry_hours: float, outage_hours: float) -> float:
    """Until a place is asked again: an old outage is not over within minutes, so it is asked about more seldom."""
    return max(retry_hours, min(LONGEST_PAUSE_HOURS, OUTAGE_SHARE * outage_hours))


def jitter(state: RunState, attempt: int) -> float:
    """0.8 … 1.2, from the run's id: a hundred runs that lost one zone do not come back in the same second."""
    digest = sha256(f"{state.run_id}-{attempt}".encode()).digest()
    return 0.8 + 0.4 * float(digest[0]) / 255


def learned_scale(stated: float, *, taken: int, expected: float) -> float:
    """Of hazards, after `taken` preemptions where `stated` let one expect `expected`.

    The mean of a Gamma distribution that two preemptions would have told as much as what was stated.
    """
    return stated * (PRIOR_EVENTS + taken) / (PRIOR_EVENTS + expected)


def is_taken(attempt: Attempt) -> bool:
    return attempt.outcome in ("preempted", "lost") and attempt.placement.offer.capacity is Capacity.SPOT
