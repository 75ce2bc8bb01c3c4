"""An engineer in a lab: her folder, the commands she types there, and what she sees."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PATIENCE_SECONDS = 420.0  # not an expectation: only an end for a test that would hang


class Place(Protocol):
    """A host of a lab."""

    def run(self, argv: list[str], *, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True)
class User:
    """`folder` holds her train.yaml, pricing.yaml and script; `state` is what the launcher keeps for her."""

    place: Place
    folder: Path
    state: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def launch(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        env = {"LAUNCH_STATE_FOLDER": str(self.state), "LAUNCH_POLL_SECONDS": "1", "PYTHONUNBUFFERED": "1"}
        done = self.place.run(["launch", *arguments], env=env | dict(self.environ), cwd=self.folder)
        assert expect is None or done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, *arguments: str, approve: str = "50") -> str:
        """Launch detached; the run's id."""
        self.launch("train.yaml", "--approve", approve, "--detach", *arguments)
        return str(json.loads(self.launch("status", "-o", "json").stdout)["runs"][-1]["run_id"])

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(json.loads(self.launch("status", run_id, "-o", "json").stdout))

    def until(self, run_id: str, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Look at the run until it is as wanted."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            run = self.run(run_id)
            if wanted(run):
                return run
            assert not run["outcome"], self.told(run_id, run)
            time.sleep(2.0)  # each look is a process that takes a second
        raise AssertionError(self.told(run_id, run))

    def finished(self, run_id: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            run = self.run(run_id)
            if run["outcome"] and not run["supervised"]:
                return run
            time.sleep(2.0)
        raise AssertionError(self.told(run_id, run))

    def told(self, run_id: str, run: dict[str, Any]) -> str:
        """Everything there is to say of a run that went otherwise than wanted."""
        log = "\n".join(path.read_text()[-4000:] for path in self.state.glob("logs/*"))
        return f"{json.dumps(run, indent=1)}\n{log}\n{self.launch('logs', run_id, expect=None).stdout[-4000:]}"

    def final_loss(self, run_id: str) -> str:
        return re.findall(r"final loss (\S+)", self.launch("logs", run_id).stdout)[-1]
