"""Real processes, real signals: whatever takes the machine, the next attempt ends in the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hooks.folders import checkpoints, of_kind
from tests.hooks.training import Recipe
from trainer_hooks.protocol import Ended, Notice

pytestmark = [pytest.mark.system, pytest.mark.enable_socket]

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCH_")}


def start(folder: Path, recipe: Recipe, *more: object, **environ: str) -> subprocess.Popen[str]:
    """The training script in a session of its own, so that its whole group can be signalled."""
    text = json.dumps({name: getattr(recipe, name) for name in recipe.__dataclass_fields__})
    command = [sys.executable, "-m", "tests.hooks.training", str(folder), text, *map(str, more)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT | environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    assert process.stdout is not None
    return (line.split() for line in process.stdout)


def finish(process: subprocess.Popen[str]) -> str:
    """Its fingerprint."""
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    return out.split()[-1]


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(workers=2, optimizer="sgd", steps=None, epochs=3)], ids=["0", "2"])
def test_killed_again_and_again_it_ends_bit_equal(recipe: Recipe, tmp_path: Path) -> None:
    expected = finish(start(tmp_path / "whole", recipe))
    chance = random.Random(1)

    for life in range(2):  # never before the first checkpoint: that would be another training
        process = start(tmp_path / "cut", recipe, 4 + 7 * life + chance.randrange(7), SEED=str(life))
        process.communicate(timeout=150)
        assert process.returncode == -signal.SIGKILL

    assert expected == finish(start(tmp_path / "cut", recipe, SEED="9"))


@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
def test_a_termination_is_a_clean_exit_with_75_and_nothing_is_lost(whole_group: bool, tmp_path: Path) -> None:
    recipe = Recipe(workers=2, steps=100, every=100_000)
    expected = finish(start(tmp_path / "whole", recipe))
    process = start(tmp_path / "cut", recipe, PAUSE="0.05")

    seen = 0
    for _, number in lines(process):
        seen = int(number)
        if seen == 15:
            send = os.killpg if whole_group else os.kill
            send(process.pid, signal.SIGTERM)
    err = process.communicate(timeout=150)[1]

    assert process.returncode == 75, err
    assert checkpoints(tmp_path / "cut") == [f"step-{seen}-a1"], "the step in progress was finished and saved"
    assert of_kind(Notice, tmp_path / "cut") == [Notice(source="signal")]
    assert of_kind(Ended, tmp_path / "cut")[0].reason == "preempted"
    assert expected == finish(start(tmp_path / "cut", recipe, SEED="3"))


SCRIPT = """
import sys
from trainer_hooks import Session
class Counter:
    def state_dict(self): return {{}}
    def load_state_dict(self, state): pass
def main():
    session = Session(run_uri={folder!r}, counter=Counter())
    for number in session(range(5)):
        {body}
    session.outcome("after", 1)
main()
"""


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ("pass", 0, "completed"),
        ("break", 0, "completed"),
        ("raise ValueError('mine')", 1, "failed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "failed"),
    ],
)
def test_a_script_that_never_closes_its_session_tells_how_it_ended(
    body: str, code: int, reason: str, tmp_path: Path
) -> None:
    script = SCRIPT.format(folder=str(tmp_path), body=body)

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True
    )

    assert (done.returncode, [record.reason for record in of_kind(Ended, tmp_path)]) == (code, [reason]), done.stderr
    assert ("mine" in done.stderr) == ("mine" in body)
    assert done.stdout == ""


FULL = """
import resource, signal, sys, torch
from trainer_hooks import Session, SavingFailed
model = torch.nn.Linear(1000, 1000)
with Session(run_uri=sys.argv[1], checkpoint_every_steps=2, model=model) as session:
    for number in session(range(100)):
        model.weight.data += 1
        if number == 5:
            session._keeper.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
"""


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert "SavingFailed: 3 saves in a row failed" in done.stderr
    assert checkpoints(tmp_path) == ["step-2-a1", "step-4-a1"]
    assert not list((tmp_path / "chunks").glob(".*")), "what was not written whole is removed"
    assert of_kind(Ended, tmp_path)[0].reason == "failed"
