"""What the backend makes of SkyPilot's answers, in the forms that SkyPilot 0.14.1 gave them in the labs.

The whole of it runs against a real SkyPilot in `tests/labs`; here each odd answer is met on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.adapters.skypilot_backend import SkyPilotBackend
from launcher.adapters.skypilot_task import EXIT_MARK, Site
from launcher.core.runs.machine import LaunchRequest, Phase
from launcher.errors import BackendError, LaunchRefused
from tests.adapters.api_server import BEGAN, JOB, ApiServer, an_api_server, word
from tests.builders import RUN, T0, a_placement
from tests.sim import SimClock

pytest.importorskip("sky", reason="SkyPilot is not installed: pip install spotlaunch[sky]")
from sky import exceptions  # only where it is installed


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    return an_api_server(monkeypatch)


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


def test_a_release_that_left_the_machine_is_not_believed(server: ApiServer, backend: SkyPilotBackend) -> None:
    server.has_up(JOB)
    server.keeps_machines = True

    with pytest.raises(BackendError, match="is still there"):
        backend.stop(JOB)


def test_only_the_runs_own_jobs_are_its_own(server: ApiServer, backend: SkyPilotBackend) -> None:
    for name in (JOB, f"{RUN}-010", f"{RUN}-002", f"{RUN}-supervisor", f"x{RUN}-003", "somebody-else"):
        server.has_up(name)

    assert backend.names(RUN) == (JOB, f"{RUN}-002", f"{RUN}-010")
