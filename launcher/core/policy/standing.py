"""A run of the ledger as its policy sees it: where it stands, and what is known of its places."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime

from launcher.core.hazards import LIFE_HAZARD, cumulated, fresh_preemptions_per_hour
from launcher.core.policy.decision import Holding, Seen, Standing
from launcher.core.policy.market import Market, Place, market_of, place_of
from launcher.core.policy.spot import blocks, is_taken, learned_scale, outages
from launcher.core.policy.view import View
from launcher.core.prices.options import Option
from launcher.core.runs.state import Attempt, RunState

_LATE_SAVE = 1.2  # times the interval that was planned: a step more, or one that took longer, is no change of habit
SETTLED_STEPS = 50  # of an attempt, after which its mean is worth more than a promise
_LYING = "where it lies"  # the newest checkpoint: the way from there to each place is priced with its option


def step_seconds(state: RunState) -> dict[str, float]:
    """By GPU type: as the newest attempt that has settled measured them, others by the same ratio; else as promised."""
    promised = state.submitted.pace.step_seconds
    for attempt in reversed(state.attempts):
        known = promised.get(attempt.placement.offer.gpu)
        if attempt.step_seconds and known and attempt.step - attempt.first_step >= SETTLED_STEPS:
            return {gpu: seconds * attempt.step_seconds / known for gpu, seconds in promised.items()}
    return dict(promised)


def market(view: View) -> Market:
    """The run's places, at instants counted from the submit."""
    state = view.state
    widest = max((attempt.widest_steps for attempt in state.attempts), default=0)
    return market_of(
        [_saved_within(option, widest) for option in view.affordable],
        state.spec,
        since=state.submitted_at,
        deadline_at=state.submitted.deadline_at,
        deadline_assumed=state.submitted.deadline_assumed,
        rules=view.rules,
        moves={(_LYING, o.traffic.home): float(o.move_usd) for o in view.affordable},
    )


def _saved_within(option: Option, steps: int) -> Option:
    """A trainer may save more rarely than was planned: what it could lose is what counts."""
    seconds = steps * option.step_seconds
    return replace(option, interval_seconds=seconds) if seconds > _LATE_SAVE * option.interval_seconds else option


def standing(view: View, market: Market, *, barred: frozenset[str] = frozenset()) -> Standing:
    """Of a run with a machine that trains, or without one. `barred`: keys of places that are not to be asked now."""
    state, trainer = view.state, view.state.trainer
    seen = _seen(view)
    for key in barred:
        since = seen[key].since if key in seen else _hours(view.now, state)
        seen[key] = Seen(is_up=False, since=since, again_at=math.inf)
    return Standing(
        steps=float(view.steps_from(state.committed_step)),
        spent=float(state.approved_usd - view.left_usd),
        left=float(view.left_usd),
        here=None if trainer is None else _holding(view, market, trainer),
        is_joined=state.incoming is not None,
        homes=(_LYING,) if state.checkpoint else (),
        seen=seen,
        scales=_scales(view, market),
        leased=frozenset(
            a.placement.offer.key for a in state.attempts if a.started_at and a.placement.offer.lease_seconds
        ),
    )


def _holding(view: View, market: Market, live: Attempt) -> Holding:
    state, key = view.state, live.placement.offer.key
    place = next((p for p in market.places if p.key == key), None) or _gone(view, live)
    return Holding(
        place=place,
        since=_hours(live.started_at or live.requested_at, state),
        trains=live.training_at is not None,
        ahead=float(max(0, live.step - state.committed_step)),
    )


def _gone(view: View, live: Attempt) -> Place:
    """A place that nobody offers any more, at what its attempt was told."""
    pace, offer = view.state.submitted.pace, live.placement.offer
    known = live.step_seconds or pace.step_seconds.get(offer.gpu) or max(pace.step_seconds.values(), default=1.0)
    option = Option(
        placement=live.placement,
        step_seconds=known,
        setup_seconds=pace.setup_seconds,
        save_seconds=pace.save_seconds,
        durable_seconds=pace.closing_save_seconds,
        preemptions_per_hour=fresh_preemptions_per_hour(offer),
    )
    return place_of(option, view.rules, view.state.submitted_at)


def _seen(view: View) -> dict[str, Seen]:
    """Places without capacity, as far as is known from asking."""
    state = view.state
    again = blocks(state, view.rules)
    return {
        key: Seen(is_up=False, since=_hours(outage.since, state), again_at=_hours(again[key], state))
        for key, outage in outages(state).items()
    }


def _scales(view: View, market: Market) -> dict[str, float]:
    """Of the hazards of places whose machines the run has had."""
    places = {place.key: place for place in market.places}
    lives: dict[str, tuple[int, float]] = {}
    for attempt in view.state.attempts:
        place = places.get(attempt.placement.offer.key)
        if place is None or not place.is_spot or attempt.started_at is None:
            continue
        hours = ((attempt.gone_at or attempt.ended_at or view.now) - attempt.started_at).total_seconds() / 3600
        taken, expected = lives.get(place.key, (0, 0.0))
        lives[place.key] = taken + is_taken(attempt), expected + place.scale * cumulated(LIFE_HAZARD, hours)
    return {
        key: learned_scale(places[key].scale, taken=taken, expected=expected)
        for key, (taken, expected) in lives.items()
    }


def _hours(at: datetime, state: RunState) -> float:
    return (at - state.submitted_at).total_seconds() / 3600
