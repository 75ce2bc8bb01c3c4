"""What a run is played in: its places at their prices, its deadline, and what it costs beyond machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from launcher.core.estimates.planner import deadline, market_for, outlook_for
from launcher.core.estimates.rollout import Outlook
from launcher.core.estimates.survey import Book, Candidate, survey
from launcher.core.estimates.workload import Measured
from launcher.core.hazards import fresh_preemptions_per_hour
from launcher.core.offers import Placement
from launcher.core.policy.market import Market
from launcher.core.prices.options import Rules
from launcher.core.runs.state import RunState
from launcher.core.spec import RunSpec
from launcher.errors import NothingFeasible


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """`outlook` is that of the place where the run would best begin."""

    name: str
    market: Market
    outlook: Outlook
    deadline_assumed: bool
    simulated: bool


def prospect_of_spec(spec: RunSpec, book: Book, measured: Measured, *, now: datetime, rules: Rules) -> Prospect:
    """Of a run that begins now, as its plan has it. Raises: NothingFeasible: it fits nowhere."""
    candidates = _feasible(spec, book, measured, now)
    deadline_at = deadline(spec, candidates, now, rules.fallback_delay_seconds)
    return _prospect(spec, book, measured, candidates, now=now, deadline_at=deadline_at, rules=rules)


def prospect_of_run(state: RunState, book: Book, *, rules: Rules) -> Prospect:
    """Of a run as it stood at its submit: where it has been at the prices of its attempts, elsewhere at the book's.

    Raises: NothingFeasible: it fits nowhere any more.
    """
    spec, measured = agreed(state)
    begun_at = state.submitted_at
    candidates = _feasible(spec, book, measured, begun_at)
    met = {a.placement.offer.key: a.placement for a in reversed(state.attempts)}
    known = {c.option.placement.offer.key: c for c in candidates}
    candidates = [_at(c, met.get(key, c.option.placement)) for key, c in known.items()]
    candidates += [_at(_like(candidates, placement), placement) for key, placement in met.items() if key not in known]
    deadline_at = state.submitted.deadline_at
    found = _prospect(spec, book, measured, candidates, now=begun_at, deadline_at=deadline_at, rules=rules)
    return replace(found, name=state.run_id, deadline_assumed=state.submitted.deadline_assumed)


def agreed(state: RunState) -> tuple[RunSpec, Measured]:
    """The spec at the pace that the run's user agreed to."""
    spec, pace, newest = state.spec, state.submitted.pace, state.checkpoint
    workload = spec.workload.model_copy(update={"step_seconds": pace.step_seconds, "setup_seconds": pace.setup_seconds})
    checkpoint = spec.checkpoint.model_copy(update={"save_seconds": pace.save_seconds})
    measured = Measured(
        durable_seconds=pace.closing_save_seconds,
        checkpoint_gb=newest.bytes / 1e9 if newest else pace.checkpoint_gb,
    )
    return spec.model_copy(update={"workload": workload, "checkpoint": checkpoint}), measured


def _feasible(spec: RunSpec, book: Book, measured: Measured, now: datetime) -> list[Candidate]:
    candidates, refused = survey(spec, book, measured, now=now)
    if not candidates:
        reason = f"all {len(refused)} offers are refused; `launch plan --all` shows why"
        raise NothingFeasible(f"no place can do it: {reason}")
    return candidates


def _prospect(
    spec: RunSpec,
    book: Book,
    measured: Measured,
    candidates: Sequence[Candidate],
    *,
    now: datetime,
    deadline_at: datetime,
    rules: Rules,
) -> Prospect:
    market = market_for(spec, book, measured, candidates, now=now, deadline_at=deadline_at, rules=rules)
    first = market.spot[0] if market.spot else market.fallback or market.places[0]
    begun = next(c for c in candidates if c.option is first.option)
    return Prospect(
        name=spec.name,
        market=market,
        outlook=outlook_for(spec, book, measured, begun, rules),
        deadline_assumed=spec.deadline is None,
        simulated=spec.market is not None,
    )


def _like(candidates: Sequence[Candidate], placement: Placement) -> Candidate:
    """For a place that nobody offers any more: one as near to it as there is."""
    offer = placement.offer

    def unlike(candidate: Candidate) -> tuple[bool, bool, bool]:
        other = candidate.option.placement.offer
        return other.gpu != offer.gpu, other.capacity is not offer.capacity, other.provider != offer.provider

    return min(candidates, key=unlike)


def _at(candidate: Candidate, placement: Placement) -> Candidate:
    hazard = fresh_preemptions_per_hour(placement.offer)
    return replace(candidate, option=replace(candidate.option, placement=placement, preemptions_per_hour=hazard))
