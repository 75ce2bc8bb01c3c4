"""What runs saw of spot places, as their ledger tells it.

up      while a machine lived there
down    from a refusal or a preemption until the place granted a machine again; if it never did, at that instant
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from launcher.core.estimates.weather import Habits
from launcher.core.hazards import (
    FRESH_PREEMPTIONS_PER_HOUR,
    LIFE_HAZARD,
    RETURN_HAZARD,
    cumulated,
    fresh_preemptions_per_hour,
)
from launcher.core.offers import Capacity
from launcher.core.policy.spot import is_taken
from launcher.core.runs.attempt import Attempt
from launcher.core.runs.state import RunState

LATELY = timedelta(days=14)
_STILL_HOURS = 0.5  # behind the last sight, in which a place is taken to be as it was


class Known(NamedTuple):
    """A time in which a place's state is known, in hours since some epoch."""

    since: float
    until: float
    is_up: bool


class Past(NamedTuple):
    """What is known of a place: in order of time, without overlap."""

    spells: tuple[Known, ...]
    scale: float  # of its hazards, as stated

    @property
    def hours(self) -> float:
        return sum(spell.until - spell.since for spell in self.spells)


def seen(attempts: Iterable[Attempt], *, since: datetime, now: datetime) -> dict[str, Past]:
    """By key, of the spot offers that were asked for; hours count from `since`."""
    by_key: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        offer = attempt.placement.offer
        if offer.capacity is Capacity.SPOT and (attempt.started_at or attempt.refused_at):
            by_key.setdefault(offer.key, []).append(attempt)
    return {key: Past(_known(of, since, now), _scale(of[0])) for key, of in by_key.items()}


def lately(states: Iterable[RunState], now: datetime) -> Mapping[str, Habits]:
    """By key, what all real runs together saw of their places; a simulated market is another one each time."""
    since = now - LATELY
    real = [attempt for state in states if not state.submitted.simulated for attempt in state.attempts]
    found = seen([a for a in real if _ended(a, now) > since], since=since, now=now)
    return {key: habits_of(past, _hours(now, since)) for key, past in found.items()}


def habits_of(past: Past, now: float) -> Habits:
    """What a past teaches; how the place stands only if it was seen just now."""
    last, ups = past.spells[-1], [spell for spell in past.spells if spell.is_up]
    downs = [spell for spell in past.spells if not spell.is_up]
    is_fresh = now - last.until <= _STILL_HOURS
    return Habits(
        is_up=last.is_up if is_fresh else None,
        age_hours=now - last.since if is_fresh else 0.0,
        lost=(_ends(past.spells, is_up=True), sum(cumulated(LIFE_HAZARD, s.until - s.since) for s in ups)),
        found=(_ends(past.spells, is_up=False), sum(cumulated(RETURN_HAZARD, s.until - s.since) for s in downs)),
    )


def _ends(spells: Sequence[Known], *, is_up: bool) -> int:
    """Spells that were seen to end: the next one begins with their last instant."""
    return sum(a.is_up is is_up and b.is_up is not is_up and a.until == b.since for a, b in pairwise(spells))


def _known(attempts: Sequence[Attempt], since: datetime, now: datetime) -> tuple[Known, ...]:
    spells: list[Known] = []
    down_since: float | None = None
    for attempt in sorted(attempts, key=lambda a: a.requested_at):
        if attempt.refused_at:
            at = _hours(attempt.refused_at, since)
            spells += [Known(at if down_since is None else down_since, at, is_up=False)]
            down_since = at if down_since is None else down_since
            continue
        began = _hours(min(_began(attempt), attempt.requested_at), since)  # it had capacity when it was asked
        ended = _hours(_ended(attempt, now), since)
        if down_since is not None:
            spells.append(Known(down_since, began, is_up=False))
        spells.append(Known(began, ended, is_up=True))
        down_since = ended if is_taken(attempt) else None
    if down_since is not None:
        spells.append(Known(down_since, max(down_since, spells[-1].until), is_up=False))
    return tuple(_without_overlap(spells))


def _without_overlap(spells: Sequence[Known]) -> list[Known]:
    """Refusals in a row name the same outage, each a longer piece of it."""
    found: list[Known] = []
    for spell in spells:
        if found and found[-1].is_up is spell.is_up and spell.since <= found[-1].until:
            spell = Known(found[-1].since, max(found[-1].until, spell.until), spell.is_up)  # noqa: PLW2901
            found.pop()
        found.append(spell)
    return found


def _scale(attempt: Attempt) -> float:
    return fresh_preemptions_per_hour(attempt.placement.offer) / FRESH_PREEMPTIONS_PER_HOUR


def _began(attempt: Attempt) -> datetime:
    assert attempt.started_at is not None
    return attempt.started_at


def _ended(attempt: Attempt, now: datetime) -> datetime:
    return attempt.gone_at or attempt.ended_at or attempt.refused_at or now


def _hours(at: datetime, since: datetime) -> float:
    return (at - since).total_seconds() / 3600
