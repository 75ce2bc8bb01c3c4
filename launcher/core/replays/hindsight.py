"""The weather that a run has had: what its ledger knows of its places, and drawn where nobody knows.

Where knowledge ends, a place stays as it was for as long as the hazards by age let it, and then comes and goes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from zlib import crc32

from launcher.core.estimates.sightings import Known, Past, seen
from launcher.core.estimates.weather import Drawn, Record, Recorded, Weather
from launcher.core.hazards import (
    AVAILABLE,
    LIFE_HAZARD,
    RETURN_HAZARD,
    SPELL_HAZARD,
    Hazards,
    age_at,
    cumulated,
)
from launcher.core.offers import Capacity
from launcher.core.policy.spot import is_taken
from launcher.core.replays.prospect import Prospect
from launcher.core.replays.replay import Actual, Decision, Question, Replay, Sky, answer
from launcher.core.replays.timeline import timeline_of
from launcher.core.runs.state import RunState, spent_usd

HORIZON = 4.0  # times the deadline: as far as weather is drawn; then it begins again


def of_run(question: Question, state: RunState, prospect: Prospect, *, now: datetime) -> Replay:
    """Of a run as it stood at its submit, beside what it did cost."""
    known = seen(state.attempts, since=state.submitted_at, now=now)
    skies = known_skies(
        known,
        count=question.count,
        seed=question.seed,
        factor=step_factor(state),
        horizon_hours=HORIZON * prospect.market.deadline,
    )
    hours = sum(past.hours for past in known.values())
    return answer(
        question,
        prospect,
        skies=skies,
        weather=f"{hours:.1f} place-hours known from its ledger, else drawn, seed {question.seed}",
        prices="of its attempts where it has been, elsewhere of today's price book",
        actual=actual_of(state, now),
    )


def known_skies(known: Mapping[str, Past], *, count: int, seed: int, factor: float, horizon_hours: float) -> list[Sky]:
    """As many fills of what is not known; places that the run never asked for are drawn from end to end."""
    source = random.Random(seed)  # noqa: S311  # a simulation, not a secret
    seeds = [source.getrandbits(32) for _ in range(count)]
    return [Sky(weather=_filled(known, fill, horizon_hours), factor=factor) for fill in seeds]


def step_factor(state: RunState) -> float:
    """Measured seconds a step to the promised ones, weighted by steps; 1 where none were measured."""
    promised = state.submitted.pace.step_seconds
    done = [
        (a.step - a.first_step, a.step_seconds / promised[gpu])
        for a in state.attempts
        if a.step_seconds and a.step > a.first_step and (gpu := a.placement.offer.gpu) in promised
    ]
    steps = sum(count for count, _ in done)
    return sum(count * ratio for count, ratio in done) / steps if steps else 1.0


def actual_of(state: RunState, now: datetime) -> Actual:
    """What became of the run; its decisions are the sentences of the ledger."""
    end = state.finished_at or now
    fallback = [
        (a.started_at, min(a.billed_until or end, end))
        for a in state.attempts
        if a.started_at and a.placement.offer.capacity is not Capacity.SPOT
    ]
    return Actual(
        is_finished=state.is_finished,
        is_late=end > state.submitted.deadline_at,
        cost_usd=spent_usd(state, end),
        hours=_hours(end, state),
        preemptions=sum(is_taken(a) for a in state.attempts),
        fallback_hours=sum((until - since).total_seconds() / 3600 for since, until in fallback),
        timeline=timeline_of(state, now),
        decisions=tuple(
            Decision(
                at_hours=_hours(a.requested_at, state),
                what="launch" if a.relieves is None else "launch beside",
                where=a.placement.offer.where,
                why=a.why,
            )
            for a in state.attempts
        ),
    )


def _filled(known: Mapping[str, Past], seed: int, horizon_hours: float) -> Callable[[], Weather]:
    records = {key: _record(past, seed ^ crc32(key.encode()), horizon_hours) for key, past in known.items()}
    return lambda: Recorded(records, others=Drawn(seed))


def _record(past: Past, seed: int, horizon_hours: float) -> Record:
    """Changes from 0 to the horizon, which is the record's end."""
    luck = random.Random(seed)  # noqa: S311  # a simulation, not a secret
    first, is_up = past.spells[0], luck.random() < AVAILABLE
    begins_up = first.is_up if first.since <= 0 else is_up
    walk = _Walk(luck, past.scale, is_up=begins_up)
    for spell in past.spells:
        walk.drift(until=spell.since)
        walk.be(spell)
    walk.drift(until=horizon_hours)
    return begins_up, (*walk.changes, max(horizon_hours, walk.at + 1.0))


class _Walk:
    """A place through known and unknown times."""

    def __init__(self, luck: random.Random, scale: float, *, is_up: bool) -> None:
        self._luck, self._scale = luck, scale
        self.is_up, self.at = is_up, 0.0
        self._age = 0.0
        self._is_fresh = False  # its beginning was seen
        self.changes: list[float] = []

    def be(self, spell: Known) -> None:
        if spell.is_up is not self.is_up:
            self._turn(max(self.at, spell.since))
        self._age += max(0.0, spell.until - self.at)
        self.at = max(self.at, spell.until)

    def drift(self, *, until: float) -> None:
        while self.at < until:
            left = self._left()
            if self.at + left >= until:
                self._age += until - self.at
                self.at = until
                return
            self._turn(self.at + left)
            self._is_fresh = True

    def _left(self) -> float:
        """Of the spell, given its age; one that may be older than is known lives on as a machine in it does."""
        scale = self._scale if self.is_up else 1.0
        if scale <= 0:
            return math.inf
        hazards: Hazards = (SPELL_HAZARD if self._is_fresh else LIFE_HAZARD) if self.is_up else RETURN_HAZARD
        mass = cumulated(hazards, self._age) + self._luck.expovariate(1.0) / scale
        return max(1e-6, age_at(hazards, mass) - self._age)

    def _turn(self, at: float) -> None:
        self.changes.append(at)
        self.is_up, self.at, self._age, self._is_fresh = not self.is_up, at, 0.0, False


def _hours(at: datetime, state: RunState) -> float:
    return (at - state.submitted_at).total_seconds() / 3600
