"""doctor: is everything there that a run will need, and how is each thing mended that is not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import Output, OutputOption, PlainOption, console, print_json

if TYPE_CHECKING:
    from launcher.core.doctor.checkup import Check


def register(app: typer.Typer) -> None:
    text = "Check settings, credentials, clusters, buckets, prices and clock; say how to mend what is wrong."
    app.command("doctor", help=f"{text} Exit 0: nothing failed, 4: only credentials are missing, 1: else.")(doctor)


def doctor(
    train: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="a train.yaml whose clouds and buckets are checked, too")
    ] = None,
    *,
    cloud: Annotated[
        list[str] | None, typer.Option("--cloud", help="check this one, too; may be repeated", show_default=False)
    ] = None,
    plain: PlainOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    from launcher.core.doctor.checkup import exit_code
    from launcher.render.doctor import doctor_json, show_checks

    with _talk_to_stderr(plain=plain) as waiting:
        checks = _checks(train, cloud or (), waiting)
    if output is Output.JSON:
        print_json(doctor_json(checks))
    else:
        show_checks(console(plain=plain), checks)
    raise typer.Exit(exit_code(checks))


def _checks(train: Path | None, clouds: Sequence[str], waiting: Callable[[Sequence[str]], None]) -> tuple[Check, ...]:
    from launcher.adapters.checks.checkup import Checkup, read_settings
    from launcher.wiring import Wiring

    layered, odd = read_settings()
    if layered is None:
        return odd
    wired = Wiring(settings=layered.settings)
    checkup = Checkup(
        layered=layered,
        pricing=wired.pricing,
        train=train,
        clouds=clouds,
        gpus=wired.catalog,
        offers=lambda: wired.offers(None),
    )
    return (*odd, *checkup.run(waiting))


@contextlib.contextmanager
def _talk_to_stderr(*, plain: bool) -> Iterator[Callable[[Sequence[str]], None]]:
    """Who has not answered yet, on a terminal; and what SkyPilot prints is talk, too."""
    with contextlib.redirect_stdout(sys.stderr), console(stderr=True, plain=plain).status("") as status:
        yield lambda names: status.update(f"asking {', '.join(names[:4])}{' …' if len(names) > 4 else ''}")
