"""`launch`: parse, one call, render, exit code. `launch train.yaml` is `launch run train.yaml`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer
from typer.core import TyperGroup

from launcher.cli import checkpoints, doctor, files, plans, replay, reports, runs
from launcher.cli.common import console

INTERRUPTED = 130


class _DefaultsToRun(TyperGroup):
    """A first argument that looks like a file means `run`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's Context is click's
        if args and args[0] not in self.commands and (args[0].endswith((".yaml", ".yml")) or Path(args[0]).is_file()):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="launch",
    cls=_DefaultsToRun,
    help="Launch a PyTorch training on the cheapest capacity that meets its deadline. `launch train.yaml` estimates, "
    "asks, places, resumes after preemptions and accounts for every dollar.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plans.register(app)
runs.register(app)
files.register(app)
checkpoints.register(app)
doctor.register(app)
reports.register(app)
replay.register(app)


def main() -> None:
    """The process's entry: every `LaunchError` becomes its message and its exit code."""
    from launcher.errors import LaunchError

    try:
        app(prog_name="launch", standalone_mode=True)
    except LaunchError as error:
        from launcher.render.words import failure

        console(stderr=True).print(failure(error), highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: `launch offers | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
