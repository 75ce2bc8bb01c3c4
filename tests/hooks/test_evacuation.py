"""A notice, from the session down to the bytes: what is saved in the time that is left, and what is never risked."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hooks.folders import checkpoints, of_kind
from tests.hooks.held import Held, held, train
from tests.hooks.states import a_store
from tests.hooks.storages import Dying, MemoryStorage
from tests.hooks.training import Recipe, undisturbed
from trainer_hooks import Session, keeper
from trainer_hooks.attention import Attention
from trainer_hooks.checkpoint.emergency import Action, Plan, Situation, decide
from trainer_hooks.checkpoint.save import Costs
from trainer_hooks.checkpoint.saver import Saver
from trainer_hooks.notice.listener import Heard
from trainer_hooks.protocol import Ended, Notice
from trainer_hooks.storage import Buffer, LocalStorage, Storage

pytestmark = pytest.mark.system

RECIPE = Recipe(steps=14, every=3)
NOTICE = 10
"""The step in which the notice comes. The save of step 9 is in flight, or just committed."""

GB = 10**9


@dataclass
class Case:
    """A notice of `seconds` in step 10. Stores are as fast as `costs` say: the real ones would depend on the machine.

    What is held goes on once the session has decided; where that is to give it up, once it is given up.
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
        if session.step < NOTICE - 1 or not self.is_in_flight:
            session._keeper.wait()
            session._keeper._saver.wait_shipped()
        if session.step == NOTICE - 2 and self.is_in_flight:
            self._storage.hold()
        if session.step == NOTICE - 1:
            self._notice(session)

    def _notice(self, session: Session) -> None:
        saver, shipper = session._keeper._saver, session._keeper._shipper
        if shipper is not None:
            session._keeper.wait()  # on the disk it is; on its way it is to the run folder
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
        if action.plan not in (Plan.NEW, Plan.LOCAL_ONLY):
            self._storage.let_go()
        return action


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


# --- with a local disk in front ---


@pytest.mark.parametrize(
    ("seconds", "survives", "plan", "there", "on_disk"),
    [
        (120, False, Plan.FINISH_THEN_NEW, [3, 6, 9, 10], 10),
        (30, True, Plan.FINISH_THEN_NEW, [3, 6, 9, 10], 10),
        (13, False, Plan.FINISH, [3, 6, 9], 9),
        (13, True, Plan.LOCAL_ONLY, [3, 6], 10),  # 2 s
        (5, False, Plan.FINISH, [3, 6, 9], 9),
        (5, True, Plan.LOCAL_ONLY, [3, 6], 10),
        (0, True, Plan.FINISH, [3, 6, 9], 9),
        (None, True, Plan.FINISH_THEN_NEW, [3, 6, 9, 10], 10),
    ],
)
def test_with_a_checkpoint_on_its_way_from_the_disk(
    seconds: float | None,
    survives: bool,
    plan: Plan,
    there: list[int],
    on_disk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, disk = tmp_path / "run", tmp_path / "disk"
    monkeypatch.setenv("LAUNCH_CHECKPOINT_LOCAL", str(disk))
    monkeypatch.setenv("LAUNCH_CHECKPOINT_LOCAL_SURVIVES", str(int(survives)))
    storage = held(monkeypatch, folder)
    case = Case(monkeypatch, folder, seconds, is_in_flight=True, new_bytes=GB if seconds != 13 else 2 * GB)

    case.run(storage)

    (own,) = disk.iterdir()
    assert (case.plan, steps(folder), steps(own)[-1]) == (plan, there, on_disk)
    no_worse(case, storage)
    assert undisturbed(RECIPE) == train(folder, RECIPE, seed=7)[1]


def test_what_stranded_on_the_disk_is_shipped_and_not_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, disk = tmp_path / "run", tmp_path / "disk"
    monkeypatch.setenv("LAUNCH_CHECKPOINT_LOCAL", str(disk))

    class Away(Held):
        is_away = False

        def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
            if self.is_away and path.startswith("chunks/"):
                raise OSError(101, "Network is unreachable", path)
            super().put(path, data, exclusive=exclusive)

    storage = Away(LocalStorage(folder))
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: storage)
    count = Session._count

    def notice_at_9(session: Session, step: int, *, is_last: bool = False) -> None:
        """The save of step 9 fails to arrive; before step 10 ends, the run folder is back."""
        count(session, step, is_last=is_last)
        if step == 9:
            session._keeper.wait()
            session._keeper._saver.wait_shipped()
            storage.is_away = False
            session._attention._hear(Heard(kind="preemption", source="test"))
            session._attend(0.0)

    monkeypatch.setattr(Session, "_count", notice_at_9)

    def act(session: Session) -> None:
        session._keeper.wait()
        session._keeper._saver.wait_shipped()
        storage.is_away = session.step == 8

    with pytest.raises(SystemExit) as left:
        train(folder, RECIPE, act=act)

    assert left.value.code == 75
    assert steps(folder) == [3, 6, 9]
    (own,) = disk.iterdir()
    assert steps(own)[-1] == 9
    assert [record.reason for record in of_kind(Ended, folder)] == ["preempted"]


# --- killed meanwhile ---


class Parted(MemoryStorage):
    """What kills does so at the checkpoints only: the journal's thread has a right to its own test."""

    def __init__(self, checkpoints: Storage) -> None:
        super().__init__()
        self.checkpoints = checkpoints

    def _of(self, path: str) -> Any:
        return self.checkpoints if path.startswith(("chunks", "checkpoints")) else super()

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        self._of(path).put(path, data, exclusive=exclusive)

    def sync(self, folder: str) -> None:
        self._of(folder).sync(folder)

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        content: bytes = self._of(path).read(path, limit_bytes=limit_bytes)
        return content

    def read_into(self, path: str, target: memoryview) -> None:
        self._of(path).read_into(path, target)

    def names(self, folder: str) -> tuple[str, ...]:
        found: tuple[str, ...] = self._of(folder).names(folder)
        return found

    def sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = self._of(folder).sizes(folder)
        return found

    def delete(self, path: str) -> None:
        self._of(path).delete(path)

    def sweep(self, folder: str) -> None:
        self._of(folder).sweep(folder)


def die_in_the_emergency(
    monkeypatch: pytest.MonkeyPatch, at: int, when: Any, *, is_in_flight: bool
) -> tuple[MemoryStorage, bool, int]:
    """What is left behind, whether it came to the death, and the step that was saved before it."""
    disk = MemoryStorage()
    dying = Dying(disk, when=when)
    storage = Held(Parted(dying))
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: storage)

    def act(session: Session) -> None:
        if session.step < NOTICE - 1 or not is_in_flight:
            session._keeper.wait()
        if session.step == NOTICE - 2 and is_in_flight:
            storage.hold()
        if session.step == NOTICE - 1:
            assert not is_in_flight or storage.knocked.wait(20)
            dying._at = len(dying.calls) + at
            session._attention._hear(Heard(kind="preemption", source="test"))

    def deciding(now: Situation) -> Action:
        storage.let_go()
        return decide(now)

    monkeypatch.setattr(keeper, "decide", deciding)
    with pytest.raises(SystemExit):
        train(Path("anywhere"), RECIPE, act=act)
    return disk, dying._is_dead, NOTICE - 1 if not is_in_flight else NOTICE - 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("is_in_flight", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_call_of_the_emergency_save_what_was_there_is_there(
    when: Any, is_in_flight: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, found = undisturbed(RECIPE), []
    for at in range(1, 100):
        with monkeypatch.context() as patched:
            disk, is_dead, before = die_in_the_emergency(patched, at, when, is_in_flight=is_in_flight)
        if not is_dead:
            break
        monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri, disk=disk: disk)
        session, fingerprint = train(Path("anywhere"), RECIPE, seed=7)
        assert session.resumed_from is not None
        found.append(int(session.resumed_from.split("-")[1]))
        assert fingerprint == expected, at

    assert found == sorted(found), "the later the death, the more is there"
    assert set(found) <= {before, NOTICE - 1, NOTICE}
    assert found[0] == before
    assert found[-1] == (NOTICE if when == "after" else NOTICE - 1), "the commit is the last call"
    assert len(found) > 5


# --- for real ---

CHILD = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
from tests.hooks.held import Held, train
from tests.hooks.storages import Throttled
from tests.hooks.training import Recipe
from trainer_hooks.storage import LocalStorage
import trainer_hooks.keeper, trainer_hooks.session
torch.set_num_threads(1)
storage = Held(Throttled(LocalStorage(Path(sys.argv[1])), bytes_per_second=1_000_000, clock=time))
trainer_hooks.session.open_storage = lambda uri: storage
decide = trainer_hooks.keeper.decide
def deciding(now):
    assert now.in_flight is not None
    storage.let_go()
    action = decide(now)
    print(action.plan, flush=True)
    return action
trainer_hooks.keeper.decide = deciding
def act(session):
    if session.step < 9:
        session._keeper.wait()
    if session.step == 8:
        storage.hold()
    if session.step == 9:
        assert storage.knocked.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)
        while session._attention._urgent == 0:
            signal.sigtimedwait([signal.SIGUSR2], 0.01)
train(Path(sys.argv[1]), Recipe(steps=14, every=3), act=act)
"""


def test_terminated_while_a_save_is_in_flight_it_finishes_that_and_saves_the_newest(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent

    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=root, check=False, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (75, "finish_then_new\n"), done.stderr
    assert steps(tmp_path) == [3, 6, 9, 10]
    assert of_kind(Notice, tmp_path) == [Notice(source="signal")]
    assert [record.reason for record in of_kind(Ended, tmp_path)] == ["preempted"]
    assert undisturbed(RECIPE) == train(tmp_path, RECIPE, seed=7)[1]
