"""What the backend makes of SkyPilot's answers, in the forms that SkyPilot 0.14.1 gave them in the labs.

The whole of it runs against a real SkyPilot in `tests/labs`; here each odd answer is met on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.adapters import skypilot_backend
from launcher.adapters.skypilot_backend import SkyPilotBackend
from launcher.adapters.skypilot_task import EXIT_MARK, Site
from launcher.core.machine import LaunchRequest, Phase
from launcher.errors import BackendError, LaunchRefused
from tests.builders import T0, a_placement
from tests.sim import SimClock

RUN = "digits-20260105-ab12"
JOB = f"{RUN}-001"
BEGAN = 1_767_614_400  # T0

pytest.importorskip("sky", reason="SkyPilot is not installed: pip install spotlaunch[sky]")
from sky import exceptions  # noqa: E402  # only where it is installed


def word(value: str) -> SimpleNamespace:
    return SimpleNamespace(value=value)


@dataclass
class ApiServer:
    """Clusters, requests and jobs, as SkyPilot's API server would answer for them."""

    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    provider: dict[str, str | None] = field(default_factory=dict)  # what a FORCE status finds; None: gone
    launches: list[SimpleNamespace] = field(default_factory=list)
    outcomes: dict[str, BaseException] = field(default_factory=dict)
    jobs: list[SimpleNamespace] | BaseException = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

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
            case "down":
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

    def began(self, status: str, *, request_id: str = "r1", at: float = BEGAN) -> None:
        self.launches.append(
            SimpleNamespace(name="sky.launch", cluster_name=JOB, status=status, request_id=request_id, created_at=at)
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    made = ApiServer()
    monkeypatch.setattr(skypilot_backend, "client", made)
    return made


@pytest.fixture
def backend(server: ApiServer, tmp_path: Path) -> SkyPilotBackend:
    return SkyPilotBackend(tmp_path, site=lambda _: Site(hooks="/hooks"), clock=SimClock(), demand_room=lambda _: None)


@pytest.fixture
def request_() -> LaunchRequest:
    return LaunchRequest(job=JOB, placement=a_placement(), setup=None, run="x", workdir="/home/me", env={})


def test_a_launch_is_begun_once_and_looked_at_until_it_has_ended(
    server: ApiServer, backend: SkyPilotBackend, request_: LaunchRequest
) -> None:
    backend.launch(request_)
    server.began("RUNNING")
    backend.launch(request_)

    assert server.submitted == [JOB]
    assert backend.phase(JOB) == Phase(kind="absent")
    assert backend.names(RUN) == (JOB,)


def test_a_launch_that_ended_without_a_machine_is_refused_with_the_clouds_words(
    server: ApiServer, backend: SkyPilotBackend, request_: LaunchRequest
) -> None:
    server.began("FAILED")
    server.outcomes["r1"] = exceptions.ResourcesUnavailableError("no", failover_history=[RuntimeError("none left")])

    with pytest.raises(LaunchRefused, match="none left") as refused:
        backend.launch(request_)

    assert refused.value.reason == "no_capacity"
    assert backend.phase(JOB) == Phase(kind="absent")


def test_a_launch_whose_end_nobody_knows_is_not_taken_for_a_refusal(
    server: ApiServer, backend: SkyPilotBackend, request_: LaunchRequest
) -> None:
    server.began("CANCELLED")
    server.outcomes["r1"] = exceptions.RequestCancelled("by somebody")

    with pytest.raises(BackendError):
        backend.launch(request_)


def test_an_api_server_that_forgot_its_requests_does_not_start_a_job_twice(
    server: ApiServer, backend: SkyPilotBackend, request_: LaunchRequest
) -> None:
    server.has_up(JOB)
    server.ran("RUNNING")

    backend.launch(request_)

    assert server.submitted == []
    assert backend.phase(JOB) == Phase(kind="running", started_at=T0)


def test_a_launch_that_died_with_its_api_server_is_begun_again(
    server: ApiServer, backend: SkyPilotBackend, request_: LaunchRequest
) -> None:
    server.has_up(JOB, ever_up=False)
    server.clusters[JOB]["status"] = word("INIT")

    assert backend.phase(JOB) == Phase(kind="absent")
    backend.launch(request_)

    assert server.submitted == [JOB]


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        ("PENDING", "", Phase(kind="starting", started_at=T0)),
        ("SETTING_UP", "", Phase(kind="starting", started_at=T0)),
        ("SUCCEEDED", "", Phase(kind="exited", exit_code=0, started_at=T0)),
        ("FAILED", f"{EXIT_MARK} 75 (node 0)\n", Phase(kind="exited", exit_code=75, started_at=T0)),
        ("FAILED", f"{EXIT_MARK} 0 (node 0)\n{EXIT_MARK} 137 (node 1)\n", Phase(
            kind="exited", exit_code=137, started_at=T0)),
        ("FAILED", "killed before it could say so", Phase(kind="exited", exit_code=None, started_at=T0)),
        ("FAILED_SETUP", "", Phase(kind="exited", exit_code=1, started_at=T0)),
        ("FAILED_DRIVER", "", Phase(kind="unreachable", started_at=T0)),
    ],
)  # fmt: skip
def test_a_job_is_what_its_status_and_its_last_line_say(
    server: ApiServer, backend: SkyPilotBackend, status: str, output: str, expected: Phase
) -> None:
    server.has_up(JOB)
    server.ran(status)
    server.ran("FAILED", job_id=2)  # submitted twice: it ran the first time
    server.output = output

    assert backend.phase(JOB) == expected


def test_a_job_that_failed_because_its_machine_was_taken_has_not_failed(
    server: ApiServer, backend: SkyPilotBackend
) -> None:
    server.has_up(JOB)
    server.ran("FAILED")
    server.provider[JOB] = None
    server.history[0]["usage_intervals"] = [(BEGAN, BEGAN + 300)]

    found = backend.phase(JOB)

    assert (found.kind, found.started_at) == ("gone", T0)
    assert found.gone_at is not None
    assert (found.gone_at - T0).total_seconds() == 300


@pytest.mark.parametrize(("nodes", "kind"), [(1, "exited"), (2, "gone")])
def test_one_lost_node_is_the_end_of_all(server: ApiServer, backend: SkyPilotBackend, nodes: int, kind: str) -> None:
    server.has_up(JOB, nodes=nodes)
    server.ran("FAILED")
    server.provider[JOB] = "INIT"

    assert backend.phase(JOB).kind == kind


Answer = Callable[[], BaseException]


@pytest.mark.parametrize(
    ("found", "kind"), [("UP", "unreachable"), ("INIT", "unreachable"), (None, "gone")], ids=["up", "init", "gone"]
)
def test_a_machine_that_does_not_answer_is_what_its_provider_says(
    server: ApiServer, backend: SkyPilotBackend, found: str | None, kind: str
) -> None:
    server.has_up(JOB)
    server.jobs = exceptions.CommandError(255, "ssh", "connection timed out", None)
    server.provider[JOB] = found

    assert backend.phase(JOB).kind == kind


def test_a_release_ends_a_launch_under_way_and_keeps_the_output(
    server: ApiServer, backend: SkyPilotBackend, request_: LaunchRequest
) -> None:
    server.has_up(JOB)
    server.began("RUNNING")
    server.output = "step 1\n"

    backend.stop(JOB)

    assert server.cancelled == ["r1"]
    assert server.clusters == {}
    assert backend.output_path(JOB).read_text() == "step 1\n"
    assert backend.phase(JOB) == Phase(kind="absent")
    with pytest.raises(LaunchRefused, match="a new attempt needs a new number"):
        backend.launch(request_)


def test_a_release_that_left_the_machine_is_not_believed(
    server: ApiServer, backend: SkyPilotBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.has_up(JOB)
    ask = server.ask
    monkeypatch.setattr(server, "ask", lambda verb, *args, **kwargs: verb != "down" and ask(verb, *args, **kwargs))

    with pytest.raises(BackendError, match="is still there"):
        backend.stop(JOB)


def test_only_the_runs_own_jobs_are_its_own(server: ApiServer, backend: SkyPilotBackend) -> None:
    for name in (JOB, f"{RUN}-010", f"{RUN}-002", f"{RUN}-supervisor", f"x{RUN}-003", "somebody-else"):
        server.has_up(name)

    assert backend.names(RUN) == (JOB, f"{RUN}-002", f"{RUN}-010")
