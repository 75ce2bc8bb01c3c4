"""The question at a terminal: an amount, No by default, other plans and details on request."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Launch
from tests.cli.test_plan import OWN, TRAIN

LAUNCH = Path(sys.executable).with_name("launch")


@pytest.fixture
def two_machines(folder: Path) -> Path:
    dearer = "{name: bigger, gpu: CPU, gpus: 1, usd_per_hour: 7200}"
    (folder / "pricing.yaml").write_text(OWN.replace("]", f", {dearer}]", 1))
    (folder / "train.yaml").write_text(TRAIN)
    return folder


def asked(folder: Path, answers: str) -> tuple[int, str]:
    """`launch train.yaml` at a terminal where somebody types `answers`; the exit code and what was said."""
    terminal, inside = pty.openpty()
    os.write(terminal, answers.encode())
    with subprocess.Popen(
        [LAUNCH, "train.yaml", "--detach"], cwd=folder, stdin=inside, stderr=inside, stdout=subprocess.DEVNULL
    ) as launched:
        os.close(inside)
        said = b""
        while chunk := _read(terminal):
            said += chunk
    os.close(terminal)
    return launched.returncode, said.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux answers so when nobody holds the other end any more
        return b""


@pytest.mark.parametrize("answer", ["\n", "n\n", "no\n", "99\n", "perhaps\n", "\x04"])
def test_anything_but_yes_means_no(two_machines: Path, launch: Launch, answer: str) -> None:
    code, said = asked(two_machines, answer)

    assert code == 3
    assert "Submit plan 1 and stop at $" in said
    assert "nothing was launched" in said
    assert launch("status").out.startswith("no runs yet")


def test_details_and_another_plan_lead_back_to_the_question_with_its_own_amount(
    two_machines: Path, launch: Launch
) -> None:
    code, said = asked(two_machines, "d\n2\nn\n")

    amounts = [int(part.split("?")[0].replace(",", "")) for part in said.split("stop at $")[1:]]
    assert code == 3
    assert "declared: workload.step_seconds" in said
    assert amounts[0] == amounts[1] < amounts[2]


@pytest.mark.system
def test_yes_launches_and_stops_at_the_amount_that_was_asked_for(two_machines: Path, launch: Launch) -> None:
    code, said = asked(two_machines, "y\n")

    assert code == 0
    assert "is submitted and stops at $" in said
    (run_id,) = [line.split()[0] for line in launch("status").out.splitlines() if line.startswith("digits-")]
    assert launch("resume", run_id).code == 0  # follows it to its end
