"""Whole runs with real processes, killed with real signals: exact losses, one bill, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import LAUNCH, Lab

pytestmark = pytest.mark.system
Undisturbed = Callable[[int], str]


def is_training(run: dict[str, Any]) -> bool:
    return bool(run["attempts"]) and run["state"] == "running"


def has_committed(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda run: run["checkpoint"] is not None and run["checkpoint"]["step"] >= step


def bill_adds_up(run: dict[str, Any]) -> bool:
    return sum(map(Decimal, run["by_cause_usd"].values())) == Decimal(run["spent_usd"])


def test_a_run_ends_with_its_bill_and_nothing_left_running(lab: Lab, undisturbed: Undisturbed) -> None:
    done = lab.launch("train.yaml", "--approve", "50")

    (run,) = lab.runs()
    assert "succeeded in" in done.stdout
    assert "estimate was" in done.stdout
    assert run["outcome"] == "succeeded"
    assert lab.final_loss(run["run_id"]) == undisturbed(150)
    assert float(run["attempts"][0]["metrics"]["loss"]).hex() == undisturbed(150)
    assert bill_adds_up(run)
    assert Decimal(run["spent_usd"]) > 0
    assert lab.processes(run["run_id"]) == []


def test_a_trainer_killed_at_random_steps_ends_at_the_undisturbed_loss(
    lab: Lab, undisturbed: Undisturbed, luck: random.Random
) -> None:
    lab.write(steps=200)
    run_id = lab.submit()
    for _ in range(2):
        at = luck.randrange(5, 60, 5)
        before = len(lab.run(run_id)["attempts"])
        lab.until(run_id, lambda run: is_training(run) and len(run["attempts"]) >= before and has_committed(at)(run))  # noqa: B023
        time.sleep(luck.random() / 5)
        lab.kill(lab.trainers(run_id))
        lab.until(run_id, lambda run: run["attempts"][-1]["outcome"] or len(run["attempts"]) > before)  # noqa: B023

    run = lab.finished(run_id)

    assert run["outcome"] == "succeeded"
    assert "lost" in [a["outcome"] for a in run["attempts"]]
    assert lab.final_loss(run_id) == undisturbed(200)
    assert bill_adds_up(run)


def test_a_supervisor_killed_at_any_moment_leaves_one_bill_and_no_orphan(
    lab: Lab, undisturbed: Undisturbed, luck: random.Random
) -> None:
    run_id = lab.submit()
    for _ in range(4):
        time.sleep(luck.random() * 1.5)
        lab.kill(lab.supervisors(run_id))
        lab.launch("resume", run_id, "--detach")

    run = lab.finished(run_id)

    assert run["outcome"] == "succeeded"
    assert len(run["attempts"]) == 1
    assert lab.final_loss(run_id) == undisturbed(150)
    assert bill_adds_up(run)
    assert lab.processes(run_id) == []


def test_a_training_goes_on_while_nobody_supervises_it(lab: Lab, undisturbed: Undisturbed) -> None:
    run_id = lab.submit()
    lab.until(run_id, is_training)
    lab.kill(lab.supervisors(run_id))
    end = time.monotonic() + 60
    while lab.trainers(run_id) and time.monotonic() < end:
        time.sleep(0.2)

    assert "no supervisor" in lab.run(run_id)["state"]
    done = lab.launch("resume", run_id)

    assert "succeeded" in done.stdout
    assert lab.final_loss(run_id) == undisturbed(150)


def test_a_closed_terminal_does_not_touch_the_run(lab: Lab, undisturbed: Undisturbed) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(lab.folder)
        os.execve(LAUNCH, ["launch", "train.yaml", "--approve", "50"], lab.environ)
    shown = b""
    while b"training begins" not in shown:
        shown += os.read(terminal, 1 << 16)
    os.close(terminal)  # the window is closed: SIGHUP for everything in it
    os.waitpid(child, 0)

    run = lab.finished(lab.runs()[-1]["run_id"])

    assert run["outcome"] == "succeeded"
    assert lab.final_loss(run["run_id"]) == undisturbed(150)


def test_ctrl_c_only_stops_the_showing(lab: Lab) -> None:
    with subprocess.Popen(
        [LAUNCH, "train.yaml", "--approve", "50"],
        cwd=lab.folder,
        env=lab.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as attached:
        assert attached.stderr
        for line in attached.stderr:
            if "training begins" in line:
                attached.send_signal(signal.SIGINT)
                break
        said = attached.stderr.read()

    assert attached.returncode == 130
    assert "goes on without this window" in said
    assert lab.finished(lab.runs()[-1]["run_id"])["outcome"] == "succeeded"


def test_a_run_can_be_watched_and_its_output_followed_to_the_end(lab: Lab, undisturbed: Undisturbed) -> None:
    run_id = lab.submit()
    lab.until(run_id, is_training)

    watched = lab.launch("status", "--watch")
    followed = lab.launch("logs", "-f", run_id)

    assert "attempt 1: completed at step 150" in watched.stderr
    assert "a preemption now would cost $" in watched.stdout
    assert "succeeded in" in watched.stdout
    assert "/step · $" in followed.stdout
    assert f"final loss {undisturbed(150)}" in followed.stdout


def test_two_supervisors_of_one_run_do_not_both_act(lab: Lab) -> None:
    run_id = lab.submit()
    lab.until(run_id, is_training)

    second = subprocess.run(
        [sys.executable, "-m", "launcher.supervise", run_id],
        cwd=lab.folder,
        env=lab.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert "has a supervisor already" in second.stderr
    assert len(lab.finished(run_id)["attempts"]) == 1


def test_stop_saves_first_and_resume_goes_on_from_there(lab: Lab, undisturbed: Undisturbed) -> None:
    lab.write(steps=200, every=1000)
    run_id = lab.submit()
    lab.until(run_id, is_training)
    lab.launch("stop", run_id)
    stopped = lab.finished(run_id)

    assert stopped["outcome"] == "cancelled"
    assert stopped["checkpoint"]["step"] > 0
    assert lab.processes(run_id) == []
    assert lab.launch("resume", run_id, expect=3).stderr.count("--approve")

    done = lab.launch("resume", run_id, "--approve", "50")

    run = lab.run(run_id)
    assert "succeeded" in done.stdout
    assert run["attempts"][1]["first_step"] == stopped["checkpoint"]["step"]
    assert lab.final_loss(run_id) == undisturbed(200)


def test_the_cap_saves_and_stops_and_more_money_goes_on(lab: Lab, undisturbed: Undisturbed) -> None:
    (lab.folder / "pricing.yaml").write_text("own: [{name: box, gpu: CPU, gpus: 1, usd_per_hour: 3600}]\n")
    lab.write(steps=400, pause=0.1, more="providers: [local]\ncost: {cap: 60 USD}")
    text = (lab.folder / "train.yaml").read_text().replace("CPU: 0.11", "CPU: 0.02")
    (lab.folder / "train.yaml").write_text(text)  # promised five times faster than it is
    run_id = lab.submit(approve="60")
    run = lab.finished(run_id)

    assert run["outcome"] == "out_of_budget"
    assert Decimal(run["spent_usd"]) <= 60
    assert run["checkpoint"]["step"] > 0
    assert lab.launch("resume", run_id, "--approve", "1", expect=5)

    lab.launch("resume", run_id, "--approve", "500", "--detach")
    lab.until(run_id, lambda run: is_training(run) and run["attempts"][-1]["first_step"] > 0)


def chunks(checkpoint: Path) -> list[str]:
    return [name for name, _ in json.loads((checkpoint / "manifest.json").read_text())["chunks"]]


def test_a_damaged_checkpoint_falls_back_loudly_and_ends_at_the_same_loss(
    lab: Lab, undisturbed: Undisturbed, luck: random.Random
) -> None:
    run_id = lab.submit()
    lab.until(run_id, has_committed(20))
    lab.kill(lab.supervisors(run_id))
    lab.kill(lab.processes(run_id))
    older, newest = lab.checkpoints(run_id)[-2:]
    only_there = set(chunks(newest)) - set(chunks(older))
    victim = newest.parent.parent / "chunks" / luck.choice(sorted(only_there))
    content = bytearray(victim.read_bytes())
    content[luck.randrange(len(content))] ^= 1 << luck.randrange(8)
    victim.write_bytes(content)

    lab.launch("resume", run_id)

    assert newest.name in lab.output(run_id)
    assert lab.run(run_id)["attempts"][-1]["first_step"] == int(older.name.split("-")[1])
    assert lab.final_loss(run_id) == undisturbed(150)


def test_a_torn_checkpoint_is_not_a_checkpoint(lab: Lab, undisturbed: Undisturbed) -> None:
    run_id = lab.submit()
    lab.until(run_id, has_committed(20))
    lab.kill(lab.supervisors(run_id))
    lab.kill(lab.processes(run_id))
    older, newest = lab.checkpoints(run_id)[-2:]
    (newest / "manifest.json").unlink()

    lab.launch("resume", run_id)

    assert lab.run(run_id)["attempts"][-1]["first_step"] == int(older.name.split("-")[1])
    assert lab.final_loss(run_id) == undisturbed(150)


JUMP = """\
import os, time
_wall = time.time
time.time = lambda: _wall() - (3600 if os.path.exists({switch!r}) else 0)
"""


def test_a_wall_clock_set_back_by_an_hour_neither_stops_the_run_nor_turns_its_bill_back(
    lab: Lab, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    switch = tmp_path / "set back"
    (tmp_path / "jump").mkdir()
    (tmp_path / "jump" / "sitecustomize.py").write_text(JUMP.format(switch=str(switch)))
    lab.environ["PYTHONPATH"] = str(tmp_path / "jump")
    lab.write(steps=200)
    began = time.monotonic()
    run_id = lab.submit()
    before = lab.until(run_id, has_committed(20))

    switch.touch()
    lab.kill(lab.supervisors(run_id))
    lab.launch("resume", run_id, "--detach")
    run = lab.finished(run_id)

    most = Decimal(36) * Decimal(time.monotonic() - began) / 3600
    assert run["outcome"] == "succeeded"
    assert Decimal(before["spent_usd"]) < Decimal(run["spent_usd"]) <= most
    assert lab.final_loss(run_id) == undisturbed(200)
    assert bill_adds_up(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of its own, eight megabytes large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_run_with_words_and_room_lets_it_go_on(
    lab: Lab, small_disk: Path, undisturbed: Undisturbed
) -> None:
    text = (lab.folder / "train.yaml").read_text().replace("save_seconds", f"uri: {small_disk}/runs, save_seconds")
    (lab.folder / "train.yaml").write_text(text)
    run_id = lab.submit()
    lab.until(run_id, has_committed(5))
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    run = lab.finished(run_id)

    assert run["outcome"] == "failed"
    assert "No space left" in lab.output(run_id)

    ballast.unlink()
    lab.launch("resume", run_id, "--approve", "50")

    assert lab.final_loss(run_id) == undisturbed(150)


def test_a_checkpoint_folder_that_cannot_be_written_fails_with_words(lab: Lab, tmp_path: Path) -> None:
    readonly = tmp_path / "readonly"
    readonly.mkdir()
    bound = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", readonly], capture_output=True, check=False)
    if bound.returncode:
        pytest.skip("no right to mount a read-only file system")
    try:
        text = (lab.folder / "train.yaml").read_text().replace("save_seconds", f"uri: {readonly}/runs, save_seconds")
        (lab.folder / "train.yaml").write_text(text)
        run = lab.finished(lab.submit())
    finally:
        subprocess.run(["umount", "-l", readonly], check=True)

    assert run["outcome"] == "failed"
    assert "Read-only file system" in lab.output(run["run_id"])


MARKET = """\
places:
  - provider: aws
    region: us-east-2
    zone: use2-az1
    instance_type: p5.48xlarge
    gpu: H100
    count: 8
    spot_usd_per_hour: 11
    on_demand_usd_per_hour: 55
    available: [[0 s, {first}], [10 h]]
    notice: {{via: ec2, seconds: 120}}
  - provider: gcp
    region: europe-west4
    zone: europe-west4-b
    instance_type: a3-highgpu-8g
    gpu: H100
    count: 8
    spot_usd_per_hour: 25
    on_demand_usd_per_hour: 110
    available: [[0 s, {second}]]
    notice: {{via: none}}
  - provider: azure
    region: eastus
    instance_type: Standard_ND96isr_H100_v5
    gpu: H100
    count: 8
    spot_usd_per_hour: 31
    on_demand_usd_per_hour: 98
    notice: {{via: azure, seconds: 30}}
"""


def test_a_market_takes_the_machine_twice_and_the_loss_is_the_undisturbed_one(
    lab: Lab, undisturbed: Undisturbed
) -> None:
    (lab.folder / "market.yaml").write_text(MARKET.format(first="14 min", second="28 min"))
    lab.write(steps=300, pause=0.1, every=20, more="mode: [spot]\nmarket: {file: market.yaml, time_scale: 60}")
    text = (lab.folder / "train.yaml").read_text().replace("CPU: 1", "H100: 8").replace("CPU: 0.11", "H100: 7 s")
    (lab.folder / "train.yaml").write_text(text.replace("setup_seconds: 3", "setup_seconds: 4 min"))

    done = lab.launch("train.yaml", "--approve", "200")

    (run,) = lab.runs()
    ended = [(a["provider"], a["outcome"], a["noticed"]) for a in run["attempts"] if a["outcome"]]
    assert ended[0] == ("aws", "preempted", True)
    assert ended[1] == ("gcp", "preempted", False)
    assert ended[-1][1] == "completed"
    assert run["attempts"][1]["first_step"] >= run["attempts"][0]["step"] - 1  # saved on the notice: nothing is lost
    assert lab.final_loss(run["run_id"]) == undisturbed(300)
    assert bill_adds_up(run)
    assert "(simulated)" in done.stdout
    assert lab.processes(run["run_id"]) == []
