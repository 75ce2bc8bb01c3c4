"""SkyPilot's API server as the adapters see it, in the forms of SkyPilot 0.14.1."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.adapters import skypilot_backend, skypilot_clusters
from tests.builders import RUN, T0

JOB = f"{RUN}-001"
BEGAN = int(T0.timestamp())


def word(value: str) -> SimpleNamespace:
    return SimpleNamespace(value=value)


@dataclass
class ApiServer:
    """Clusters, requests and jobs, in the place of `skypilot_client`."""

    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    provider: dict[str, str | None] = field(default_factory=dict)  # what a FORCE status finds; None: gone
    launches: list[SimpleNamespace] = field(default_factory=list)
    outcomes: dict[str, BaseException] = field(default_factory=dict)
    jobs: list[SimpleNamespace] | BaseException = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    keeps_machines: bool = False  # whatever it is told

    def has_up(self, job: str, *, ever_up: bool = True, nodes: int = 1) -> None:
        self.clusters[job] = {"name": job, "status": word("UP"), "cluster_ever_up": ever_up, "nodes": nodes}
        self.history.append({"name": job, "launched_at": BEGAN + 60, "usage_intervals": [(BEGAN, None)]})

    def ran(self, status: str, *, job_id: int = 1) -> None:
        assert isinstance(self.jobs, list)
        self.jobs.append(SimpleNamespace(job_id=job_id, status=word(status)))

    def ask(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        match verb:
            case "status":
                return self._status(args[0] if args else None, str(kwargs.get("refresh")))
            case "queue":
                if isinstance(self.jobs, BaseException):
                    raise self.jobs
                return self.jobs
            case "cost_report":
                return self.history
            case "down" if not self.keeps_machines:
                self.clusters.pop(args[0])
        return None

    def _status(self, names: list[str] | None, refresh: str) -> list[dict[str, Any]]:
        if "FORCE" in refresh:
            for name, found in self.provider.items():
                if found is None:
                    self.clusters.pop(name, None)
                else:
                    self.clusters[name]["status"] = word(found)
        return [c for name, c in self.clusters.items() if names is None or name in names]

    def submit(self, task: Any, *, name: str, config: Any) -> str:
        self.submitted.append(name)
        return "r1"

    def requests(self, name: str | None = None) -> list[SimpleNamespace]:
        return [one for one in self.launches if name in (None, one.cluster_name)]

    def outcome(self, request_id: str) -> BaseException | None:
        return self.outcomes.get(request_id)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def sky(self) -> SimpleNamespace:
        return SimpleNamespace(tail_logs=lambda *_, output_stream: output_stream.write(self.output))

    def began(self, status: str, *, name: str = JOB, request_id: str = "r1", at: float = BEGAN) -> None:
        self.launches.append(
            SimpleNamespace(name="sky.launch", cluster_name=name, status=status, request_id=request_id, created_at=at)
        )


def an_api_server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    """Whom the adapters ask from now on."""
    made = ApiServer()
    for module in (skypilot_backend, skypilot_clusters):
        monkeypatch.setattr(module, "client", made)
    return made
