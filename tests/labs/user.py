"""An engineer in a lab: her folder, the commands she types there, and what she sees."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.client import Client, Run


class Place(Protocol):
    """A host of a lab."""

    def run(self, argv: list[str], *, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True)
class User(Client):
    """`folder` holds her train.yaml, pricing.yaml and script; `state` is what the launcher keeps for her."""

    place: Place
    folder: Path
    state: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    patience_seconds = 420.0
    look_seconds = 2.0  # each look is a process that takes a second

    def _launched(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {"LAUNCH_STATE_FOLDER": str(self.state), "LAUNCH_POLL_SECONDS": "1", "PYTHONUNBUFFERED": "1"}
        return self.place.run(["launch", *arguments], env=env | dict(self.environ), cwd=self.folder)

    def until(self, run_id: str, wanted: Callable[[Run], object]) -> Run:
        """Look at the run until it is as wanted, which it must be before it ends."""
        run = super().until(run_id, lambda run: wanted(run) or run["outcome"])
        assert wanted(run), self.told(run_id, run)
        return run

    def told(self, run_id: str, run: Run) -> str:
        log = "\n".join(path.read_text()[-4000:] for path in self.state.glob("logs/*"))
        return f"{json.dumps(run, indent=1)}\n{log}\n{self.launch('logs', run_id, expect=None).stdout[-4000:]}"
