"""The lab keeps its promises: two nodes, a notice before a preemption, Slurm's own bill, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

from tests.labs import network
from tests.labs.slurm import SlurmLab, obstacle
from tests.labs.slurm.accounts import Allocation

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

GRACE_SECONDS = 6
PATIENCE_SECONDS = 90.0  # for a loaded machine; nothing is asserted about less than a grace time
T = TypeVar("T")

TRAINER = """
import signal, sys, time
out = open(sys.argv[1], "a", buffering=1)
signal.signal(signal.SIGTERM, lambda *_: out.write(f"{time.time()} notice\\n"))
while True:
    out.write(f"{time.time()} alive\\n")
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[SlurmLab]:
    with SlurmLab(_a_folder(), grace_seconds=GRACE_SECONDS) as lab:
        yield lab


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = _a_folder()
    yield folder
    SlurmLab(folder).down()


def test_a_job_on_two_nodes_sees_two_hosts_and_their_gpus(lab: SlurmLab) -> None:
    script = "echo $(hostname) $(id -un) $CUDA_VISIBLE_DEVICES"

    said = lab.run(["srun", "-N2", "--gpus-per-node=h100:2", "sh", "-c", script])

    assert sorted(said.stdout.splitlines()) == ["node1 skypilot 0,1", "node2 skypilot 0,1"], said.stderr


def test_nodes_reach_each_other_and_nothing_else(lab: SlurmLab) -> None:
    to_node1 = lab.run(["bash", "-c", "exec 3<>/dev/tcp/node1/6818"], host="node2")
    out = lab.run(["bash", "-c", "exec 3<>/dev/tcp/1.1.1.1/443"], host="node2")

    assert to_node1.returncode == 0, to_node1.stderr
    assert "Network is unreachable" in out.stderr


def test_the_interpreter_and_the_project_are_seen_on_a_node(lab: SlurmLab) -> None:
    said = lab.run(["srun", "-N1", lab.python, "-c", "import torch, trainer_hooks; print(torch.tensor(2) + 2)"])

    assert said.stdout == "tensor(4)\n", said.stderr


def test_a_preemption_sends_sigterm_to_a_nested_step_and_gives_the_grace_time(lab: SlurmLab) -> None:
    diary = lab.folder / "shared/diary"
    nested = f"srun --overlap --jobid=$SLURM_JOB_ID --ntasks=1 {lab.python} -c '{TRAINER}' {diary}"
    victim = int(lab.run(["sbatch", "--parsable", "-p", "spot", "-o", "/dev/null", "--wrap", nested]).stdout)
    _eventually(lambda: diary.exists() and diary.read_text())

    lab.preempt()

    _eventually(lambda: _state(lab, "intruder") == "RUNNING")
    lab.give_back()
    [ended] = [job for job in lab.independent_bill() if job.job_id == victim]
    noticed_at, last_sign_at = _moments(diary)
    assert ended.state == "PREEMPTED"
    # slurmctld looks every 30 s for grace times that are over; then there are 5 s from SIGTERM to SIGKILL (KillWait)
    assert GRACE_SECONDS - 1 <= last_sign_at - noticed_at <= GRACE_SECONDS + 30 + 5 + 5


def test_nothing_of_a_job_outlives_it(lab: SlurmLab) -> None:
    diary = lab.folder / "shared/orphan"
    orphan = f"setsid --fork {lab.python} -c '{TRAINER}' {diary}; sleep infinity"
    lab.run(["sbatch", "-J", "parent", "-o", "/dev/null", "--wrap", orphan], check=True)
    _eventually(lambda: diary.exists() and diary.read_text())

    lab.run(["scancel", "--name=parent"])

    _eventually(lambda: _state(lab, "parent") is None)
    assert _mentioning(str(diary)) == []


def test_slurms_own_bill_counts_the_seconds_of_an_allocation(lab: SlurmLab) -> None:
    lab.run(["srun", "-N2", "-J", "three", "sleep", "3"])

    [job] = _eventually(lambda: [job for job in lab.independent_bill() if job.name == "three" and job.end_at])

    assert (job.nodes, job.node_list, job.partition) == (2, "node[1-2]", "spot")
    assert 3 <= job.seconds(datetime.now(UTC)) <= 6


def test_a_signal_to_a_started_command_reaches_it(lab: SlurmLab) -> None:
    with lab.popen([lab.python, "-c", "import time; print('up', flush=True); time.sleep(60)"], stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"

        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE_SECONDS) == -signal.SIGTERM


def test_a_bucket_is_reached_from_every_host(lab: SlurmLab) -> None:
    env = lab.start_s3("runs")
    put = "import s3fs; s3fs.S3FileSystem().pipe('runs/a', b'1')"
    get = "import s3fs; print(s3fs.S3FileSystem().cat('runs/a'))"

    lab.run([lab.python, "-c", put], env=env, host="node1", check=True)

    assert lab.run([lab.python, "-c", get], env=env, host="node2").stdout == "b'1'\n"
    assert lab.start_s3("runs") == env


def test_up_twice_is_harmless_and_other_settings_are_refused(lab: SlurmLab) -> None:
    before = network.find(lab.folder)

    SlurmLab(lab.folder, grace_seconds=GRACE_SECONDS).up()

    assert network.find(lab.folder) == before
    with pytest.raises(RuntimeError, match="other settings"):
        SlurmLab(lab.folder, grace_seconds=GRACE_SECONDS + 1).up()


def test_two_labs_do_not_meet(lab: SlurmLab, folder: Path) -> None:
    other = SlurmLab(folder)
    other.up()
    lab.run(["sbatch", "-J", "stays", "-o", "/dev/null", "--wrap", "sleep 600"])
    _eventually(lambda: _state(lab, "stays") == "RUNNING")

    seen = other.jobs()
    other.down()

    assert seen == []
    assert _state(lab, "stays") == "RUNNING"
    lab.run(["scancel", "--name=stays"])


def test_down_leaves_nothing(folder: Path) -> None:
    before = _traces(folder)
    lab = SlurmLab(folder)
    lab.up()
    lab.start_s3("runs")
    lab.run(["sbatch", "-N2", "-o", "/dev/null", "--wrap", "srun sleep 601"])
    _eventually(lambda: [job for job in lab.jobs() if job.state == "RUNNING"])
    stray = "import os, time; open('/tmp/left', 'w'); open('/dev/shm/left', 'w'); os.setsid(); time.sleep(601)"
    with lab.popen([lab.python, "-c", stray], env={network.MARK: "scrubbed"}) as process:
        _eventually((folder / "login/tmp/left").exists)

        lab.down()

        assert process.wait(timeout=PATIENCE_SECONDS) == -signal.SIGKILL
    assert not folder.exists()
    assert _traces(folder) == before


@pytest.mark.parametrize("moment", ["hosts", "daemons"])
def test_a_killed_up_is_cleaned_by_the_next(folder: Path, moment: str) -> None:
    before = _traces(folder)
    up = [sys.executable, "-m", "tests.labs.slurm", "--folder", str(folder), "up"]
    sign = {"hosts": folder / "names/group", "daemons": folder / "var/slurmctld.pid"}[moment]
    with subprocess.Popen(up, stderr=subprocess.DEVNULL) as process:
        while not sign.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()

    SlurmLab(folder).up()
    assert SlurmLab(folder).run(["srun", "-N2", "true"]).returncode == 0
    SlurmLab(folder).down()

    assert _traces(folder) == before


def test_a_killed_down_is_finished_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _traces(folder)
    lab = SlurmLab(folder)
    lab.up()
    lab.run(["sbatch", "-N2", "-o", "/dev/null", "--wrap", "srun sleep 601"], check=True)
    _eventually(lambda: [job for job in lab.jobs() if job.state == "RUNNING"])
    holders = {host.pid for host in network.find(folder).values()}
    killed: list[int] = []
    kill = network._kill

    def kill_up_to_six(pid: int) -> None:
        if len(killed) == 6:
            raise KeyboardInterrupt
        killed.append(pid)
        kill(pid)

    with monkeypatch.context() as patch:
        patch.setattr(network, "_kill", kill_up_to_six)
        with pytest.raises(KeyboardInterrupt):
            lab.down()
    lab.down()

    assert not holders & set(killed), "by them the rest is found"
    assert _traces(folder) == before


def test_a_folder_of_somebody_else_is_left_alone(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "thesis.tex").write_text("42")

    with pytest.raises(RuntimeError, match="neither empty nor a lab"):
        SlurmLab(folder).up()
    SlurmLab(folder).down()

    assert (folder / "thesis.tex").read_text() == "42"
    (folder / "thesis.tex").unlink()
    folder.rmdir()


def test_skypilot_launches_on_two_nodes_with_gpus(lab: SlurmLab) -> None:
    script = """
import sky
task = sky.Task(run='echo rank $SKYPILOT_NODE_RANK on $(hostname), GPUs $CUDA_VISIBLE_DEVICES', num_nodes=2)
task.set_resources(sky.Resources(infra='slurm/lab/spot', accelerators='H100:2'))
job, handle = sky.get(sky.launch(task, cluster_name='pair'))
code = sky.tail_logs('pair', job, follow=True)
sky.get(sky.down('pair'))
print('exit', code, handle.launched_resources.get_cost(3600))
"""

    said = lab.run([lab.python, "-c", script], timeout=580)

    assert "rank 0 on node" in said.stdout, said.stdout + said.stderr
    assert "rank 1 on node" in said.stdout
    assert "exit 0 3." in said.stdout, "two of H100 at 1.50 USD/h, some CPUs and memory"
    assert [job.nodes for job in lab.independent_bill() if job.name.startswith("pair-")] == [2]


def _a_folder() -> Path:
    if reason := obstacle():
        pytest.skip(reason)
    return Path(tempfile.mkdtemp(prefix="slurm-lab-"))


def _eventually(look: Callable[[], T]) -> T:
    """The first true answer of `look`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return answer


def _state(lab: SlurmLab, name: str) -> str | None:
    return next((job.state for job in lab.jobs() if job.name == name), None)


def _moments(diary: Path) -> tuple[float, float]:
    """When the notice came, and the last sign of life."""
    lines = [line.split() for line in diary.read_text().splitlines()]
    return float(next(at for at, what in lines if what == "notice")), float(lines[-1][0])


def _traces(folder: Path) -> dict[str, object]:
    """What the lab in `folder` could leave on the machine."""
    user = f"uid_{SlurmLab(folder).account.uid}"
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "accounts": Path("/etc/passwd").read_text(),
        "interfaces": sorted(Path("/sys/class/net").iterdir()),
        "cgroups": sorted(Path("/sys/fs/cgroup").glob(f"*/slurm_*/{user}")),
        "shared memory": Path("/dev/shm/left").exists(),
        "scratch": sorted(path for path in Path("/tmp").iterdir() if path.name.startswith(("sky_ssh", "left"))),
        "processes": _mentioning(str(folder)),
    }


def _mentioning(text: str) -> list[str]:
    """Processes with `text` among their arguments, files, or in their environment; a zombie has neither."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            said = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            opened = [str(link.readlink()) for link in (process / "fd").iterdir()]
            if text.encode() in said or any(text in path for path in opened):
                found.append(f"{process.name} {(process / 'cmdline').read_text()}")
    return found


def test_a_waiting_job_costs_nothing() -> None:
    waiting = Allocation(1, "a", "spot", "PENDING", None, None, 1, "")

    assert waiting.seconds(datetime.now(UTC)) == 0
