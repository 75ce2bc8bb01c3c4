"""How good the promises of finished runs were, and what later estimates learn from them.

Of n runs whose step time had the same source, run i with a step that took xᵢ × and a run that cost yᵢ × what was
promised, both against the source's own number (an earlier recalibration is taken out again, or it would undo itself):

    ln shift = n / (n + k) · median(ln xᵢ)
    width²   = (t / 1.28)² · (1 + π / 2(n + k)) · (k + max(0, Σ ((ln yᵢ − ln shift)² − mᵢ²) / sᵢ²)) / (n + k − 1)

sᵢ is the standard deviation that the source assumes, ln factor80 / 1.28, and mᵢ² what the promised range of the cost
has beyond it, which is the market's. k = 3 runs speak for the source's own numbers, so few runs change little; π / 2n
is the variance of a median, and t is Student's with n + k − 1 degrees of freedom. A run that is off by more than
twice, or three times its source's factor in logarithms, counts as off by that much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from statistics import mean, median, stdev
from typing import get_args

from launcher.core.estimates.drift import Cause, drift
from launcher.core.estimates.workload import Correction, StepSource, t90
from launcher.core.runs.events import PromisedStep, Quantiles, UsdQuantiles
from launcher.core.runs.report import bill
from launcher.core.runs.state import RunState, hours
from launcher.core.spec import RunSpec
from launcher.core.unknown import Unknown

FEW_RUNS = 5  # with fewer, no rate is given, and a team learns from all teams
FEWEST_RUNS = 3  # with fewer, nothing is recalibrated
LEAST_HOURS = 0.25  # promised: what is shorter is set-up and idling, whose errors do not grow with the work
NEWEST_RUNS = 30  # older ones are of older code and another market
PRIOR_RUNS = 3  # for which the source's own numbers count
UNRECORDED = "not recorded"  # the source, in the promise of an older launcher
_Z80 = 1.2815515655446004  # the normal quantile at 90 %: ±z holds 80 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A run that went as planned from its submit to its success, and what had been promised."""

    run_id: str
    team: str | None
    source: str  # of the step time
    simulated: bool
    time_scale: float
    finished_at: datetime
    promised_usd: UsdQuantiles
    promised_hours: Quantiles
    cost_usd: Decimal
    hours: float
    step: PromisedStep | None
    step_ratio: float | None  # measured seconds to promised ones, on the promised GPU type

    @property
    def cost_ratio(self) -> float | None:
        """To the p50; `None`: nothing was to be paid."""
        return float(self.cost_usd / self.promised_usd.p50) if self.promised_usd.p50 else None

    @property
    def hours_ratio(self) -> float | None:
        return self.hours / self.promised_hours.p50 if self.promised_hours.p50 else None

    @property
    def is_cost_inside(self) -> bool:
        """Within the 80 % range."""
        return self.promised_usd.p10 <= self.cost_usd <= self.promised_usd.p90

    @property
    def is_hours_inside(self) -> bool:
        return self.promised_hours.p10 <= self.hours <= self.promised_hours.p90


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Errors against the p50: bias = mean(actual / p50 − 1), mape = mean |actual / p50 − 1|."""

    num_runs: int
    bias: float
    bias_error: float | None  # standard error; `None` for a single run
    mape: float
    num_inside: int

    @property
    def is_enough(self) -> bool:
        """Else its rates are luck."""
        return self.num_runs >= FEW_RUNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs of one team whose step time came from one source, real ones or those of one simulated time."""

    team: str | None
    source: str
    simulated: bool
    time_scale: float
    num_runs: int
    cost: Accuracy | None  # None: nothing was to be paid
    hours: Accuracy | None
    correction: Correction | None  # that the next estimate gets


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a ledger's finished runs say of their estimates."""

    groups: tuple[Group, ...]
    runs: tuple[tuple[Score, tuple[Cause, ...]], ...]  # the newest last
    unscored: Mapping[str, str]  # finished runs that say nothing, and why


def review(states: Sequence[RunState], *, team: str | None) -> Review:
    """Of one team's runs, or of all; what a group learns may be of other teams' runs as well."""
    of_team = [s for s in states if s.is_finished and team in (None, s.spec.tags.get("team"))]
    verdicts = [(state, score(state)) for state in of_team]
    runs = [(verdict, drift(state)) for state, verdict in verdicts if isinstance(verdict, Score)]
    return Review(
        groups=tuple(g for g in groups(scored(states)) if team in (None, g.team)),
        runs=tuple(sorted(runs, key=lambda run: run[0].finished_at)),
        unscored={s.run_id: verdict.reason for s, verdict in verdicts if isinstance(verdict, Unknown)},
    )


def score(state: RunState) -> Score | Unknown:
    """The run against its promise, or why that says nothing."""
    if reason := _unscored(state):
        return Unknown(reason)
    promise, ended_at = state.submitted.promise, state.finished_at or state.at
    return Score(
        run_id=state.run_id,
        team=state.spec.tags.get("team"),
        source=promise.step.source if promise.step else UNRECORDED,
        simulated=state.submitted.simulated,
        time_scale=state.submitted.time_scale,
        finished_at=ended_at,
        promised_usd=promise.cost_usd,
        promised_hours=promise.hours,
        cost_usd=bill(state, ended_at).total_usd,
        hours=float(hours(ended_at - state.submitted_at)),
        step=promise.step,
        step_ratio=_step_ratio(state, promise.step.gpu) if promise.step else None,
    )


def scored(states: Iterable[RunState]) -> tuple[Score, ...]:
    """Of every run that can be scored, the newest last."""
    found = (score(state) for state in states)
    return tuple(sorted((s for s in found if isinstance(s, Score)), key=lambda s: s.finished_at))


def groups(scores: Sequence[Score]) -> tuple[Group, ...]:
    """By team and source; simulated runs behind the real ones."""
    kinds = {(s.simulated, s.time_scale, s.team or "", s.source) for s in scores}
    return tuple(_group(scores, *kind) for kind in sorted(kinds))


def corrections(spec: RunSpec, states: Iterable[RunState]) -> Mapping[StepSource, Correction]:
    """What finished runs in the same kind of time, real or simulated, teach an estimate of `spec`."""
    scale, simulated = spec.market.time_scale if spec.market else 1.0, spec.market is not None
    like = scored(s for s in states if (s.submitted.simulated, s.submitted.time_scale) == (simulated, scale))
    found = ((source, correction(like, source=source, team=spec.tags.get("team"))) for source in get_args(StepSource))
    return {source: learnt for source, learnt in found if learnt is not None}


def correction(scores: Sequence[Score], *, source: str, team: str | None) -> Correction | None:
    """Of the team's newest runs with that source, or of all teams' where it has few; `None`: too few altogether."""
    of_all = [s for s in scores if s.source == source and _teaches(s)]
    of_team = [s for s in of_all if s.team == team] if team else []
    used = (of_team if len(of_team) >= FEW_RUNS else of_all)[-NEWEST_RUNS:]
    if len(used) < FEWEST_RUNS:
        return None
    weight = len(used) + PRIOR_RUNS
    ln_shift = len(used) / weight * median(_ln_step(s) for s in used)
    beyond = sum(_surprise(s, ln_shift) for s in used)
    variance = (1 + math.pi / 2 / weight) * (PRIOR_RUNS + max(0.0, beyond)) / (weight - 1)
    return Correction(
        shift=math.exp(ln_shift),
        width=math.sqrt(variance) * t90(weight - 1) / _Z80,
        num_runs=len(used),
        team=team if len(of_team) >= FEW_RUNS else None,
    )


def _unscored(state: RunState) -> str | None:
    if state.outcome is None:
        return "it has not ended"
    if state.outcome != "succeeded":
        return f"it ended {state.outcome.replace('_', ' ')}"
    if state.stop_requested_at is not None:
        return "it was asked to stop"
    if state.reopened_after or state.approved_usd != state.submitted.approved_usd:
        return "it was reopened with another approval"
    return None


def _step_ratio(state: RunState, gpu: str) -> float | None:
    """Weighted by the steps that were done; `None`: none was measured there."""
    promised = state.submitted.pace.step_seconds.get(gpu)
    on_it = [a for a in state.attempts if a.placement.offer.gpu == gpu and a.step_seconds]
    steps = sum(a.step - a.first_step for a in on_it)
    if not promised or steps <= 0:
        return None
    return sum((a.step_seconds or 0.0) * (a.step - a.first_step) for a in on_it) / steps / promised


def _group(scores: Sequence[Score], simulated: bool, time_scale: float, team: str, source: str) -> Group:
    like = [s for s in scores if (s.simulated, s.time_scale) == (simulated, time_scale)]
    own = [s for s in like if (s.team or "", s.source) == (team, source)]
    return Group(
        team=team or None,
        source=source,
        simulated=simulated,
        time_scale=time_scale,
        num_runs=len(own),
        cost=_accuracy([(ratio, s.is_cost_inside) for s in own if (ratio := s.cost_ratio) is not None]),
        hours=_accuracy([(ratio, s.is_hours_inside) for s in own if (ratio := s.hours_ratio) is not None]),
        correction=correction(like, source=source, team=team or None),
    )


def _accuracy(ratios: Sequence[tuple[float, bool]]) -> Accuracy | None:
    if not ratios:
        return None
    errors = [ratio - 1 for ratio, _ in ratios]
    return Accuracy(
        num_runs=len(errors),
        bias=mean(errors),
        bias_error=stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else None,
        mape=mean(abs(error) for error in errors),
        num_inside=sum(is_inside for _, is_inside in ratios),
    )


def _teaches(score: Score) -> bool:
    """Everything that the formula asks of a run is known, and it was long enough to say something of longer ones."""
    known = score.step and score.step_ratio and score.cost_ratio and score.promised_usd.p10
    return bool(known) and score.promised_hours.p50 >= LEAST_HOURS


def _ln_step(score: Score) -> float:
    """Against the source's own number."""
    assert score.step is not None
    assert score.step_ratio is not None
    return _within(math.log(score.step_ratio * score.step.shift), score.step)


def _surprise(score: Score, ln_shift: float) -> float:
    """(squared error of the cost − variance of the market) / variance that the source assumes of itself."""
    assert score.step is not None
    assert score.cost_ratio is not None
    promised = score.promised_usd
    error = _within(math.log(score.cost_ratio * score.step.shift) - ln_shift, score.step)
    whole = math.log(float(promised.p90 / promised.p10)) / (2 * _Z80)
    market = max(0.0, whole**2 - (math.log(score.step.factor80) / _Z80) ** 2)
    return (error**2 - market) / (_ln_factor80(score.step) / _Z80) ** 2


def _within(error: float, step: PromisedStep) -> float:
    limit = max(math.log(2), 3 * _ln_factor80(step))
    return min(max(error, -limit), limit)


def _ln_factor80(step: PromisedStep) -> float:
    """As the source assumes it, before any recalibration."""
    return math.log(step.factor80) / step.width
