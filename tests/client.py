"""Somebody who starts runs and looks at them, with `launch` alone."""

from __future__ import annotations

import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar

from tests.trainers import last_loss

Run = dict[str, Any]


class Client(ABC):
    """All that is known of a run is what `launch status` and `launch logs` say."""

    patience_seconds: ClassVar[float]  # not an expectation: only an end for a test that would hang
    look_seconds: ClassVar[float]  # from one look at a run to the next

    @abstractmethod
    def _launched(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What became of `launch` with these arguments."""

    @abstractmethod
    def told(self, run_id: str, run: Run) -> str:
        """Everything there is to say of a run that went otherwise than wanted."""

    def launch(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """It must end with the code `expect`; None: any."""
        done = self._launched(*arguments)
        assert expect is None or done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, *arguments: str, approve: str = "50") -> str:
        """Launch detached; the run's id."""
        self.launch("train.yaml", "--approve", approve, "--detach", *arguments)
        return str(self.runs()[-1]["run_id"])

    def runs(self) -> list[Run]:
        return list(json.loads(self.launch("status", "-o", "json").stdout)["runs"])

    def run(self, run_id: str) -> Run:
        return dict(json.loads(self.launch("status", run_id, "-o", "json").stdout))

    def until(self, run_id: str, wanted: Callable[[Run], object]) -> Run:
        """Look at the run until it is as wanted."""
        return self._awaited(run_id, wanted)

    def finished(self, run_id: str) -> Run:
        """The run's last state."""
        return self._awaited(run_id, lambda run: run["outcome"] and not run["supervised"])

    def output(self, run_id: str) -> str:
        return self.launch("logs", run_id).stdout

    def final_loss(self, run_id: str) -> str:
        return last_loss(self.output(run_id))

    def _awaited(self, run_id: str, wanted: Callable[[Run], object]) -> Run:
        end = time.monotonic() + self.patience_seconds
        while time.monotonic() < end:
            run = self.run(run_id)
            if wanted(run):
                return run
            time.sleep(self.look_seconds)
        raise AssertionError(self.told(run_id, run))


def billed_seconds(attempt: dict[str, Any]) -> float:
    begin, end = (datetime.fromisoformat(attempt[key]) for key in ("started_at", "billed_until"))
    return (end - begin).total_seconds()
