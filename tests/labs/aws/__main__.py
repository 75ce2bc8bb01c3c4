"""`python -m tests.labs.aws up | status | down | run COMMAND… [--folder FOLDER]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.labs.aws.lab import AwsLab


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.labs.aws", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "spotlaunch-aws-lab")
    parser.add_argument("verb", choices=["up", "status", "down", "run"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    lab = AwsLab(arguments.folder)
    started = time.monotonic()
    match arguments.verb:
        case "run":
            command = lab.command(*arguments.command, cwd=Path.cwd())
            os.execvpe(command[0], command, lab.environment())
        case "status":
            _show(lab)
        case "up":
            lab.up()
        case "down":
            lab.down()
    print(f"{arguments.verb}: {lab.folder}, {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 0


def _show(lab: AwsLab) -> None:
    seconds = {one.id: one.seconds(datetime.now(UTC)) for one in lab.independent_bill()}
    for one in lab.instances():
        capacity = "spot" if one.spot else "on demand"
        print(f"{one.id}  {one.state:10}  {one.instance_type:13} {capacity:9} {one.zone}  {seconds[one.id]:8.1f} s")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
