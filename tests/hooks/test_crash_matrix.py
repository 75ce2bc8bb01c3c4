"""A real process is killed at every call by which a session changes its run folder: saving, removing old checkpoints,
resuming, and again while it recovers. The next one goes on from the newest commit that returned, to the same last bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.hooks.folders import checkpoints
from tests.hooks.lives import RECIPE, Kind, Life, Server, Told, a_server, left_by
from tests.hooks.states import a_store
from tests.hooks.storages import Loss
from tests.hooks.training import Death, train, undisturbed
from trainer_hooks.storage import LocalStorage

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with a_server() as server:
        yield server


@pytest.fixture(scope="module")
def expected() -> str:
    torch.set_num_threads(1)
    return undisturbed(RECIPE)


class Run:
    """The attempts of one run, one life each."""

    def __init__(self, server: Server, folder: Path, *, committed: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self._server = server
        self._committed = list(committed)

    def life(self, *, dies_at: int = 0, kind: Kind = "before") -> Told:
        """What an earlier life has committed is there; with that, the seed of a later one does not matter."""
        seed = 9 if self._committed else 0
        told = self._server.live(Life(folder=str(self.folder), seed=seed, dies_at=dies_at, kind=kind))
        if told.resumed is not None:
            assert told.resumed >= max(self._committed, default=0), f"a commit that returned was lost: {told}"
        assert "WARNING" not in told.said, "a death damages nothing"
        self._committed += told.committed
        return told

    def ends_like(self, expected: str) -> None:
        """One more life, to the end."""
        told = self.life()
        assert expected == told.end
        if told.committed:
            self._assert_nothing_is_left_over()
        shutil.rmtree(self.folder)

    def _assert_nothing_is_left_over(self) -> None:
        names, store = checkpoints(self.folder), a_store(LocalStorage(self.folder))
        assert len(names) == min(2, len(set(self._committed)))
        referenced = {chunk.hash for name in names for chunk in store.manifest(name).chunks}
        assert referenced == {path.name for path in (self.folder / "chunks").iterdir()}
        assert {path.name for path in (self.folder / "checkpoints").iterdir()} == set(names)


def deaths(calls: tuple[str, ...]) -> list[tuple[int, Kind]]:
    """At every call, in turn before and after it, and in the middle of every write; threads make a call or two more."""
    whole: list[tuple[int, Kind]] = [(at, "after" if at % 2 else "before") for at in range(1, len(calls) + 3)]
    halves: list[tuple[int, Kind]] = [(at, "half") for at, call in enumerate(calls, 1) if call.startswith("write")]
    return whole + halves


def test_a_kill_at_any_call_of_a_first_attempt_loses_no_commit(server: Server, expected: str, tmp_path: Path) -> None:
    whole = server.live(Life(folder=str(tmp_path / "whole")))
    assert expected == whole.end
    assert {call.split()[0] for call in whole.calls} == {"open", "write", "mkdir", "link", "unlink", "rmdir", "replace"}
    died: list[bool] = []

    def die(death: tuple[int, Kind]) -> None:
        at, kind = death
        run = Run(server, tmp_path / f"{at}-{kind}")
        died.append(run.life(dies_at=at, kind=kind).has_died)
        run.ends_like(expected)

    server.each(die, deaths(whole.calls))

    assert sum(died) > len(whole.calls) // 2


def test_a_kill_at_any_call_of_a_resume_and_another_of_the_recovery_lose_no_commit(
    server: Server, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(Death):
        train(tmp_path / "begun", RECIPE, die_at=6)
    assert checkpoints(tmp_path / "begun") == ["step-2-a1", "step-4-a1"]
    whole = Run(server, shutil.copytree(tmp_path / "begun", tmp_path / "whole"), committed=(2, 4)).life()
    assert (whole.resumed, whole.committed, whole.end) == (4, (6,), expected)
    assert any("step-2-a1/manifest.json" in call for call in whole.calls), "pruning is a part of it"
    died: list[bool] = []

    def die(death: tuple[int, Kind]) -> None:
        at, kind = death
        run = Run(server, shutil.copytree(tmp_path / "begun", tmp_path / f"{at}-{kind}"), committed=(2, 4))
        again = 1 + at * 7 % len(whole.calls)
        died.append(run.life(dies_at=at, kind=kind).has_died)
        died.append(run.life(dies_at=again, kind=kind).has_died)
        run.ends_like(expected)

    server.each(die, deaths(whole.calls))

    assert sum(died) > len(whole.calls) // 2


def test_a_power_loss_at_any_call_of_a_resumed_session_loses_no_commit(
    server: Server, expected: str, tmp_path: Path
) -> None:
    life = Life(folder=str(tmp_path / "whole"), seed=9, power_fails=True)
    whole = server.live(life)
    assert expected == whole.end
    assert any(call.startswith("fsync") for call in whole.calls)
    losses: tuple[Loss, ...] = get_args(Loss)
    died: list[bool] = []

    def die(at: int) -> None:
        folder = tmp_path / str(at)
        told = server.live(replace(life, folder=str(folder), dies_at=at))
        died.append(told.has_died)
        if told.has_died:
            left = left_by(folder, losses[at % len(losses)])
            Run(server, left, committed=told.committed).ends_like(expected)

    server.each(die, range(1, len(whole.calls) + 1))

    assert sum(died) > len(whole.calls) // 2
