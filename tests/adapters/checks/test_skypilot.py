"""What SkyPilot says of clouds, as 0.14.1 was recorded to print it; and the whole, with an API server of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from launcher.adapters.checks.skypilot import parse_states, skypilot
from launcher.core.doctor.checkup import CloudState, clouds, skypilot_version
from tests.adapters.sky_home import BIN, a_sky_home

RECORDED = (Path(__file__).parents[2] / "golden" / "skypilot" / "check-0.14.1.txt").read_text()
# of a Slurm cluster whose home is on a local disk, 0.14.1
SLURM = (
    "Checking credentials to enable infra for SkyPilot.\n\x1b[32m\x1b[22m  Slurm: enabled [compute]\x1b[0m\x1b[0m\n"
    "    Allowed clusters:\n    \x1b[2m└── \x1b[0mlab: \x1b[32menabled.\x1b[0m \x1b[93mWarning: Home directory (~) "
    "filesystem type is 'ext2/ext3', not a shared filesystem.\x1b[0m\x1b[0m\n\n\x1b[32m🎉 Enabled infra 🎉\x1b[0m\n"
    "  \x1b[32mSlurm [compute]\x1b[0m\n    Allowed clusters:\n    \x1b[2m└── \x1b[0mlab\n"
)


def states(text: str = RECORDED, enabled: tuple[str, ...] = ()) -> dict[str, CloudState]:
    return {state.name: state for state in parse_states(text, enabled)}


def test_every_cloud_of_a_check_is_read_and_nothing_else() -> None:
    assert list(states()) == ["AWS", "Azure", "GCP", "Kubernetes", "Lambda", "RunPod", "Slurm", "Vast"]


def test_reasons_and_commands_are_taken_apart() -> None:
    found = states()

    assert found["AWS"].reason.startswith("AWS credentials are not set.")
    assert found["AWS"].commands == ("aws configure", "aws configure list")
    assert found["Azure"].commands == ("az login", "az account set -s <subscription_id>")
    assert found["Vast"].commands == ('pip install "skypilot[vast]"',)
    assert [state for state in found.values() if "\x1b" in state.reason or "🎉" in state.reason] == []


@pytest.mark.parametrize(("cloud", "is_credentials"), [("aws", True), ("lambda", True), ("runpod", False)])
def test_a_missing_package_is_not_a_missing_credential(cloud: str, is_credentials: bool) -> None:
    checks = {check.name: check for check in clouds(parse_states(RECORDED, ()), {cloud})}

    assert (checks[cloud].state, checks[cloud].is_credentials) == ("failed", is_credentials)


def test_a_cloud_that_works_keeps_skypilots_warning() -> None:
    found = states(SLURM, ("slurm",))

    assert list(found) == ["Slurm"]
    assert found["Slurm"].is_enabled
    assert found["Slurm"].warning.startswith("Home directory (~) filesystem type is 'ext2/ext3'")


@pytest.mark.parametrize(("wanted", "state"), [((), "skipped"), (("aws",), "failed")])
def test_without_skypilot_only_who_wants_a_cloud_has_a_problem(
    wanted: tuple[str, ...], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sky", None)  # as if it were not installed

    (check,) = skypilot(wanted, tmp_path)

    assert check.state == state
    assert check.fix == 'pip install "spotlaunch[sky]" "skypilot[aws]"'


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home without any cloud, and an API server of its own that ends with the test."""
    with a_sky_home(tmp_path, clouds="aws, runpod") as given:
        yield given


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.skipif(find_spec("sky") is None, reason="SkyPilot is not installed")
def test_a_home_without_any_cloud_lacks_nothing_but_credentials(tmp_path: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [BIN / "launch", "doctor", "-o", "json"], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    found = json.loads(done.stdout)  # whatever SkyPilot prints, stdout is the answer
    checks = {check["name"]: check for check in found["checks"]}
    assert (found["schema"], found["exit_code"]) == ("launch/doctor/v1", done.returncode), done.stderr
    assert checks["SkyPilot"]["state"] == "ok", checks
    assert re.search(r"^http://127.0.0.1:\d+, version 0\.1", checks["SkyPilot API server"]["found"])
    assert (checks["clouds"]["state"], checks["clouds"]["is_credentials"]) == ("failed", True)
    assert done.returncode == 4


@pytest.mark.skipif(find_spec("sky") is None, reason="SkyPilot is not installed")
def test_the_installed_skypilot_is_a_version_that_is_known() -> None:
    from importlib.metadata import version

    assert skypilot_version(version("skypilot")).state == "ok"
