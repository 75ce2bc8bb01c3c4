"""Slurm clusters through an `ssh` that answers what slurmctld 22.05.8 was recorded to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.adapters.checks import slurm
from launcher.core.doctor.checkup import Check
from launcher.core.prices.pricing import Pool
from tests.adapters.checks.conftest import Program
from tests.core.test_checkup_clusters import a_pool

RECORDED = Path(__file__).parents[2] / "golden" / "slurm" / "scontrol-show-22.05.8.txt"


def asked(program: Program, script: str, pools: list[Pool] | None = None) -> tuple[Check, ...]:
    program("ssh", script)
    return slurm.cluster("lab", pools or [])


def test_what_slurm_says_of_itself_is_read(program: Program) -> None:
    checks = asked(program, f"cat {RECORDED}", [a_pool(notice="10 s"), a_pool("reserved", capacity="reserved")])

    assert [(check.name, check.state, check.found) for check in checks] == [
        ("slurm lab", "ok", "Slurm 22.05.8, ProctrackType proctrack/cgroup, partitions spot, reserved"),
        ("slurm lab/spot", "ok", "preempt/partition_prio, PreemptMode CANCEL, GraceTime 10 s"),
        ("slurm lab/reserved", "ok", "is up"),
    ]


def test_linuxproc_is_a_failed_check(program: Program) -> None:
    (check,) = asked(program, f"sed s,proctrack/cgroup,proctrack/linuxproc, {RECORDED}")

    assert (check.state, check.is_credentials) == ("failed", False)


def test_it_never_asks_the_user_anything_and_uses_skypilots_hosts(program: Program, tmp_path: Path) -> None:
    seen = program("ssh", f"cat {RECORDED}")

    slurm.cluster("lab", [])

    arguments = seen.read_text()
    assert "BatchMode=yes" in arguments
    assert f"-F {tmp_path}/home/.slurm/config" in arguments
    assert " lab scontrol show config" in arguments


@pytest.mark.parametrize(
    ("script", "found", "is_credentials"),
    [
        ("echo 'me@login: Permission denied (publickey).' >&2; exit 255", "ssh: me@login: Permission denied", True),
        ("echo 'ssh: Could not resolve hostname lab' >&2; exit 255", "ssh: ssh: Could not resolve", False),
        ("echo 'bash: scontrol: command not found' >&2; exit 127", "scontrol: bash: scontrol: command not", False),
        ("exit 1", "scontrol: no word why", False),
    ],
)
def test_a_cluster_that_cannot_be_asked_says_how_to_mend_it(
    program: Program, script: str, found: str, is_credentials: bool
) -> None:
    (check,) = asked(program, script)

    assert check.state == "failed"
    assert check.found.startswith(found)
    assert check.is_credentials == is_credentials
    assert check.fix


def test_without_ssh_it_says_so(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    (check,) = slurm.cluster("lab", [])

    assert check.found == "there is no ssh here"


def test_clusters_are_the_hosts_that_skypilot_has_without_patterns(program: Program, tmp_path: Path) -> None:
    assert slurm.hosts() == []
    config = tmp_path / "home" / ".slurm" / "config"
    config.parent.mkdir(parents=True)
    config.write_text("Host lab big\n  HostName 10.0.0.1\nhost=cpu\nHost *\n  User me\nHost !x node?\n")

    assert slurm.hosts() == ["lab", "big", "cpu"]
