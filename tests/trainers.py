"""The trainings that whole runs are tested with, and what they come to where nobody disturbs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TRAINER = Path(__file__).parent / "system" / "trainer.py"
RANKS_TRAINER = Path(__file__).parent / "labs" / "ranks_trainer.py"


def undisturbed(*command: str, steps: int, folder: Path, timeout_seconds: float | None = None) -> str:
    """The last loss of a training of so many `steps` that nobody disturbs, without any launcher."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"STEPS": str(steps)},
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout_seconds,
    )
    return last_loss(done.stdout)


def last_loss(output: str) -> str:
    """Of what a trainer printed; in hexadecimal, so that equal means to the last bit."""
    return str(re.findall(r"final loss (\S+)", output)[-1])
