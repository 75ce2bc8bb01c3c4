"""The command line of a lab: `up | down | run COMMAND… [--folder FOLDER]`, and what the lab adds to it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.labs.lab import Lab


def a_parser(name: str, *own: str) -> argparse.ArgumentParser:
    """Of the lab in tests/labs/<name>, which has verbs of its `own`."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.labs.{name}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / f"spotlaunch-{name}-lab")
    parser.add_argument("verb", choices=["up", "down", "run", *own])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def obey(lab: Lab, arguments: argparse.Namespace, *, own: dict[str, Callable[[], None]], **where: str) -> None:
    """Do what is asked, and say on stderr how long it took.

    `own`: by verb, what this lab does beyond the others; `where`: options of its `command`.
    """
    started = time.monotonic()
    verbs = {"up": lab.up, "down": lab.down} | own
    try:
        if arguments.verb == "run":
            command = lab.command(*arguments.command, cwd=Path.cwd(), **where)
            os.execvpe(command[0], command, lab.environment())
        verbs[arguments.verb]()
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.verb}: {lab.folder}, {time.monotonic() - started:.1f} s", file=sys.stderr)
