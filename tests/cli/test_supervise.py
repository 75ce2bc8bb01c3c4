"""A supervisor elsewhere, from the command line: what it needs, what it costs, and how its run is followed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from launcher.adapters.fsspec_journal import FsspecJournal
from launcher.adapters.object_ledger import ObjectLedger
from launcher.adapters.shared_output import SharedOutput
from launcher.adapters.sign_of_life import giving_signs
from launcher.adapters.system_clock import SystemClock
from launcher.core.prices.supervision import Sign
from launcher.core.runs.events import AttemptRequested, Event, RunFinished
from launcher.core.runs.state import fold, supervisor_usd
from launcher.errors import BackendError
from tests.builders import RUN, a_placement, a_submit
from tests.cli.conftest import Launch
from tests.core.test_supervision import hired

TRAIN = """\
name: digits
run: python train.py
gpus: {H100: 8}
providers: [aws]
workload: {steps: 1000, step_seconds: {H100: 36}, setup_seconds: 100}
checkpoint: {uri: s3://ckpts/runs, region: aws/us-east-2, size: 1 GB, save_seconds: 1}
"""
COLUMNS = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,AvailabilityZone"
ROWS = ["p5.48xlarge,H100,8,192,2048,98.32,30,us-east-2,use2-az1", "c6i.large,,,2,4,0.085,0.03,us-east-2,use2-az1"]


@pytest.fixture
def clouds(folder: Path) -> Path:
    (folder / "train.yaml").write_text(TRAIN)
    (folder.parent / "catalogs/aws").mkdir(parents=True)
    (folder.parent / "catalogs/aws/vms.csv").write_text("\n".join([COLUMNS, *ROWS]) + "\n")
    return folder


def test_without_a_ledger_that_both_reach_it_is_said_what_to_write(clouds: Path, launch: Launch) -> None:
    done = launch("plan", "train.yaml", "--supervise", "remote")

    assert done.code == 2
    assert "error[L151]" in done.err
    assert 'ledger = "s3://ckpts/runs/ledger"' in done.err


def test_run_folders_on_this_machines_disk_are_out_of_its_reach(clouds: Path, launch: Launch) -> None:
    (clouds / "train.yaml").write_text(TRAIN.replace("uri: s3://ckpts/runs, region: aws/us-east-2, ", ""))

    done = launch("plan", "train.yaml", "--supervise", "remote")

    assert done.code == 2
    assert {"L151", "L152"} == {word[6:10] for word in done.err.split() if word.startswith("error[")}


def test_a_simulated_run_has_its_supervisor_here(clouds: Path, launch: Launch) -> None:
    done = launch("train.yaml", "--simulate", "1", "--supervise", "remote", "--dry-run")

    assert (done.code, "error[L150]" in done.err) == (2, True)


def test_its_price_is_a_part_of_the_plan(clouds: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_LEDGER", "s3://ckpts/ledger")
    monkeypatch.setattr("launcher.wiring.Wiring.states", lambda _: ())  # nobody answers for that bucket
    (clouds / "train.yaml").write_text(TRAIN + "mode: [on_demand]\n")

    here, elsewhere = (
        json.loads(launch("plan", "train.yaml", "--supervise", where, "-o", "json").out)["ranked"][0]
        for where in ("here", "remote")
    )

    assert here["parts"]["supervisor"] == "0.00"
    assert elsewhere["parts"]["supervisor"] == f"{0.085 * (elsewhere['hours']['p50'] + 1 / 12):.2f}"
    (told,) = (a for a in elsewhere["assumptions"] if a["name"] == "supervisor")
    assert told["value"] == "$0.085/h, c6i.large at aws/us-east-2"


def test_a_place_without_a_price_is_refused(clouds: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_LEDGER", "s3://ckpts/ledger")
    monkeypatch.setenv("LAUNCH_SUPERVISOR_INFRA", "slurm/lab/cpu")
    monkeypatch.setattr("launcher.wiring.Wiring.states", lambda _: ())

    done = launch("plan", "train.yaml", "--supervise", "remote")

    assert done.code == 7
    assert "supervisor_usd_per_hour in launch.toml" in done.err


class ResourcesUnavailableError(Exception):
    """As SkyPilot calls it."""


def hire_on_slurm(clouds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor's machine is a partition's node at $60 an hour, in a ledger that both sides share."""
    monkeypatch.setattr("launcher.wiring.Wiring.has_skypilot", True)
    monkeypatch.setenv("LAUNCH_LEDGER", f"file://{clouds}/ledger")
    monkeypatch.setenv("LAUNCH_SUPERVISOR_INFRA", "slurm/lab/cpu")
    monkeypatch.setenv("LAUNCH_SUPERVISOR_USD_PER_HOUR", "60")
    monkeypatch.setenv("LAUNCH_STATE_FOLDER", str(clouds / "state"))
    (clouds / "state").mkdir()
    (clouds / "state/clouds.json").write_text('{"checked_at": "2026-01-05T12:00:00Z", "enabled": ["aws", "slurm"]}')


def test_a_machine_that_is_not_granted_is_not_billed_and_the_run_waits_for_a_supervisor(
    clouds: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def submit(task: Mapping[str, Any], *, name: str, config: Mapping[str, Any]) -> str:
        asked.append(name)
        raise ResourcesUnavailableError("no node in partition cpu")

    client = "launcher.adapters.skypilot_client"
    monkeypatch.setattr(f"{client}.submit", submit)
    monkeypatch.setattr(f"{client}.requests", lambda _: [])
    monkeypatch.setattr(f"{client}.ask", lambda *_: [])
    monkeypatch.setattr("launcher.adapters.skypilot_supervisor.user_of_skypilot", dict)
    hire_on_slurm(clouds, monkeypatch)

    done = launch("train.yaml", "--supervise", "remote", "--approve", "5000", "--detach")

    ledger = ObjectLedger(f"file://{clouds}/ledger")
    (run_id,) = ledger.run_ids()
    state = fold(None, ledger.read(run_id))
    assert state is not None
    assert done.code == 100
    assert f"`launch resume {run_id}` tries again" in done.err
    assert asked == [f"{run_id}-supervisor"]
    assert supervisor_usd(state, SystemClock().now() + timedelta(days=1)) == 0
    assert "no node in partition cpu" in state.hired[0].detail


def test_a_machine_that_may_still_be_there_is_billed_until_it_is_known_to_be_gone(
    clouds: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise ResourcesUnavailableError("no node in partition cpu")

    def stays(*_: object) -> bool:
        raise BackendError("it is still there after its release")

    monkeypatch.setattr("launcher.adapters.skypilot_client.submit", refuse)
    monkeypatch.setattr("launcher.adapters.skypilot_client.requests", lambda _: [])
    monkeypatch.setattr("launcher.adapters.outpost.Outpost.dismiss", stays)
    monkeypatch.setattr("launcher.adapters.skypilot_supervisor.user_of_skypilot", dict)
    hire_on_slurm(clouds, monkeypatch)

    done = launch("train.yaml", "--supervise", "remote", "--approve", "5000", "--detach")

    ledger = ObjectLedger(f"file://{clouds}/ledger")
    state = fold(None, ledger.read(ledger.run_ids()[0]))
    assert state is not None
    assert "may still be there" in done.err
    assert state.hired[0].until is None
    assert supervisor_usd(state, SystemClock().now() + timedelta(days=1)) > 1000


@pytest.fixture
def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder; the ledger beside it is shared with whoever supervises its run."""
    monkeypatch.setenv("LAUNCH_LEDGER", f"file://{folder}/ledger")
    return folder / "run"


def a_run(run_folder: Path, *events: Event) -> None:
    ledger, now = ObjectLedger(f"file://{run_folder.parent}/ledger"), SystemClock().now()
    ledger.append(RUN, [a_submit(run_uri=str(run_folder)), hired(), *events], after_seq=0, at=now)


def a_sign(*, seconds_ago: float = 0) -> Sign:
    at = SystemClock().now() - timedelta(seconds=seconds_ago)
    return Sign(place="node1:/state", by="hired machine 1 (node1)", since=at, at=at)


def signed(run_folder: Path, sign: Sign) -> None:
    journal = FsspecJournal(str(run_folder), clock=SystemClock())
    with giving_signs(journal, sign, now=SystemClock().now):
        kept = journal.get("control/supervisor")
    assert kept is not None
    journal.put("control/supervisor", kept)  # as after a supervisor that was killed


def test_a_supervisor_elsewhere_is_seen_while_its_sign_is_fresh(elsewhere: Path, launch: Launch) -> None:
    a_run(elsewhere)

    signed(elsewhere, a_sign())
    alive = json.loads(launch("status", RUN, "-o", "json").out)
    signed(elsewhere, a_sign(seconds_ago=200))
    silent = launch("status", RUN)

    assert alive["supervised"]
    assert alive["supervisor"]["by"] == "hired machine 1 (node1)"
    assert "nobody supervises this run" in silent.out
    assert "m6i.large at aws/us-east-2, $60.00/h, declared" in silent.out


def test_stopping_it_starts_no_second_supervisor_here(elsewhere: Path, launch: Launch) -> None:
    a_run(elsewhere)
    signed(elsewhere, a_sign())

    done = launch("stop", RUN)

    assert done.code == 0
    assert "saves and stops" in done.err
    assert not list(elsewhere.parent.parent.rglob(f"{RUN}.log"))


def test_resuming_it_starts_none_either(elsewhere: Path, launch: Launch) -> None:
    a_run(elsewhere)
    signed(elsewhere, a_sign())

    done = launch("resume", RUN, "--detach")

    assert (done.code, "has its supervisor" in done.err) == (0, True)
    assert not list(elsewhere.parent.parent.rglob(f"{RUN}.log"))


def test_attach_shows_the_run_and_what_it_printed(elsewhere: Path, launch: Launch) -> None:
    placement = a_placement()
    a_run(
        elsewhere,
        AttemptRequested(attempt=1, placement=placement, why="test"),
        RunFinished(outcome="succeeded", detail="step 1,000 reached"),
    )
    signed(elsewhere, replace(a_sign(), has_ended=True))
    (elsewhere.parent / "output.log").write_text("final loss 0.1\n")
    SharedOutput(str(elsewhere)).add(1, elsewhere.parent / "output.log")

    attached, logs = launch("attach", RUN), launch("logs", RUN)

    assert attached.code == 0
    assert "final loss 0.1" in attached.out
    assert "supervisor $" in attached.out
    assert logs.out == "final loss 0.1\n"


def test_attach_says_when_nobody_is_there_any_more(
    elsewhere: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ORPHAN_SECONDS", "SIGN_SECONDS", "SHARED_LOOK_SECONDS"):
        monkeypatch.setattr(f"launcher.cli.runs.{name}", 0.01)
    a_run(elsewhere)
    signed(elsewhere, a_sign(seconds_ago=200))

    done = launch("attach", RUN)

    assert done.code == 100
    assert f"its hired machine is silent; `launch resume {RUN}`" in done.err
