"""What several commands share: the wiring, the output, the currency."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from launcher.render.words import Money
    from launcher.wiring import Wiring


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table for people, json for programs")]
CurrencyOption = Annotated[
    str | None, typer.Option("--currency", help="of what is printed, e.g. EUR; its rate is in pricing.yaml")
]
PlainOption = Annotated[bool, typer.Option("--plain", help="no colour, no bar")]


class Supervise(StrEnum):
    HERE = "here"
    REMOTE = "remote"


SuperviseOption = Annotated[
    Supervise | None,
    typer.Option("--supervise", help="from this machine, or from a small one that is hired; default: as the settings"),
]


def wiring(supervise: Supervise | None = None) -> Wiring:
    """Raises: InputError: a settings file or variable is wrong."""
    from launcher.adapters.settings import load_settings
    from launcher.wiring import Wiring

    settings = load_settings().settings
    return Wiring(settings=settings.model_copy(update={"supervise": supervise.value}) if supervise else settings)


def console(*, stderr: bool = False, plain: bool = False) -> Console:
    """stdout is the answer, stderr is talk; `NO_COLOR` is honoured, and a pipe is as wide as it needs to be."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 160
    return Console(
        stderr=stderr, width=width, no_color=True if plain else None, force_terminal=False if plain else None
    )


def money(name: str | None, wired: Wiring) -> Money:
    """The currency asked for, else the settings'. Raises: InputError: it has no rate."""
    from launcher.errors import InputError, Problem
    from launcher.render.words import Money

    wanted = (name or wired.settings.currency).upper()
    if wanted == "USD":
        return Money()
    rates = wired.terms.currencies
    rate = rates.get(wanted)
    if rate is None:
        known = ", ".join(["USD", *rates])
        fix = f"add under currencies in pricing.yaml:  {wanted}: {{usd_per_unit: …, as_of: …}}"
        raise InputError([Problem("L121", f"no rate for {wanted}; known: {known}", fix=fix)])
    return Money(currency=wanted, usd_per_unit=rate.usd_per_unit, rate_as_of=rate.as_of)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
