"""A run, or one possible future of it, as a picture shows it: where it was, what it did there, what it had spent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from launcher.core.estimates.rollout import Future
from launcher.core.offers import Capacity, Offer
from launcher.core.policy.diary import Diary, Stay
from launcher.core.runs.attempt import Attempt
from launcher.core.runs.state import RunState, billed, egress_usd, hours, spent_usd

CENT = Decimal("0.01")
_BLINK_HOURS = 1 / 600  # a shorter time without a machine is not a wait

Doing = Literal["setup", "training", "lost", "closing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Billed time at one place, in hours since the submit. `lost`: its steps had to be done again."""

    machine: int  # 1, 2, 3 …: a run may have two at a time
    place: str
    capacity: Capacity
    doing: Doing
    begin_hours: float
    end_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An instant: a machine was taken, or a place refused one, or this machine gave its turn to another one."""

    machine: int | None  # None: a place refused one
    place: str
    kind: Literal["preempted", "refused", "handed over"]
    at_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """`spend` is what had been spent (USD) at instants (hours since the submit), rising from 0."""

    title: str
    stretches: tuple[Stretch, ...]
    marks: tuple[Mark, ...]
    spend: tuple[tuple[float, Decimal], ...]
    end_hours: float
    deadline_hours: float  # infinite where there is none

    @property
    def total_usd(self) -> Decimal:
        return self.spend[-1][1]

    @property
    def waits(self) -> tuple[tuple[float, float], ...]:
        """When there was no machine."""
        found, free_at = [], 0.0
        for stretch in sorted(self.stretches, key=lambda s: s.begin_hours):
            if stretch.begin_hours > free_at + _BLINK_HOURS:
                found.append((free_at, stretch.begin_hours))
            free_at = max(free_at, stretch.end_hours)
        return tuple(found)

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
    )


def timeline_of_future(title: str, future: Future, diary: Diary, *, deadline_hours: float) -> Timeline:
    """Of a future up to its end; one that has none is shown up to the end of its last machine."""
    stays = sorted(diary.stays, key=lambda stay: stay.since)
    end = future.hours if future.hours < math.inf else max((stay.until for stay in stays), default=0.0)
    return Timeline(
        title=title,
        stretches=tuple(s for n, stay in enumerate(stays, start=1) for s in _stretches_of(stay, n)),
        marks=tuple(sorted(_marks_of(stays, diary), key=lambda mark: mark.at_hours)),
        spend=_spend_of(stays, end, future.total_usd),
        end_hours=end,
        deadline_hours=deadline_hours,
    )


def _stretches_of(stay: Stay, number: int) -> Iterator[Stretch]:
    trained_until = stay.until - stay.closing_hours
    training_at = min(stay.ready_at, trained_until)
    kept_until = max(training_at, trained_until - stay.lost_hours)
    offer = stay.place.option.placement.offer
    yield from _named((stay.since, training_at, kept_until, trained_until, stay.until), number, offer)


def _marks_of(stays: Sequence[Stay], diary: Diary) -> Iterator[Mark]:
    for number, stay in enumerate(stays, start=1):
        if stay.ending in ("preempted", "handed over"):
            at = stay.until - stay.closing_hours
            kind: Literal["preempted", "handed over"] = "preempted" if stay.ending == "preempted" else "handed over"
            yield Mark(machine=number, place=stay.place.option.placement.offer.where, kind=kind, at_hours=at)
    for at, place in diary.refusals:
        yield Mark(machine=None, place=place.option.placement.offer.where, kind="refused", at_hours=at)


def _spend_of(stays: Sequence[Stay], end: float, total_usd: float) -> tuple[tuple[float, Decimal], ...]:
    """Each machine's dollars evenly over its time; what is paid by the hour of the whole run, evenly over that."""
    rest = total_usd - sum(stay.usd for stay in stays)
    known = {}
    for at in sorted({0.0, end, *(x for stay in stays for x in (stay.since, stay.until))}):
        usd = sum(stay.usd * min(1.0, max(0.0, at - stay.since) / max(stay.until - stay.since, 1e-9)) for stay in stays)
        known[at] = Decimal(str(usd + rest * at / max(end, 1e-9))).quantize(CENT)
    return tuple(known.items())


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
    yield from _named([clock.hours(at) for at in bounds], attempt.number, attempt.placement.offer)


def _named(bounds: Sequence[float], machine: int, offer: Offer) -> Iterator[Stretch]:
    """What is done between each two of five instants."""
    names: tuple[Doing, ...] = ("setup", "training", "lost", "closing")
    for doing, (begin, finish) in zip(names, pairwise(bounds), strict=True):
        if finish > begin:
            yield Stretch(
                machine=machine,
                place=offer.where,
                capacity=offer.capacity,
                doing=doing,
                begin_hours=begin,
                end_hours=finish,
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
        yield Mark(machine=None, place=place, kind="refused", at_hours=clock.hours(attempt.refused_at))
    ended_at = attempt.gone_at or attempt.ended_at
    if attempt.outcome in ("preempted", "lost") and ended_at:
        yield Mark(machine=attempt.number, place=place, kind="preempted", at_hours=clock.hours(ended_at))
    elif attempt.end_cause == "handed_over" and ended_at:
        yield Mark(machine=attempt.number, place=place, kind="handed over", at_hours=clock.hours(ended_at))


def _spend(state: RunState, end: datetime, clock: _Clock) -> tuple[tuple[float, Decimal], ...]:
    """Machines at their prices of each time, with an attempt's data behind its end; at last the whole bill."""
    started = [a for a in state.attempts if a.started_at]
    segments = [segment for attempt in started for segment in billed(attempt, end)]
    instants = sorted({at for since, until, _ in segments for at in (since, until)})
    carried = [(until, egress_usd(state, a)) for a in started if (until := min(a.billed_until or end, end))]
    known = {0.0: Decimal(0)}
    spent = Decimal(0)
    for before, at in pairwise([state.submitted_at, *instants]):
        burn = sum((price for since, until, price in segments if since < at and before < until), Decimal(0))
        spent += hours(at - before) * burn
        known[clock.hours(at)] = spent + sum((usd for until, usd in carried if until < at), Decimal(0))
    known[clock.hours(end)] = spent_usd(state, end)
    return tuple(sorted(known.items()))
