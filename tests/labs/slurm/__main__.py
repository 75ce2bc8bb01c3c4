"""`python -m tests.labs.slurm up | down | run COMMAND… [--folder FOLDER]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.labs.slurm import SlurmLab


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.labs.slurm", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "spotlaunch-slurm-lab")
    parser.add_argument("--host", default="login", choices=["login", "node1", "node2"])
    parser.add_argument("verb", choices=["up", "down", "run"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    lab = SlurmLab(arguments.folder)
    started = time.monotonic()
    match arguments.verb:
        case "run":
            command = lab.command(*arguments.command, host=arguments.host, cwd=Path.cwd())
            os.execvpe(command[0], command, lab.environment())
        case "up":
            lab.up()
        case "down":
            lab.down()
    print(f"{arguments.verb}: {lab.folder}, {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"error: {error}")
