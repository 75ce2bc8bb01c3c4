"""report: what finished runs say, all together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import (
    CurrencyOption,
    Output,
    OutputOption,
    PlainOption,
    console,
    money,
    print_json,
    wiring,
)

if TYPE_CHECKING:
    from launcher.core.runs.state import RunState


def register(app: typer.Typer) -> None:
    app.command("report", help="How good the estimates of finished runs were: launch report --estimates.")(report)


def report(
    *,
    estimates: Annotated[
        bool, typer.Option("--estimates", help="finished runs against their estimates: bias, error, coverage, causes")
    ] = False,
    team: Annotated[
        str | None, typer.Option("--team", help="runs whose tags.team is this; default: all", show_default=False)
    ] = None,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    from launcher.core.estimates.calibration import review
    from launcher.errors import InputError, Problem
    from launcher.render import reports as render

    if not estimates:
        raise InputError([Problem("L132", "launch report needs to know of what", fix="launch report --estimates")])
    wired = wiring()
    shown = money(currency, wired)
    states = wired.states()
    _known(team, states)
    found = review(states, team=team)
    if output is Output.JSON:
        return print_json(render.estimates_json(found))
    return render.show_estimates(console(plain=plain), found, shown)


def _known(team: str | None, states: Sequence[RunState]) -> None:
    """Raises: InputError: no run is of that team."""
    from launcher.errors import InputError, Problem

    teams = sorted({name for state in states if (name := state.spec.tags.get("team"))})
    if team is not None and team not in teams:
        known = f"write one of {', '.join(teams)}" if teams else "runs get one by tags: {team: …} in train.yaml"
        raise InputError([Problem("L133", f"no run is of team {team}", "--team", known)])
