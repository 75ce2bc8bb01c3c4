"""A run as a picture shows it: where it was, what it did there, and what had been spent by when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from launcher.core.attempt import Attempt
from launcher.core.offers import Capacity
from launcher.core.state import RunState, billed, egress_usd, hours, spent_usd

Doing = Literal["setup", "training", "lost", "closing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Billed time at one place, in hours since the submit. `lost`: its steps had to be done again."""

    place: str
    capacity: Capacity
    doing: Doing
    begin_hours: float
    end_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An instant: a machine was taken, or a place refused one."""

    place: str
    kind: Literal["preempted", "refused"]
    at_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """`spend` is what had been spent (USD) at instants (hours since the submit), rising from 0."""

    title: str
    stretches: tuple[Stretch, ...]
    marks: tuple[Mark, ...]
    spend: tuple[tuple[float, Decimal], ...]
    end_hours: float
    deadline_hours: float
    cap_usd: Decimal

    @property
    def places(self) -> tuple[str, ...]:
        """In the order in which the run saw them."""
        seen = sorted([(s.begin_hours, s.place) for s in self.stretches] + [(m.at_hours, m.place) for m in self.marks])
        return tuple(dict.fromkeys(place for _, place in seen))


def timeline_of(state: RunState, now: datetime) -> Timeline:
    """Of a run up to `now`, or to its end."""
    end = state.finished_at or now
    clock = _Clock(state.submitted_at)
    stretches = [stretch for attempt in state.attempts for stretch in _stretches(attempt, end, clock)]
    return Timeline(
        title=state.run_id,
        stretches=tuple(stretches),
        marks=tuple(mark for attempt in state.attempts for mark in _marks(attempt, clock)),
        spend=_spend(state, end, clock),
        end_hours=clock.hours(end),
        deadline_hours=clock.hours(state.submitted.deadline_at),
        cap_usd=state.approved_usd,
    )


@dataclass(frozen=True, slots=True)
class _Clock:
    submitted_at: datetime

    def hours(self, at: datetime) -> float:
        return (at - self.submitted_at).total_seconds() / 3600


def _stretches(attempt: Attempt, end: datetime, clock: _Clock) -> Iterator[Stretch]:
    if attempt.started_at is None:
        return
    until = min(attempt.billed_until or end, end)
    trained_until = min(attempt.ended_at or until, until)
    training_at = min(attempt.training_at or trained_until, trained_until)
    kept_until = _kept_until(attempt, training_at, trained_until)
    bounds = (attempt.started_at, training_at, kept_until, trained_until, until)
    names: tuple[Doing, ...] = ("setup", "training", "lost", "closing")
    for doing, (begin, finish) in zip(names, pairwise(bounds), strict=True):
        if finish > begin:
            yield Stretch(
                place=attempt.placement.offer.where,
                capacity=attempt.placement.offer.capacity,
                doing=doing,
                begin_hours=clock.hours(begin),
                end_hours=clock.hours(finish),
            )


def _kept_until(attempt: Attempt, training_at: datetime, trained_until: datetime) -> datetime:
    """From then on its steps were lost: the share of those that no checkpoint kept."""
    done = attempt.step - attempt.first_step
    if attempt.is_live or attempt.outcome == "completed" or done <= 0:
        return trained_until
    kept = min(done, max(0, (attempt.committed_step or attempt.first_step) - attempt.first_step))
    return training_at + (trained_until - training_at) * (kept / done)


def _marks(attempt: Attempt, clock: _Clock) -> Iterator[Mark]:
    place = attempt.placement.offer.where
    if attempt.refused_at:
        yield Mark(place=place, kind="refused", at_hours=clock.hours(attempt.refused_at))
    taken_at = attempt.gone_at or attempt.ended_at
    if attempt.outcome in ("preempted", "lost") and taken_at:
        yield Mark(place=place, kind="preempted", at_hours=clock.hours(taken_at))


def _spend(state: RunState, end: datetime, clock: _Clock) -> tuple[tuple[float, Decimal], ...]:
    """Machines at their prices of each time, with an attempt's data at its end; at last the whole bill."""
    known = {0.0: Decimal(0)}
    spent = Decimal(0)
    for attempt in (a for a in state.attempts if a.started_at):
        for since, until, price in billed(attempt, end):
            known[clock.hours(since)] = spent
            spent += hours(until - since) * price
            known[clock.hours(until)] = spent
        spent += egress_usd(state, attempt)
    known[clock.hours(end)] = spent_usd(state, end)
    return tuple(sorted(known.items()))
