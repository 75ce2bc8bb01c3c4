"""The launcher as functions: load, plan, submit, follow, stop. The command line is a thin coat over them."""

from __future__ import annotations

import getpass
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher import __version__, engines, supervision
from launcher.adapters.system_clock import SystemClock
from launcher.adapters.yaml_spec import load_spec
from launcher.core.estimates.estimate import Estimate
from launcher.core.estimates.planner import Plan, highest_usd, plan, unaccepted_egress_usd, why_nothing
from launcher.core.estimates.saving import checkpoint_gb, durable_seconds, save_seconds, storage_usd_per_gb_month
from launcher.core.estimates.workload import setup_seconds
from launcher.core.gravity import HOURS_PER_MONTH
from launcher.core.offers import Offer, Placement
from launcher.core.replays.hindsight import of_run
from launcher.core.replays.prospect import prospect_of_run, prospect_of_spec
from launcher.core.replays.replay import Question, Replay, of_spec
from launcher.core.runs.events import (
    Expected,
    Pace,
    Promise,
    PromisedStep,
    Quantiles,
    RunReopened,
    RunSubmitted,
    StopRequested,
    UsdQuantiles,
)
from launcher.core.runs.state import RunState
from launcher.core.spec import Market, RunSpec
from launcher.errors import (
    InputError,
    LaunchError,
    LedgerConflict,
    NotConfirmed,
    NothingFeasible,
    OverBudget,
    PlanStale,
    Problem,
)
from launcher.ports import Progress
from launcher.wiring import Wiring

MAX_DRIFT = Decimal("0.05")  # a plan whose price moved further is made again, not applied


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A spec, its plan, and where its training script lies."""

    spec: RunSpec
    workdir: Path
    plan: Plan


def draft(
    wiring: Wiring,
    path: Path,
    *,
    simulate: int | None = None,
    time_scale: float | None = None,
    accept_egress_usd: Decimal | None = None,
    progress: Progress = lambda *_: None,
) -> Draft:
    """Read `path`, ask its buckets what it does not say of them, and plan it.

    `simulate` runs it against a market drawn from that seed; `accept_egress_usd` is a consent that goes before what the
    file says. Raises: InputError: train.yaml, pricing.yaml or the market is wrong, or a bucket cannot be asked.
    """
    spec, workdir = _load(wiring, path)
    if simulate is not None:
        scale = time_scale or (spec.market.time_scale if spec.market else 60.0)
        spec = spec.model_copy(update={"market": Market(seed=simulate, time_scale=scale)})
    if accept_egress_usd is not None:
        spec = spec.accepting_egress(accept_egress_usd)
    spec = wiring.ask_buckets(spec, progress)
    return Draft(spec=spec, workdir=workdir, plan=make_plan(wiring, spec))


def _load(wiring: Wiring, path: Path) -> tuple[RunSpec, Path]:
    """The spec, its paths absolute, and the folder of its script."""
    spec = load_spec(path, wiring.catalog)
    here = path.absolute().parent
    workdir = (here / spec.workdir).resolve()
    if not workdir.is_dir():
        raise InputError([Problem("L106", f"workdir {spec.workdir} is no folder", str(path), f"it means {workdir}")])
    if spec.checkpoint.uri is not None and "://" not in spec.checkpoint.uri:
        absolute_uri = str((here / Path(spec.checkpoint.uri).expanduser()).resolve())
        spec = spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"uri": absolute_uri})})
    if spec.market is not None and spec.market.file is not None:
        absolute = spec.market.model_copy(update={"file": str((here / spec.market.file).resolve())})
        spec = spec.model_copy(update={"market": absolute})
    return spec, workdir


def make_plan(wiring: Wiring, spec: RunSpec) -> Plan:
    """Rank every place for `spec` at the prices of now.

    Raises: InputError: it is to be supervised from elsewhere, and cannot be.
    """
    if wiring.settings.supervise == "remote":
        wiring.outpost.demand(spec)
    clock = wiring.clock(spec)
    return plan(spec, wiring.book(spec, clock), wiring.measured(spec), now=clock.now(), rules=wiring.rules(spec))


def replay_spec(wiring: Wiring, path: Path, question: Question, *, progress: Progress = lambda *_: None) -> Replay:
    """What the run that `path` describes would cost under each policy. Raises: as `draft`, and NothingFeasible."""
    spec = wiring.ask_buckets(_load(wiring, path)[0], progress)
    clock = wiring.clock(spec)
    book, rules = wiring.book(spec, clock), wiring.rules(spec)
    return of_spec(question, prospect_of_spec(spec, book, wiring.measured(spec), now=clock.now(), rules=rules))


def replay_run(wiring: Wiring, run_id: str, question: Question) -> Replay:
    """What the run would have cost under each policy, beside what it did cost. Raises: NoSuchRun, NothingFeasible."""
    state = wiring.state(run_id)
    terms, clock = wiring.of(state), wiring.run_clock(state)
    offers = terms.prices(state.spec, clock).offers(state.submitted_at)
    book = replace(terms.book(state.spec, clock), offers=offers)
    return of_run(question, state, prospect_of_run(state, book, rules=wiring.rules(state.spec)), now=clock.now())


def choose(plan: Plan, number: int = 1) -> Estimate:
    """The plan's entry of that rank. Raises: NothingFeasible, InputError: there is none."""
    if not plan.ranked:
        raise NothingFeasible(why_nothing(plan))
    if not 1 <= number <= len(plan.ranked):
        raise InputError([Problem("L120", f"there is no plan {number}", fix=f"choose 1 to {len(plan.ranked)}")])
    return plan.ranked[number - 1]


def approve(spec: RunSpec, chosen: Estimate, *, amount: Decimal) -> Decimal:
    """The amount at which the run will be stopped. Raises: OverBudget: the high end of the range is above `amount`."""
    high = highest_usd(spec, chosen)
    if high > amount:
        raise OverBudget(f"the run may cost ${high:,.2f} (80 % range), above the ${amount:,.2f} approved")
    return amount if spec.cost.cap is None else min(amount, spec.cost.cap)


def submit(
    wiring: Wiring,
    draft: Draft,
    chosen: Estimate,
    *,
    approved_usd: Decimal,
    telling: Callable[[str], None] = lambda _: None,
) -> str:
    """Record the run, start its supervisor, and return its id; `telling` hears what takes a while."""
    event = _submitted(wiring, draft, chosen, approved_usd)
    wall = SystemClock()  # the run's own time begins at this instant, scaled or not
    while True:
        run_id = f"{draft.spec.name}-{wall.now():%Y%m%d}-{secrets.token_hex(2)}"
        try:
            submitted = event(run_id)
            wiring.ledger.append(run_id, [submitted], after_seq=0, at=wall.now())
            break
        except LedgerConflict:
            continue  # four hex digits were taken by an earlier run of today
    supervise(wiring, run_id, chosen.placement.offer, telling=telling)
    return run_id


def _submitted(wiring: Wiring, draft: Draft, chosen: Estimate, approved_usd: Decimal) -> Any:
    spec, made, measured = draft.spec, draft.plan, draft.plan.measured

    def event(run_id: str) -> RunSubmitted:
        run_uri = wiring.run_uri(spec, run_id, chosen.placement.offer)
        storage, basis, is_assumed = storage_usd_per_gb_month(chosen.placement.offer, wiring.tariffs, uri=run_uri)
        return RunSubmitted(
            spec=spec.model_dump(mode="json"),
            workdir=str(draft.workdir),
            run_uri=run_uri,
            approved_usd=approved_usd,
            promise=_promise(chosen),
            pace=Pace(
                step_seconds=dict(made.step_seconds),
                setup_seconds=setup_seconds(spec, measured)[0],
                save_seconds=save_seconds(spec, measured)[0],
                durable_seconds=durable_seconds(spec, measured),
                checkpoint_gb=checkpoint_gb(spec, measured)[0],
                source=_basis(chosen),
            ),
            deadline_at=made.deadline_at,
            deadline_assumed=made.deadline_assumed,
            begins_at=chosen.placement.offer.key,
            submitted_by=getpass.getuser(),
            version=__version__,
            storage_usd_per_gb_hour=storage / HOURS_PER_MONTH,
            storage_basis=basis,
            storage_assumed=is_assumed,
            pricing=str(wiring.pricing) if wiring.pricing else None,
            time_scale=spec.market.time_scale if spec.market else 1.0,
            simulated=spec.market is not None,
        )

    return event


def first_request(wiring: Wiring, draft: Draft, chosen: Estimate) -> dict[str, Any]:
    """Exactly what the first attempt would ask its backend for; nothing is recorded or asked."""
    from launcher.core.runs.events import AttemptRequested, Entry
    from launcher.core.runs.state import fold

    run_id = f"{draft.spec.name}-{draft.plan.made_at:%Y%m%d}-0000"
    submitted = _submitted(wiring, draft, chosen, highest_usd(draft.spec, chosen))(run_id)
    intent = AttemptRequested(attempt=1, placement=chosen.placement, why="", egress_usd_per_read=Decimal(0))
    at = draft.plan.made_at
    entries = [Entry(run_id=run_id, seq=n, at=at, event=event) for n, event in enumerate((submitted, intent), start=1)]
    state = fold(None, entries)
    assert state is not None
    return engines.request_document(wiring, state, state.attempts[0])


def _promise(chosen: Estimate) -> Promise:
    return Promise(
        hours=Quantiles(p10=chosen.hours.p10, p50=chosen.hours.p50, p90=chosen.hours.p90),
        cost_usd=UsdQuantiles(p10=chosen.cost_usd.p10, p50=chosen.cost_usd.p50, p90=chosen.cost_usd.p90),
        basis=_basis(chosen),
        step=_promised_step(chosen),
        expected=Expected(
            preemptions=chosen.preemptions,
            restart_hours=chosen.restart_hours,
            usd_per_hour=chosen.placement.usd_per_hour,
            parts_usd=dict(chosen.parts),
            fallback_hours=chosen.fallback_hours,
            fallback_usd_per_hour=chosen.fallback_usd_per_hour,
        ),
    )


def _promised_step(chosen: Estimate) -> PromisedStep | None:
    if chosen.step is None:
        return None
    correction = chosen.step.correction
    return PromisedStep(
        gpu=chosen.placement.offer.gpu,
        source=chosen.step.kind,
        seconds=chosen.step.seconds,
        factor80=chosen.step.factor80,
        shift=correction.shift if correction else 1.0,
        width=correction.width if correction else 1.0,
    )


def _basis(chosen: Estimate) -> str:
    return next((a.source for a in chosen.assumptions if a.name == "step time"), "")


def supervise(wiring: Wiring, run_id: str, offer: Offer | None = None, *, telling: Callable[[str], None]) -> None:
    """See that the run has a supervisor: one on this machine, or a hired one beside `offer`, where the run will be.

    Raises: RunFailed: the run is recorded, and nobody was found to supervise it. InputError, NothingFeasible: no place
    beside which one could be hired.
    """
    if wiring.settings.supervise == "here":
        supervision.start(wiring, run_id)
    else:
        supervision.hire(wiring, run_id, offer or _likely_offer(wiring, run_id), telling=telling)


def _likely_offer(wiring: Wiring, run_id: str) -> Offer:
    """Where the run would go on."""
    state = wiring.state(run_id)
    return state.attempt.placement.offer if state.attempt else choose(make_plan(wiring, state.spec)).placement.offer


def request_stop(wiring: Wiring, run_id: str, *, reason: str = "") -> RunState:
    """Ask the run to save and end. Raises: NoSuchRun."""
    return wiring.record(run_id, StopRequested(by=getpass.getuser(), reason=reason))


def reopen(wiring: Wiring, run_id: str, *, approved_usd: Decimal) -> RunState:
    """Let a run that ended without success go on. Raises: NoSuchRun, OverBudget: that much is spent already."""
    from launcher.core.runs.state import spent_usd

    state = wiring.state(run_id)
    spent = spent_usd(state, state.finished_at or state.at)
    if approved_usd <= spent:
        raise OverBudget(f"${spent:,.2f} are spent already; --approve an amount above that, for the whole run")
    return wiring.record(run_id, RunReopened(approved_usd=approved_usd, by=getpass.getuser()))


class SavedPlan(BaseModel):
    """What `launch plan --out` writes: enough to see later whether the world still agrees."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_name: str = "launch/saved-plan/v1"
    spec: RunSpec
    workdir: Path
    placement: Placement
    high_usd: Decimal
    made_at: datetime


def save_plan(draft: Draft, chosen: Estimate, path: Path) -> None:
    """Raises: LaunchError: the file cannot be written."""
    saved = SavedPlan(
        spec=draft.spec,
        workdir=draft.workdir,
        placement=chosen.placement,
        high_usd=highest_usd(draft.spec, chosen),
        made_at=draft.plan.made_at,
    )
    try:
        path.write_text(saved.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise LaunchError(f"{path} cannot be written: {error.strerror}") from error


def load_plan(wiring: Wiring, path: Path, *, accept_egress_usd: Decimal | None = None) -> tuple[Draft, Estimate]:
    """The saved choice, at the prices of now.

    Raises: InputError: not a saved plan. PlanStale: its offer is gone, or its price moved by more than `MAX_DRIFT`.
    """
    try:
        saved = SavedPlan.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            [Problem("L130", f"is not a saved plan: {reason}", str(path), "write one with `launch plan --out`")]
        ) from None
    spec = saved.spec if accept_egress_usd is None else saved.spec.accepting_egress(accept_egress_usd)
    made = make_plan(wiring, spec)
    key = saved.placement.offer.key
    now = next((e for e in made.ranked if e.placement.offer.key == key), None)
    if now is None:
        why = next((r.reason for r in made.refused if r.offer.key == key), "nobody offers it any more")
        raise PlanStale(f"{key} can no longer be taken: {why}; make the plan again")
    drift = now.placement.usd_per_hour / saved.placement.usd_per_hour - 1
    if abs(drift) > MAX_DRIFT:
        before, after = saved.placement.usd_per_hour, now.placement.usd_per_hour
        raise PlanStale(f"{key} was ${before:,.2f}/h and is ${after:,.2f}/h now ({drift:+.0%}); make the plan again")
    return Draft(spec=spec, workdir=saved.workdir, plan=made), now


def consent_without_asking(
    spec: RunSpec, chosen: Estimate, *, approve_usd: Decimal | None, yes: bool, below: Decimal
) -> Decimal | None:
    """The approved amount that the flags give; `None` where a person has to be asked.

    Raises: OverBudget: more may be needed than --approve allows. NotConfirmed: --yes does not serve so much, or much of
    it is egress that nobody agreed to.
    """
    if approve_usd is None and not yes:
        return None
    egress = unaccepted_egress_usd(spec, chosen)
    if egress is not None:
        whole = egress.quantize(Decimal(1), ROUND_CEILING)
        raise NotConfirmed(f"${egress:,.2f} of it is egress: --accept-egress {whole} or cost.max_egress_usd agrees")
    if approve_usd is not None:
        return approve(spec, chosen, amount=approve_usd)
    high = highest_usd(spec, chosen)
    if high > below:
        raise NotConfirmed(f"--yes serves below ${below:,.2f}; this may cost ${high:,.2f}: use --approve {high}")
    return high
