"""run, plan, apply: from a file to an agreed amount."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.common import (
    CurrencyOption,
    Output,
    OutputOption,
    PlainOption,
    SuperviseOption,
    console,
    money,
    print_json,
    wiring,
)

if TYPE_CHECKING:
    from decimal import Decimal

    from launcher.api import Draft
    from launcher.core.estimates.estimate import Estimate
    from launcher.wiring import Wiring

FileArgument = Annotated[Path, typer.Argument(help="train.yaml", show_default=False)]
AllOption = Annotated[bool, typer.Option("--all", help="every place, and the refused ones with their reasons")]
PickOption = Annotated[int, typer.Option("--pick", min=1, help="the number of another plan in the table")]
ApproveOption = Annotated[
    str | None,
    typer.Option("--approve", metavar="USD", help="go if the high end of the range is not above it; stop there"),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="go without asking, for small amounts (confirm_below)")]
EgressOption = Annotated[
    str | None,
    typer.Option("--accept-egress", metavar="USD", help="agree to that much for data that leaves its region"),
]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="do not follow the run after the submit")]
SimulateOption = Annotated[
    int | None, typer.Option("--simulate", metavar="SEED", help="run here, against a spot market drawn from SEED")
]
ScaleOption = Annotated[float | None, typer.Option("--time-scale", min=0.001, help="market seconds in one second here")]


def register(app: typer.Typer) -> None:
    app.command("run", help="Estimate, ask, launch and follow; `launch train.yaml` is the same.")(run)
    app.command("plan", help="Estimate only: the ranked places, and where each dollar goes.")(plan)
    app.command("apply", help="Launch a plan saved with `launch plan --out`, if prices still agree.")(apply)


def run(
    file: FileArgument,
    *,
    approve: ApproveOption = None,
    yes: YesOption = False,
    pick: PickOption = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="stop after the plan")] = False,
    show_all: AllOption = False,
    detach: DetachOption = False,
    supervise: SuperviseOption = None,
    accept_egress: EgressOption = None,
    simulate: SimulateOption = None,
    time_scale: ScaleOption = None,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    wired = wiring(supervise)
    draft = _draft(wired, file, simulate=simulate, time_scale=time_scale, accept_egress=accept_egress, plain=plain)
    chosen = _show(wired, draft, pick, currency=currency, plain=plain, show_all=show_all, output=output)
    if not dry_run:
        quiet = output is Output.JSON
        _go(wired, draft, chosen, approve=approve, yes=yes, detach=detach, currency=currency, plain=plain, quiet=quiet)


def plan(
    file: FileArgument,
    *,
    out: Annotated[Path | None, typer.Option("--out", help="save the plan for `launch apply`")] = None,
    show_request: Annotated[
        bool, typer.Option("--show-request", help="instead: exactly what the backend would be asked for, as YAML")
    ] = False,
    pick: PickOption = 1,
    show_all: AllOption = False,
    supervise: SuperviseOption = None,
    accept_egress: EgressOption = None,
    simulate: SimulateOption = None,
    time_scale: ScaleOption = None,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    from launcher import api

    wired = wiring(supervise)
    draft = _draft(wired, file, simulate=simulate, time_scale=time_scale, accept_egress=accept_egress, plain=plain)
    if show_request:
        return _print_request(wired, draft, pick, output)
    chosen = _show(wired, draft, pick, currency=currency, plain=plain, show_all=show_all, output=output)
    if out:
        api.save_plan(draft, chosen, out)
        console(stderr=True, plain=plain).print(f" saved: `launch apply {out}` launches it while its price holds")
    return None


def apply(
    file: Annotated[Path, typer.Argument(help="a plan saved with `launch plan --out`", show_default=False)],
    *,
    accept_egress: EgressOption = None,
    approve: ApproveOption = None,
    yes: YesOption = False,
    detach: DetachOption = False,
    supervise: SuperviseOption = None,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
) -> None:
    from launcher import api

    wired = wiring(supervise)
    accepted = parse_amount(accept_egress, flag="--accept-egress")
    draft, chosen = api.load_plan(wired, file, accept_egress_usd=accepted)
    rank = draft.plan.ranked.index(chosen) + 1
    _show(wired, draft, rank, currency=currency, plain=plain, show_all=False, output=Output.TABLE)
    _go(wired, draft, chosen, approve=approve, yes=yes, detach=detach, currency=currency, plain=plain)


def _print_request(wired: Wiring, draft: Draft, pick: int, output: Output) -> None:
    from launcher import api

    request = api.first_request(wired, draft, api.choose(draft.plan, pick))
    if output is Output.JSON:
        return print_json({"schema": "launch/request/v1", "request": request})
    from ruamel.yaml import YAML

    YAML().dump(_blocks(request), sys.stdout)
    return None


def _blocks(value: Any) -> Any:
    """Texts of several lines are shown as such."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    if isinstance(value, dict):
        return {key: _blocks(item) for key, item in value.items()}
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value


def _draft(
    wired: Wiring, file: Path, *, simulate: int | None, time_scale: float | None, accept_egress: str | None, plain: bool
) -> Draft:
    """Listing a bucket may take seconds: stderr shows how far it is."""
    from launcher import api
    from launcher.render.plan import listing

    accepted = parse_amount(accept_egress, flag="--accept-egress")
    with listing(console(stderr=True, plain=plain)) as progress:
        return api.draft(
            wired, file, simulate=simulate, time_scale=time_scale, accept_egress_usd=accepted, progress=progress
        )


def _show(
    wired: Wiring, draft: Draft, pick: int, *, currency: str | None, plain: bool, show_all: bool, output: Output
) -> Estimate:
    from launcher import api
    from launcher.render.plan import plan_json, show_plan

    if output is Output.JSON:
        print_json(plan_json(draft.plan))
        return api.choose(draft.plan, pick)
    chosen = api.choose(draft.plan, pick)
    shown = money(currency, wired)
    show_plan(console(plain=plain), draft.plan, chosen, wired.terms, shown, all_offers=show_all)
    return chosen


def _go(
    wired: Wiring,
    draft: Draft,
    chosen: Estimate,
    *,
    approve: str | None,
    yes: bool,
    detach: bool,
    currency: str | None,
    plain: bool,
    quiet: bool = False,
) -> None:
    """Ask, submit and follow; `quiet`: stdout has had its one JSON document."""
    from launcher import api, engines
    from launcher.cli.runs import follow
    from launcher.render.words import simulated

    talk = console(stderr=True, plain=plain)
    amount = api.consent_without_asking(
        draft.spec, chosen, approve_usd=parse_amount(approve), yes=yes, below=wired.settings.confirm_below
    )
    if amount is None:
        chosen, amount = _ask(draft, chosen)
    offer = chosen.placement.offer
    checking = f" SkyPilot tries your access to {offer.provider} …"
    engines.demand_runnable(wired, draft.spec, offer, checking=lambda: talk.print(checking))
    run_id = api.submit(wired, draft, chosen, approved_usd=amount, telling=lambda what: talk.print(f" {what}"))
    label = simulated(chosen.placement.offer.simulated)
    talk.print(f"\n [bold]{run_id}[/] is submitted and stops at ${amount:,.2f}{label}")
    if detach:
        talk.print(f" launch status {run_id} · launch logs -f {run_id} · launch stop {run_id}")
        return
    raise typer.Exit(follow(wired, run_id, money(currency, wired), plain=plain, quiet=quiet))


def parse_amount(text: str | None, *, flag: str = "--approve") -> Decimal | None:
    """Raises: InputError: not an amount of dollars."""
    from launcher.core.spec import parse_usd
    from launcher.errors import InputError, Problem

    if text is None:
        return None
    try:
        return parse_usd(text)
    except ValueError as error:
        raise InputError([Problem("L122", f"{flag}: {error}")]) from None


def _ask(draft: Draft, chosen: Estimate) -> tuple[Estimate, Decimal]:
    """The person's choice and the amount agreed to. Raises: NotConfirmed: nobody is there, or the answer is no."""
    from launcher.core.estimates.planner import highest_usd, unaccepted_egress_usd
    from launcher.errors import NotConfirmed
    from launcher.render.plan import show_details
    from launcher.render.words import simulated

    ranked = draft.plan.ranked
    while True:
        high = highest_usd(draft.spec, chosen)
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise NotConfirmed(f"nobody is there to ask; --approve {high} agrees to this plan")
        number = ranked.index(chosen) + 1
        others = f"[1-{len(ranked)}] other plan  [d] details"
        label = simulated(chosen.placement.offer.simulated)
        egress = unaccepted_egress_usd(draft.spec, chosen)
        told = f", ${egress:,.2f} of it egress" if egress else ""
        sys.stderr.write(f" Submit plan {number} and stop at ${high:,}{label}{told}?  [y] yes  [N] no  {others}: ")
        sys.stderr.flush()
        answer = sys.stdin.readline().strip().lower()
        if answer in ("y", "yes"):
            return chosen, high
        if answer in ("d", "details"):
            show_details(console(stderr=True), chosen)
            continue
        if not (answer.isdigit() and 1 <= int(answer) <= len(ranked)):
            raise NotConfirmed("not confirmed; nothing was launched")
        chosen = ranked[int(answer) - 1]
