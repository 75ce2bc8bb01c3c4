"""checkpoints: look at what a run has saved, read it again, take it elsewhere, remove what is not needed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import Output, OutputOption, PlainOption, console, print_json, wiring

if TYPE_CHECKING:
    from launcher.core.runs.checkpoints import Keep
    from launcher.core.runs.state import RunState
    from launcher.wiring import Wiring


class Format(StrEnum):
    TORCH = "torch"
    SAFETENSORS = "safetensors"
    DCP = "dcp"


FolderArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="a run's id, or the path or URI of a run folder", show_default=False)
]
StepOption = Annotated[
    int | None, typer.Option("--step", min=0, help="the checkpoint of this step", show_default=False)
]
LEFTOVERS = "default: as its train.yaml says; of a folder without a run, all"


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What runs have saved.")
    group.command("ls", help="Every checkpoint, and what all of them take.")(ls)
    group.command("verify", help="Read all data again and compare it with its hashes.")(verify)
    group.command("export", help="Write one as files that other programs read.")(export)
    group.command("gc", help="Remove what need not be kept.")(gc)
    app.add_typer(group, name="checkpoints")


def ls(run: FolderArgument, *, plain: PlainOption = False, output: OutputOption = Output.TABLE) -> None:
    from launcher.adapters.checkpoint_store import CheckpointFolder
    from launcher.render.checkpoints import inventory_json, show_inventory

    found = CheckpointFolder(_uri(wiring(), run)).inventory()
    if output is Output.JSON:
        return print_json(inventory_json(found))
    return show_inventory(console(plain=plain), found)


def verify(run: FolderArgument, *, step: StepOption = None, plain: PlainOption = False) -> None:
    from launcher.adapters.checkpoint_store import CheckpointFolder
    from launcher.render.words import size

    answer, damaged = console(plain=plain), 0
    for one in CheckpointFolder(_uri(wiring(), run)).verify(step=step):
        damaged += bool(one.why)
        line = f"damaged: {one.why}" if one.bytes is None else f"whole, {size(one.bytes)}"
        answer.print(f" {one.name}  {line}", highlight=False, soft_wrap=True)
    if damaged:
        raise typer.Exit(1)


def export(
    run: FolderArgument,
    folder: Annotated[Path, typer.Argument(help="where to: a folder that does not exist yet", show_default=False)],
    *,
    to: Annotated[Format, typer.Option("--to", help="format", show_default=False)],
    step: StepOption = None,
    plain: PlainOption = False,
) -> None:
    from launcher.adapters.checkpoint_store import CheckpointFolder

    done = CheckpointFolder(_uri(wiring(), run)).export(folder, to=to.value, step=step)
    for one in done.skipped:
        console(stderr=True, plain=plain).print(
            f" {one.name} is damaged and was left out: {one.why}", highlight=False, soft_wrap=True
        )
    for name in done.files:
        console(plain=plain).print(str(folder / name), highlight=False, soft_wrap=True)
    console(stderr=True, plain=plain).print(f" {done.name} as {to.value}", highlight=False)


def gc(
    run: FolderArgument,
    *,
    keep: Annotated[
        int | None, typer.Option("--keep", min=2, help=f"how many of the newest stay; {LEFTOVERS}", show_default=False)
    ] = None,
    plain: PlainOption = False,
) -> None:
    from launcher.adapters.checkpoint_store import CheckpointFolder
    from launcher.core.runs.state import run_uris
    from launcher.render.words import size

    wired = wiring()
    uri = _uri(wired, run)
    state = next((one for one in wired.states() if uri in run_uris(one)), None)
    _demand_rest(state)
    done = CheckpointFolder(uri).collect(_keep(state, keep))
    console(plain=plain).print(
        f" {len(done.kept)} checkpoints stay, {size(done.stored_bytes)}; {len(done.removed)} removed, "
        f"{size(max(0, done.freed_bytes))} freed",
        highlight=False,
        soft_wrap=True,
    )


def _uri(wired: Wiring, run: str) -> str:
    """Of a run that the ledger knows, else what was written, if it can be a folder.

    Raises: NoSuchRun: it can be neither.
    """
    from launcher.cli.runs import full_id
    from launcher.core.runs.state import newest_run_uri
    from launcher.errors import NoSuchRun

    if "://" in run:
        return run.rstrip("/")
    try:
        return newest_run_uri(wired.state(full_id(wired, run)))
    except NoSuchRun:
        if Path(run).is_dir():
            return str(Path(run).absolute())
        raise NoSuchRun(f"{run} is neither a run in the ledger nor a folder; `launch status` lists the runs") from None


def _demand_rest(state: RunState | None) -> None:
    """Raises: InputError: a trainer may be writing; what it has in flight looks like what nobody needs."""
    from launcher.errors import InputError, Problem

    if state is not None and any(attempt.is_live for attempt in state.attempts):
        fix = f"it removes what it needs no more; or `launch stop {state.run_id}` first"
        raise InputError([Problem("L131", f"{state.run_id} is training", fix=fix)])


def _keep(state: RunState | None, newest: int | None) -> Keep:
    from launcher.core.runs.checkpoints import Keep

    if state is None:
        return Keep(newest=newest)
    told = state.spec.checkpoint
    best = told.keep_best
    return Keep(
        newest=told.keep if newest is None else newest,
        every_steps=told.keep_every_steps,
        best=None if best is None else (best.metric, best.mode, best.count),
    )
