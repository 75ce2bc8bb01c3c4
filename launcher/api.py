"""The launcher as functions: load, plan, submit, follow, stop. The command line is a thin coat over them."""

from __future__ import annotations

import getpass
import json
import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher import __version__
from launcher.adapters.system_clock import SystemClock
from launcher.adapters.yaml_spec import load_spec
from launcher.core.estimate import Estimate
from launcher.core.events import (
    Event,
    Pace,
    Promise,
    Quantiles,
    RunReopened,
    RunSubmitted,
    StopRequested,
    SupervisorHired,
    SupervisorReleased,
    UsdQuantiles,
)
from launcher.core.gravity import HOURS_PER_MONTH
from launcher.core.offers import Offer, Placement
from launcher.core.planner import Plan, plan, unaccepted_egress_usd, why_nothing
from launcher.core.saving import checkpoint_gb, durable_seconds, save_seconds, storage_usd_per_gb_month
from launcher.core.spec import Market, RunSpec
from launcher.core.state import RunState
from launcher.core.supervision import Host, supervisor_name
from launcher.core.takeover import UNSEEN
from launcher.core.workload import setup_seconds
from launcher.errors import (
    BackendError,
    InputError,
    LaunchError,
    LedgerConflict,
    NotConfirmed,
    NothingFeasible,
    OverBudget,
    PlanStale,
    Problem,
    RunFailed,
)
from launcher.ports import Progress
from launcher.wiring import Wiring

HIRE_SECONDS = 1200.0  # from the request of a supervisor's machine to its first sign of life
HIRE_LOOK_SECONDS = 2.0
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
    if simulate is not None:
        scale = time_scale or (spec.market.time_scale if spec.market else 60.0)
        spec = spec.model_copy(update={"market": Market(seed=simulate, time_scale=scale)})
    if accept_egress_usd is not None:
        spec = spec.accepting_egress(accept_egress_usd)
    spec = wiring.ask_buckets(spec, progress)
    return Draft(spec=spec, workdir=workdir, plan=make_plan(wiring, spec))


def make_plan(wiring: Wiring, spec: RunSpec) -> Plan:
    """Rank every place for `spec` at the prices of now.

    Raises: InputError: it is to be supervised from elsewhere, and cannot be.
    """
    if wiring.settings.supervise == "remote":
        wiring.outpost.demand(spec)
    clock = wiring.clock(spec)
    return plan(spec, wiring.book(spec, clock), wiring.measured(spec), now=clock.now(), rules=wiring.rules(spec))


def choose(plan: Plan, number: int = 1) -> Estimate:
    """The plan's entry of that rank. Raises: NothingFeasible, InputError: there is none."""
    if not plan.ranked:
        raise NothingFeasible(why_nothing(plan))
    if not 1 <= number <= len(plan.ranked):
        raise InputError([Problem("L120", f"there is no plan {number}", fix=f"choose 1 to {len(plan.ranked)}")])
    return plan.ranked[number - 1]


def highest_usd(spec: RunSpec, chosen: Estimate) -> Decimal:
    """What the user is asked to agree to: the high end of the range, or the spec's own cap where that is lower.

    Rounded up, to the dollar from $10 on and to the cent below.
    """
    if spec.cost.cap is not None and spec.cost.cap < chosen.high_usd:
        return spec.cost.cap
    return chosen.high_usd.quantize(Decimal(1) if chosen.high_usd >= 10 else Decimal("0.01"), ROUND_CEILING)


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
    spec, made = draft.spec, draft.plan
    measured = wiring.measured(spec)
    steps = {e.placement.offer.gpu: e.option.step_seconds for e in made.ranked}
    tariffs = wiring.book(spec, wiring.clock(spec)).tariffs

    def event(run_id: str) -> RunSubmitted:
        run_uri = wiring.run_uri(spec, run_id, chosen.placement.offer)
        storage, basis, is_assumed = storage_usd_per_gb_month(chosen.placement.offer, tariffs, uri=run_uri)
        return RunSubmitted(
            spec=spec.model_dump(mode="json"),
            workdir=str(draft.workdir),
            run_uri=run_uri,
            approved_usd=approved_usd,
            promise=_promise(chosen),
            pace=Pace(
                step_seconds=steps,
                setup_seconds=setup_seconds(spec, measured)[0],
                save_seconds=save_seconds(spec, measured)[0],
                durable_seconds=durable_seconds(spec, measured),
                checkpoint_gb=checkpoint_gb(spec, measured)[0],
                source=_basis(chosen),
            ),
            deadline_at=made.deadline_at,
            deadline_assumed=made.deadline_assumed,
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
    from launcher.core.events import AttemptRequested, Entry
    from launcher.core.state import fold

    run_id = f"{draft.spec.name}-{draft.plan.made_at:%Y%m%d}-0000"
    submitted = _submitted(wiring, draft, chosen, highest_usd(draft.spec, chosen))(run_id)
    intent = AttemptRequested(attempt=1, placement=chosen.placement, why="", egress_usd_per_read=Decimal(0))
    at = draft.plan.made_at
    entries = [Entry(run_id=run_id, seq=n, at=at, event=event) for n, event in enumerate((submitted, intent), start=1)]
    state = fold(None, entries)
    assert state is not None
    return wiring.request(state, state.attempts[0])


def _promise(chosen: Estimate) -> Promise:
    return Promise(
        hours=Quantiles(p10=chosen.hours.p10, p50=chosen.hours.p50, p90=chosen.hours.p90),
        cost_usd=UsdQuantiles(p10=chosen.cost_usd.p10, p50=chosen.cost_usd.p50, p90=chosen.cost_usd.p90),
        basis=_basis(chosen),
    )


def _basis(chosen: Estimate) -> str:
    return next((a.source for a in chosen.assumptions if a.name == "step time"), "")


def start_supervisor(wiring: Wiring, run_id: str) -> None:
    """A process of its own that outlives this one and its terminal; harmless where the run has one already.

    The shell puts it into the background and ends, so that it is nobody's child who would have to wait for it.
    """
    with wiring.log_path(run_id).open("ab") as log:
        subprocess.run(
            ["sh", "-c", '"$@" &', "sh", sys.executable, "-m", "launcher.supervise", run_id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=True,
        )


def supervise(wiring: Wiring, run_id: str, offer: Offer | None, *, telling: Callable[[str], None]) -> None:
    """See that the run has a supervisor: one on this machine, or a hired one for a run at `offer`.

    Raises: LaunchRefused, BackendError, RunFailed: the run is recorded, and nobody was found to supervise it.
    """
    if wiring.settings.supervise == "here":
        start_supervisor(wiring, run_id)
    else:
        _hire_supervisor(wiring, run_id, offer or _likely_offer(wiring, run_id), telling)


def _likely_offer(wiring: Wiring, run_id: str) -> Offer:
    """Where the run would go on."""
    state = wiring.state(run_id)
    return state.attempt.placement.offer if state.attempt else choose(make_plan(wiring, state.spec)).placement.offer


def _hire_supervisor(wiring: Wiring, run_id: str, offer: Offer, telling: Callable[[str], None]) -> None:
    """Ask for the machine, and wait until its supervisor says that it lives: then this one may be closed."""
    host = wiring.host(offer)
    if not isinstance(host, Host):
        raise InputError([Problem("L153", host.reason if host else "the supervisor lives here")])
    state = _release_former(wiring, run_id)
    number = len(state.hired) + 1
    hired = SupervisorHired(
        number=number,
        where=host.infra,
        instance_type=host.instance_type,
        usd_per_hour=host.usd_per_hour,
        basis=host.basis,
        closing_seconds=host.closing_seconds,
        by=getpass.getuser(),
    )
    state = _record(wiring, run_id, hired)
    what = f"{host.instance_type or 'a small machine'} at {host.infra}, ${host.usd_per_hour:,.2f}/h"
    telling(f"a machine for the supervisor is hired: {what}; leave this one on until it is there")
    try:
        wiring.outpost.hire(state, host, number, now=SystemClock().now())
        _await_supervisor(wiring, run_id)
    except LaunchError as error:
        was_there = _dismiss(wiring, run_id) is not False
        _record(wiring, run_id, SupervisorReleased(number=number, was_there=was_there, detail=str(error)))
        raise RunFailed(f"{run_id} has no supervisor: {error}; `launch resume {run_id}` tries again") from error
    telling("the supervisor is there; this machine is no longer needed")


def _await_supervisor(wiring: Wiring, run_id: str) -> None:
    """Raises: LaunchRefused: its machine was not granted, or could not be set up. RunFailed: it keeps silent."""
    clock = SystemClock()
    until = clock.now() + timedelta(seconds=HIRE_SECONDS)
    while not wiring.is_supervised_elsewhere(state := wiring.state(run_id)) and not state.is_finished:
        if clock.now() > until:
            raise RunFailed(f"no sign of it in {HIRE_SECONDS / 60:.0f} min; `sky logs {supervisor_name(run_id)}`")
        with suppress(BackendError):  # SkyPilot is asked again
            wiring.outpost.demand_hired(run_id)
        clock.sleep(HIRE_LOOK_SECONDS)


def _release_former(wiring: Wiring, run_id: str) -> RunState:
    state = wiring.state(run_id)
    for former in (h for h in state.hired if h.until is None):
        detail = "it gave no sign of life and was ended" if _dismiss(wiring, run_id) else UNSEEN
        state = _record(wiring, run_id, SupervisorReleased(number=former.number, was_there=True, detail=detail))
    return state


def _dismiss(wiring: Wiring, run_id: str) -> bool | None:
    """Whether SkyPilot knew the machine here, and ended it; `None`: it did not say."""
    try:
        return wiring.outpost.dismiss(run_id)
    except LaunchError:
        return None


def request_stop(wiring: Wiring, run_id: str, *, reason: str = "") -> RunState:
    """Ask the run to save and end. Raises: NoSuchRun."""
    return _record(wiring, run_id, StopRequested(by=getpass.getuser(), reason=reason))


def reopen(wiring: Wiring, run_id: str, *, approved_usd: Decimal) -> RunState:
    """Let a run that ended without success go on. Raises: NoSuchRun, OverBudget: that much is spent already."""
    from launcher.core.state import spent_usd

    state = wiring.state(run_id)
    spent = spent_usd(state, state.finished_at or state.at)
    if approved_usd <= spent:
        raise OverBudget(f"${spent:,.2f} are spent already; --approve an amount above that, for the whole run")
    return _record(wiring, run_id, RunReopened(approved_usd=approved_usd, by=getpass.getuser()))


def _record(wiring: Wiring, run_id: str, event: Event) -> RunState:
    """Append behind whatever the supervisor writes at the same time."""
    while True:
        state = wiring.state(run_id)
        try:
            wiring.ledger.append(run_id, [event], after_seq=state.seq, at=wiring.run_clock(state).now())
            return wiring.state(run_id)
        except LedgerConflict:
            continue


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


def load_plan(wiring: Wiring, path: Path) -> tuple[Draft, Estimate]:
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
    made = make_plan(wiring, saved.spec)
    key = saved.placement.offer.key
    now = next((e for e in made.ranked if e.placement.offer.key == key), None)
    if now is None:
        why = next((r.reason for r in made.refused if r.offer.key == key), "nobody offers it any more")
        raise PlanStale(f"{key} can no longer be taken: {why}; make the plan again")
    drift = now.placement.usd_per_hour / saved.placement.usd_per_hour - 1
    if abs(drift) > MAX_DRIFT:
        before, after = saved.placement.usd_per_hour, now.placement.usd_per_hour
        raise PlanStale(f"{key} was ${before:,.2f}/h and is ${after:,.2f}/h now ({drift:+.0%}); make the plan again")
    return Draft(spec=saved.spec, workdir=saved.workdir, plan=made), now


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
        raise NotConfirmed(f"${egress:,.2f} of it is egress: --accept-egress {whole} or data.max_egress_usd agrees")
    if approve_usd is not None:
        return approve(spec, chosen, amount=approve_usd)
    high = highest_usd(spec, chosen)
    if high > below:
        raise NotConfirmed(f"--yes serves below ${below:,.2f}; this may cost ${high:,.2f}: use --approve {high}")
    return high
