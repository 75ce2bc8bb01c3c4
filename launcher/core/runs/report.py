"""Where a run's dollars went, and what the next ones will be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from launcher.core.gravity import HOURS_PER_MONTH
from launcher.core.runs.state import (
    Attempt,
    RunState,
    billed,
    egress_usd,
    hours,
    machine_usd,
    spent_usd,
    storage_usd,
    supervisor_usd,
    trainer_usd_per_hour,
)

CENT = Decimal("0.01")
CAUSES = ("useful", "lost", "setup", "restarts", "saves", "idle", "egress", "storage", "supervisor")
WASTE = ("lost", "restarts", "idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A run's cost until one instant; `by_cause` adds up to `total_usd` to the cent."""

    total_usd: Decimal
    by_cause: Mapping[str, Decimal]
    saved_usd: Decimal | None  # against on-demand machines of the same types, if their price is known

    @property
    def waste_usd(self) -> Decimal:
        return sum((self.by_cause[cause] for cause in WASTE), Decimal(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How a running run goes on from here at its present pace and price."""

    usd_per_step: Decimal | None
    total_usd: Decimal | None
    left_seconds: float | None
    preemption_now_usd: Decimal | None  # steps to be done again, and the restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What lies in the run folder, and what keeping it costs; `usd_per_month` is `None` where no price is known."""

    kept: int
    bytes: int  # what checkpoints share is counted once
    usd_per_month: Decimal | None
    basis: str
    is_assumed: bool  # the price bounds the store's own, which nobody knows


def bill(state: RunState, now: datetime) -> Bill:
    """Split the run's cost by cause.

    Training time is useful as far as its steps were built upon, lost where a later attempt had to do them again.
    """
    exact = dict.fromkeys(CAUSES, Decimal(0))
    for attempt in state.attempts:
        for cause, usd in _causes(state, attempt, now).items():
            exact[cause] += usd
        exact["egress"] += egress_usd(state, attempt)
    exact["storage"] += storage_usd(state, now)
    exact["supervisor"] += supervisor_usd(state, now)
    total = spent_usd(state, now).quantize(CENT, ROUND_HALF_EVEN)
    return Bill(total_usd=total, by_cause=to_cents(exact, total), saved_usd=_saved(state, exact, now))


def attempt_usd(state: RunState, attempt: Attempt, now: datetime) -> Decimal:
    """One attempt's machines and egress, to the cent."""
    return (machine_usd(attempt, now) + egress_usd(state, attempt)).quantize(CENT, ROUND_HALF_EVEN)


def forecast(state: RunState, now: datetime) -> Forecast:
    """What is left to do at the newest measured step time, and before there is one at the promised pace.

    As on the machine that trains: another one beside it is there for a short time only.
    """
    live = state.trainer
    seconds = _step_seconds(state, live) if live else None
    burn = trainer_usd_per_hour(state)
    if live is None or seconds is None or not burn or not live.prices:
        return Forecast(usd_per_step=None, total_usd=None, left_seconds=None, preemption_now_usd=None)
    left = (state.spec.workload.steps - state.step) * seconds
    setup = state.submitted.pace.setup_seconds
    exposed = max(0, state.step - state.committed_step) * seconds + setup
    return Forecast(
        usd_per_step=burn * Decimal(str(seconds)) / 3600,
        total_usd=(spent_usd(state, now) + burn * Decimal(str(left)) / 3600).quantize(CENT),
        left_seconds=left,
        preemption_now_usd=(burn * Decimal(str(exposed)) / 3600).quantize(CENT),
    )


def stored(state: RunState) -> Stored | None:
    """The run's checkpoints as they are kept now; `None` before the first, or where the trainer does not count them."""
    newest = state.checkpoint
    if newest is None or newest.stored_bytes is None or newest.kept is None:
        return None
    hourly, basis = state.submitted.storage_usd_per_gb_hour, state.submitted.storage_basis
    usd = hourly * HOURS_PER_MONTH * newest.stored_bytes / 10**9 if hourly else None
    return Stored(
        kept=newest.kept,
        bytes=newest.stored_bytes,
        usd_per_month=usd,
        basis=basis,
        is_assumed=state.submitted.storage_assumed,
    )


def steps_usd(state: RunState, attempt: Attempt, steps: int) -> Decimal | None:
    """What it costs this attempt to do so many steps; `None` where the pace is unknown."""
    seconds = _step_seconds(state, attempt)
    if seconds is None:
        return None
    return attempt.placement.usd_per_hour * Decimal(str(seconds)) * steps / 3600


def to_cents(parts: Mapping[str, Decimal], total: Decimal) -> dict[str, Decimal]:
    """Round `parts` so that they add up to `total`: the largest remainders take the cents that are left over."""
    floors = {name: value.quantize(CENT, ROUND_FLOOR) for name, value in parts.items()}
    left = int((total - sum(floors.values(), Decimal(0))) / CENT)
    by_remainder = sorted(parts, key=lambda name: (floors[name] - parts[name], name))
    for name in by_remainder[: max(0, left)]:
        floors[name] += CENT
    return floors


def _causes(state: RunState, attempt: Attempt, now: datetime) -> dict[str, Decimal]:
    """The attempt's machine cost, shared out by time."""
    if attempt.started_at is None:
        return {}
    until = attempt.billed_until or now
    ended = min(attempt.ended_at or until, until)
    began = min(attempt.training_at or ended, ended)
    saves = min(timedelta(seconds=attempt.save_seconds), ended - began)
    training = ended - began - saves
    useful = _useful(state, attempt, training)
    is_first = not any(a.started_at for a in state.attempts[: attempt.number - 1])
    spans = {
        "setup" if is_first else "restarts": began - attempt.started_at,
        "useful": useful,
        "lost": training - useful,
        "saves": saves,
        "idle": until - ended,
    }
    whole = until - attempt.started_at
    usd = machine_usd(attempt, now)
    if whole <= timedelta(0):
        return {}
    return {cause: usd * hours(span) / hours(whole) for cause, span in spans.items()}


def _useful(state: RunState, attempt: Attempt, training: timedelta) -> timedelta:
    """The time of the steps that were built upon; what a killed attempt did after its last word is lost as well."""
    later = next((a.first_step for a in state.attempts[attempt.number :] if a.training_at), None)
    if later is None and (attempt.is_live or attempt.outcome == "completed"):
        return training
    kept = max(0, (state.committed_step if later is None else later) - attempt.first_step)
    if attempt.step_seconds:
        return min(training, timedelta(seconds=kept * attempt.step_seconds))
    run = attempt.step - attempt.first_step
    return training * min(1.0, kept / run) if run > 0 else timedelta(0)


def _saved(state: RunState, exact: Mapping[str, Decimal], now: datetime) -> Decimal | None:
    """An on-demand run would have paid list price for the useful hours, one set-up and the saves, and no more."""
    on_demand = Decimal(0)
    for attempt in (a for a in state.attempts if a.started_at):
        list_price = attempt.placement.on_demand_usd_per_hour
        if list_price is None:
            return None
        causes = _causes(state, attempt, now)
        paid = sum((causes.get(cause, Decimal(0)) for cause in ("useful", "setup", "saves")), Decimal(0))
        span = sum((hours(until - since) for since, until, _ in billed(attempt, now)), Decimal(0))
        usd = machine_usd(attempt, now)
        if usd:
            on_demand += list_price * span * paid / usd
    elsewhere = exact["egress"] + exact["storage"] + exact["supervisor"]
    return (on_demand + elsewhere - spent_usd(state, now)).quantize(CENT)


def _step_seconds(state: RunState, live: Attempt) -> float | None:
    promised = state.submitted.pace.step_seconds.get(live.placement.offer.gpu)
    return next((a.step_seconds for a in reversed(state.attempts) if a.step_seconds), promised)
