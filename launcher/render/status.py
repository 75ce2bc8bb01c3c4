"""Runs as a table, one run in full, and the line at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.core.prices.supervision import Hired, Sign
from launcher.core.runs.report import CAUSES, Stored, attempt_usd, bill, forecast, stored
from launcher.core.runs.state import Attempt, RunState, burn_usd_per_hour, newest_run_uri, spent_usd
from launcher.core.spans import span
from launcher.render.tables import Column, table
from launcher.render.words import Money, clock_time, simulated, size

RUNS_SCHEMA = "launch/runs/v1"
RUN_SCHEMA = "launch/run/v1"


def phase(state: RunState, *, supervised: bool) -> str:
    """One or two words for where the run is."""
    if state.outcome:
        return state.outcome.replace("_", " ")
    live = state.trainer or state.incoming
    if live is None:
        word = "waiting"
    elif live.end_requested_at:
        word = "handing over" if live.end_cause == "handed_over" else "stopping"
    elif live.training_at:
        word = "noticed" if live.noticed_at else "running"
    else:
        word = "starting"
    return word if supervised else f"{word}, no supervisor"


def show_runs(console: Console, rows: Sequence[tuple[RunState, datetime, bool]], money: Money) -> None:
    """`(run, now in its own time, whether it has a supervisor)`, newest last."""
    if not rows:
        console.print("no runs yet: `launch train.yaml` starts one")
        return
    columns = (
        Column("run"),
        Column("where", drop=4),
        Column("state"),
        Column("step", "right", drop=1),
        Column(f"{money.sign.strip()}/step", "right", drop=5),
        Column("spent", "right"),
        Column("est. total", "right", drop=3),
        Column("left", "right", drop=2),
    )
    console.print(table(console, columns, [(_run_cells(*row, money), "") for row in rows]))
    label = simulated(any(state.submitted.simulated for state, _, _ in rows))
    burn = sum((burn_usd_per_hour(state) for state, _, _ in rows), Decimal(0))
    console.print(f" burn {money.exact(burn)}/h · spent {money.exact(_total(rows))} in {len(rows)} runs{label}")


def _run_cells(state: RunState, now: datetime, supervised: bool, money: Money) -> Sequence[str]:
    ahead = forecast(state, now)
    return (
        state.run_id + simulated(state.submitted.simulated),
        _where(state),
        phase(state, supervised=supervised),
        f"{state.step:,}/{state.spec.workload.steps:,}",
        "–" if ahead.usd_per_step is None else money.fine(ahead.usd_per_step),
        money.exact(spent_usd(state, state.finished_at or now)),
        "–" if ahead.total_usd is None else f"≈ {money.about(ahead.total_usd)}",
        "–" if ahead.left_seconds is None else span(ahead.left_seconds),
    )


def show_run(
    console: Console, state: RunState, now: datetime, money: Money, *, supervised: bool, sign: Sign | None = None
) -> None:
    """Attempts, cost by cause, the last checkpoint, and what a preemption would cost at this moment."""
    label = simulated(state.submitted.simulated)
    console.print(f"\n [bold]{state.run_id}[/]  {phase(state, supervised=supervised)}{label}")
    if state.detail:
        console.print(f" {state.detail}")
    console.print(f" step {state.step:,} of {state.spec.workload.steps:,} · folder {newest_run_uri(state)}")
    console.print(_attempts(console, state, now, money))
    if state.incoming:
        console.print(f" {_beside(state.incoming, money)}", highlight=False)
    if decision := _decision(state):
        console.print(f" {decision}", highlight=False)
    for sentence in _money(state, now, money):
        console.print(f" {sentence}")
    for sentence in _supervision(state, money, sign):
        console.print(f" {sentence}", highlight=False)
    if not supervised and not state.is_finished:
        console.print(f" [bold]nobody supervises this run[/]: `launch resume {state.run_id}`")


def final_line(state: RunState, money: Money) -> str:
    """What it took, what it cost, and how good the promise was."""
    now = state.finished_at or state.at
    spent = bill(state, now)
    label = simulated(state.submitted.simulated)
    took = span((now - state.submitted_at).total_seconds())
    words = [f"{state.run_id} {(state.outcome or 'ended').replace('_', ' ')} in {took}"]
    words.append(f"cost {money.exact(spent.total_usd)}{label}")
    promised = state.submitted.promise.cost_usd
    if state.outcome == "succeeded" and promised.p50:
        error = (spent.total_usd - promised.p50) / promised.p50
        inside = "inside" if promised.p10 <= spent.total_usd <= promised.p90 else "outside"
        words.append(f"estimate was {money.exact(promised.p50)} ({error:+.1%}, {inside} the 80 % range)")
    if spent.saved_usd is not None and spent.saved_usd > 0:
        words.append(f"saved {money.exact(spent.saved_usd)} against on-demand")
    words.append(f"waste {money.exact(spent.waste_usd)}")
    return " · ".join(words)


def run_json(state: RunState, now: datetime, *, supervised: bool, sign: Sign | None = None) -> dict[str, Any]:
    """`launch/run/v1`."""
    spent, ahead = bill(state, state.finished_at or now), forecast(state, now)
    checkpoint = state.checkpoint
    return {
        "schema": RUN_SCHEMA,
        "run_id": state.run_id,
        "state": phase(state, supervised=supervised),
        "outcome": state.outcome,
        "detail": state.detail,
        "simulated": state.submitted.simulated,
        "supervised": supervised,
        "currency": "USD",
        "submitted_at": state.submitted_at.isoformat(),
        "deadline_at": state.submitted.deadline_at.isoformat(),
        "finished_at": state.finished_at.isoformat() if state.finished_at else None,
        "step": state.step,
        "steps": state.spec.workload.steps,
        "run_uri": newest_run_uri(state),
        "approved_usd": str(state.approved_usd),
        "spent_usd": str(spent.total_usd),
        "by_cause_usd": {cause: str(usd) for cause, usd in spent.by_cause.items()},
        "waste_usd": str(spent.waste_usd),
        "saved_usd": None if spent.saved_usd is None else str(spent.saved_usd),
        "estimate": state.submitted.promise.model_dump(mode="json"),
        "drift": _drift_json(state),
        "forecast_usd": None if ahead.total_usd is None else str(ahead.total_usd),
        "left_seconds": ahead.left_seconds,
        "preemption_now_usd": None if ahead.preemption_now_usd is None else str(ahead.preemption_now_usd),
        "checkpoint": checkpoint and {"step": checkpoint.step, "name": checkpoint.name, "bytes": checkpoint.bytes},
        "stored": _stored_json(state),
        "attempts": [_attempt_json(state, attempt, now) for attempt in state.attempts],
        "incoming": state.incoming and state.incoming.number,
        "pause": state.pause and {"since": state.pause.since.isoformat(), "why": state.pause.why},
        "tags": state.spec.tags,
        "hired": [_hired_json(hired) for hired in state.hired],
        "supervisor": sign and {"by": sign.by, "since": sign.since.isoformat(), "seen_at": sign.at.isoformat()},
    }


def _stored_json(state: RunState) -> dict[str, Any] | None:
    lying = stored(state)
    if lying is None:
        return None
    usd = lying.usd_per_month
    return {
        "checkpoints": lying.kept,
        "bytes": lying.bytes,
        "usd_per_month": None if usd is None or lying.is_assumed else str(usd.quantize(Decimal("0.000001"))),
        "basis": lying.basis,
    }


def runs_json(rows: Iterable[tuple[RunState, datetime, bool]]) -> dict[str, Any]:
    """`launch/runs/v1`."""
    return {"schema": RUNS_SCHEMA, "runs": [run_json(state, now, supervised=alive) for state, now, alive in rows]}


def _total(rows: Iterable[tuple[RunState, datetime, bool]]) -> Decimal:
    return sum((spent_usd(state, state.finished_at or now) for state, now, _ in rows), Decimal(0))


def _where(state: RunState) -> str:
    live = state.trainer or state.incoming
    if live is None:
        return "–"
    offer = live.placement.offer
    return f"{offer.where} {offer.capacity.value.replace('_', '-')}"


def _attempts(console: Console, state: RunState, now: datetime, money: Money) -> Table:
    columns = (
        Column("#", "right"),
        Column("where"),
        Column("mode", drop=4),
        Column(f"{money.sign.strip()}/h", "right", drop=3),
        Column("steps", "right", drop=1),
        Column("billed", "right", drop=2),
        Column("cost", "right"),
        Column("how it ended", folds=True),
    )
    return table(console, columns, [(_attempt_cells(state, attempt, now, money), "") for attempt in state.attempts])


def _attempt_cells(state: RunState, attempt: Attempt, now: datetime, money: Money) -> Sequence[str]:
    offer, until = attempt.placement.offer, attempt.billed_until or now
    return (
        str(attempt.number),
        offer.where,
        offer.capacity.value.replace("_", "-"),
        money.exact(attempt.placement.usd_per_hour),
        f"{attempt.first_step:,} – {attempt.step:,}" if attempt.training_at else "–",
        span((until - attempt.started_at).total_seconds()) if attempt.started_at else "–",
        money.exact(attempt_usd(state, attempt, now)) if attempt.started_at else "–",
        _ending(attempt),
    )


def _ending(attempt: Attempt) -> str:
    if attempt.refused_at:
        return f"refused, {attempt.refused}"
    if attempt.outcome:
        return f"{attempt.outcome}: {attempt.detail}"
    if attempt.is_incoming:
        return f"waits to relieve attempt {attempt.relieves}" if attempt.ready_at else "starting"
    if attempt.end_requested_at:
        return "asked to save and end"
    return "running" if attempt.training_at else "starting"


def _decision(state: RunState) -> str:
    """The newest one, with its reason."""
    live = state.incoming or state.trainer
    if state.is_finished or (live is None and state.pause is None):
        return ""
    if live is None:
        assert state.pause is not None
        return f"Decision  to wait, since {clock_time(state.pause.since)}: {state.pause.why}"
    return f"Decision  attempt {live.number}: {live.why}"


def _beside(incoming: Attempt, money: Money) -> str:
    """The second machine that is paid for, and what for."""
    doing = "waits to take over" if incoming.ready_at else "is being started beside it"
    if incoming.started_at is None:
        doing = "is asked for, to take over"
    price = f"{money.exact(incoming.placement.usd_per_hour)}/h"
    return f"Second machine  attempt {incoming.number} on {incoming.placement.offer.where}, {price}, {doing}"


def _money(state: RunState, now: datetime, money: Money) -> Iterable[str]:
    spent, ahead = bill(state, state.finished_at or now), forecast(state, now)
    parts = " · ".join(f"{cause} {money.exact(spent.by_cause[cause])}" for cause in CAUSES if spent.by_cause[cause])
    label = simulated(state.submitted.simulated)
    of_approved = f"{money.exact(spent.total_usd)} of {money.exact(state.approved_usd)} approved"
    yield f"Spent{label}  {of_approved}  ({parts or 'nothing'})"
    promised = state.submitted.promise.cost_usd
    promise = f"{money.about(promised.p50)} ({money.about(promised.p10)} – {money.about(promised.p90)})"
    if ahead.total_usd is not None and ahead.left_seconds is not None:
        yield f"Estimate  ≈ {money.about(ahead.total_usd)} in the end; was {promise} · {span(ahead.left_seconds)} left"
    else:
        yield f"Estimate  was {promise}{_kept(state, money)}"
    if state.checkpoint:
        kept = state.checkpoint
        age = span((now - kept.at).total_seconds()) if not state.is_finished else ""
        yield f"Checkpoint  step {kept.step:,}, {size(kept.bytes)}{f', {age} old' if age else ''} ({kept.name})"
    if lying := stored(state):
        yield f"Checkpoints  {lying.kept} kept, {size(lying.bytes)}, {_rent(lying, money)}"
    if ahead.preemption_now_usd is not None:
        yield f"Risk  a preemption now would cost {money.exact(ahead.preemption_now_usd)}"
    if not state.is_finished:
        assumed = " (assumed)" if state.submitted.deadline_assumed else ""
        yield f"Deadline  {clock_time(state.submitted.deadline_at)}{assumed}"
    if money.note:
        yield f"Currency  {money.note}"


def _drift_json(state: RunState) -> list[dict[str, Any]] | None:
    from launcher.core.estimates.calibration import Score, score
    from launcher.core.estimates.drift import drift
    from launcher.render.reports import drift_json

    return drift_json(drift(state)) if isinstance(score(state), Score) else None


def _kept(state: RunState, money: Money) -> str:
    """What a finished run's promise was worth, and why."""
    if not state.is_finished:
        return ""
    from launcher.core.estimates.calibration import Score, score  # a list of runs needs none of it
    from launcher.core.estimates.drift import drift
    from launcher.render.reports import drift_words, verdict

    found = score(state)
    if isinstance(found, Score):
        return f" · {verdict(found, money)}: {drift_words(drift(state), money)}"
    return f" · not scored: {found.reason}"


def _supervision(state: RunState, money: Money, sign: Sign | None) -> Iterable[str]:
    """Machines that were hired for it, and who was last heard of."""
    for hired in state.hired:
        machine = f"{hired.instance_type or 'a small machine'} at {hired.where}"
        ending = f"; {hired.detail}" if hired.detail else ""
        price = f"{money.exact(hired.usd_per_hour)}/h, {hired.basis}"
        yield f"Supervisor  {machine}, {price}, since {clock_time(hired.since)}{ending}"
    if sign and not state.is_finished:
        yield f"Supervised by  {sign.by}, since {clock_time(sign.since)}, last seen {clock_time(sign.at)}"


def _hired_json(hired: Hired) -> dict[str, Any]:
    return {
        "number": hired.number,
        "where": hired.where,
        "instance_type": hired.instance_type,
        "usd_per_hour": str(hired.usd_per_hour),
        "basis": hired.basis,
        "since": hired.since.isoformat(),
        "until": hired.until.isoformat() if hired.until else None,
        "detail": hired.detail,
    }


def _rent(lying: Stored, money: Money) -> str:
    usd = lying.usd_per_month
    if usd is None:
        return lying.basis or "price of the storage unknown"
    rent = f"{money.about(usd)}/month"
    if lying.is_assumed:
        return f"price unknown; {rent} at most known ({lying.basis})"
    return f"{rent} ({lying.basis})" if lying.basis else rent


def _attempt_json(state: RunState, attempt: Attempt, now: datetime) -> dict[str, Any]:
    offer = attempt.placement.offer
    return {
        "attempt": attempt.number,
        "provider": offer.provider,
        "region": offer.region,
        "zone": offer.zone,
        "instance_type": offer.instance_type,
        "capacity": offer.capacity.value,
        "usd_per_hour": str(attempt.placement.usd_per_hour),
        "why": attempt.why,
        "relieves": attempt.relieves,
        "ready_at": attempt.ready_at.isoformat() if attempt.ready_at else None,
        "handed_over_at": attempt.handed_over_at.isoformat() if attempt.handed_over_at else None,
        "refused": attempt.refused or None,
        "started_at": attempt.started_at.isoformat() if attempt.started_at else None,
        "billed_until": attempt.billed_until.isoformat() if attempt.billed_until else None,
        "outcome": attempt.outcome,
        "detail": attempt.detail,
        "noticed": attempt.noticed_at is not None,
        "first_step": attempt.first_step,
        "step": attempt.step,
        "step_seconds": attempt.step_seconds,
        "metrics": dict(attempt.metrics),
        "cost_usd": str(attempt_usd(state, attempt, now)),
    }
