"""This computer and everything that SkyPilot reaches, as one backend."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.core.prices.pricing import LOCAL
from launcher.core.runs.machine import LaunchRequest, Phase
from launcher.core.runs.state import attempt_of
from launcher.ports import Backend


@dataclass(frozen=True, slots=True)
class Fleet:
    """A job lives on one side only, and which one that is can be asked of either: nothing is remembered."""

    local: Backend
    remote: Backend

    def launch(self, request: LaunchRequest) -> None:
        side = self.local if request.placement.offer.provider == LOCAL else self.remote
        side.launch(request)

    def phase(self, job: str) -> Phase:
        phase = self.local.phase(job)
        return phase if phase.kind != "absent" else self.remote.phase(job)

    def stop(self, job: str) -> None:
        self.remote.stop(job)
        self.local.stop(job)

    def names(self, run_id: str) -> tuple[str, ...]:
        return tuple(sorted({*self.local.names(run_id), *self.remote.names(run_id)}, key=attempt_of))
