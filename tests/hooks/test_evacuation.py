"""A notice, from the session down to the bytes: what is saved in the time that is left, and what is never risked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hooks.folders import checkpoints, of_kind
from tests.hooks.held import Held, held, train
from tests.hooks.states import a_store
from tests.hooks.storages import Dying, MemoryStorage, Throttled
from tests.hooks.training import Recipe, undisturbed
from trainer_hooks import Session, keeper
from trainer_hooks.attention import Attention
from trainer_hooks.checkpoint.emergency import Action, Plan, Situation, decide
from trainer_hooks.checkpoint.save import Costs
from trainer_hooks.checkpoint.saver import Saver
from trainer_hooks.errors import Damaged
from trainer_hooks.notice.listener import Heard
from trainer_hooks.protocol import Ended, Notice
from trainer_hooks.storage import Buffer, LocalStorage, Storage

RECIPE = Recipe(steps=14, every=3)
NOTICE = 10
"""The step in which the notice comes. The save of step 9 is in flight, or just committed."""

GB = 10**9


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith("LAUNCH_")]:
        monkeypatch.delenv(name)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    hook = sys.excepthook
    yield
    for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), before, strict=True):
        signal.signal(number, handler)
    sys.excepthook = hook


@dataclass
class Case:
    """A notice of `seconds` in step 10. Stores are as fast as `costs` say: the real ones would depend on the machine.

    What is held goes on once the session has decided: after a decision for a new save, once the other was given up.
    """

    monkeypatch: pytest.MonkeyPatch
    folder: Path
    seconds: float | None
    is_in_flight: bool
    remote_speed: float = 1e8
    new_bytes: int = GB
    plan: Plan | None = None
    before: tuple[str, ...] = ()

    def run(self, storage: Held) -> None:
        self._storage = storage
        self.monkeypatch.setattr(Attention, "seconds_left", property(lambda attention: self.seconds))
        self.monkeypatch.setattr(keeper, "decide", self._decide)
        give_up = Saver.give_up

        def give_up_and_let_go(saver: Saver) -> None:
            give_up(saver)
            storage.let_go()

        with self.monkeypatch.context() as patched:
            patched.setattr(Saver, "give_up", give_up_and_let_go)
            with pytest.raises(SystemExit) as left:
                train(self.folder, RECIPE, act=self._act)
        assert left.value.code == 75

    def _act(self, session: Session) -> None:
        session._keeper.wait()
        session._keeper._saver.wait_shipped() if session.step < 9 or not self.is_in_flight else None
        if session.step == 8 and self.is_in_flight:
            self._storage.hold()
        if session.step == NOTICE - 1:
            self._notice(session)

    def _notice(self, session: Session) -> None:
        saver, shipper = session._keeper._saver, session._keeper._shipper
        speed = self.remote_speed if shipper is None else 10 * self.remote_speed
        saver.costs = Costs(
            capture_seconds=0.0,
            stood_seconds=0.0,
            fenced_seconds=0.0,
            durable_seconds=1.0,
            written_bytes=self.new_bytes,
            bytes_per_second=speed,
        )
        if shipper is not None:
            shipper.bytes_per_second = self.remote_speed
        assert not self.is_in_flight or self._storage.knocked.wait(60)
        self.before = tuple(checkpoints(self.folder))
        self._storage.deleted.clear()
        session._attention._hear(Heard(kind="preemption", source="test", seconds_left=self.seconds))

    def _decide(self, now: Situation) -> Action:
        action = decide(now)
        self.plan = action.plan
        if action.plan is not Plan.NEW:
            self._storage.let_go()
        return action


class Beside(Held):
    """Saves of a single tier are in flight while the training waits for nothing: see `Case`."""


def no_worse(case: Case, storage: Held) -> None:
    assert storage.deleted == [], "nothing is removed while a notice runs out"
    store = a_store(LocalStorage(case.folder))
    assert {store.verify(name).step for name in checkpoints(case.folder)} >= {
        store.manifest(name).step for name in case.before
    }


def steps(folder: Path) -> list[int]:
    return [int(name.split("-")[1]) for name in checkpoints(folder)]


@pytest.mark.parametrize(
    ("seconds", "plan", "there"),
    [
        (120, Plan.NEW, [6, 9, 10]),  # a new save takes 11 s
        (30, Plan.NEW, [6, 9, 10]),
        (15, Plan.NEW, [6, 9, 10]),
        (5, Plan.NOTHING, [6, 9]),
        (0, Plan.NOTHING, [6, 9]),
        (None, Plan.NEW, [6, 9, 10]),
    ],
)
def test_with_nothing_in_flight(
    seconds: float | None, plan: Plan, there: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = held(monkeypatch, tmp_path)
    case = Case(monkeypatch, tmp_path, seconds, is_in_flight=False)

    case.run(storage)

    assert (case.plan, steps(tmp_path)) == (plan, there)
    assert of_kind(Notice, tmp_path) == [Notice(source="test", seconds_left=seconds)]
    assert [record.reason for record in of_kind(Ended, tmp_path)] == ["preempted"]
    no_worse(case, storage)
    assert undisturbed(RECIPE) == train(tmp_path, RECIPE, seed=7)[1]


@pytest.mark.parametrize(
    ("seconds", "plan", "there"),
    [
        (120, Plan.FINISH_THEN_NEW, [3, 6, 9, 10]),  # 1 s and 11 s
        (30, Plan.FINISH_THEN_NEW, [3, 6, 9, 10]),
        (14, Plan.NEW, [3, 6, 10]),
        (5, Plan.FINISH, [3, 6, 9]),
        (0, Plan.FINISH, [3, 6, 9]),
        (None, Plan.FINISH_THEN_NEW, [3, 6, 9, 10]),
    ],
)
def test_with_a_save_in_flight(
    seconds: float | None, plan: Plan, there: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = held(monkeypatch, tmp_path)
    case = Case(monkeypatch, tmp_path, seconds, is_in_flight=True)

    case.run(storage)

    assert (case.plan, steps(tmp_path)) == (plan, there)
    assert [record.reason for record in of_kind(Ended, tmp_path)] == ["preempted"]
    no_worse(case, storage)
    assert undisturbed(RECIPE) == train(tmp_path, RECIPE, seed=7)[1]
