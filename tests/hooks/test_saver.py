"""Saving beside the training: every save holds its own step's bytes, and no failure passes unseen."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.hooks.folders import checkpoints, of_kind
from tests.hooks.held import Held, held
from tests.hooks.states import a_store
from trainer_hooks import SavingFailed, Session
from trainer_hooks.checkpoint import layout
from trainer_hooks.checkpoint.memory import Memory, Slot
from trainer_hooks.checkpoint.saver import LAZY_SHARE, Saver
from trainer_hooks.protocol import Committed
from trainer_hooks.storage import Buffer, LocalStorage

MODES = ("overlap", "lazy", "blocking")
PIECE_BYTES = 1 << 16


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", PIECE_BYTES)  # many chunks of a small state
    monkeypatch.setattr(layout, "OWN_BYTES", PIECE_BYTES // 4)


class Training:
    """Weights in sixteen chunks, their momentum in as many, and a buffer that no optimizer owns."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(16)))
        self.model.register_buffer("seen", torch.zeros(4096))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.session = Session(run_uri=str(folder), **settings, model=self.model, optimizer=self.optimizer)
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def step(self) -> None:
        """What the state is before it is what its checkpoint must hold."""
        self.states[self.session.step] = {name: one.clone() for name, one in self.model.state_dict().items()}
        self.model.get_buffer("seen").add_(1)
        self.model(torch.ones(2, 128)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def saver(self) -> Saver:
        return self.session._keeper._saver

    @property
    def memory(self) -> Memory:
        assert self.saver._memory is not None
        return self.saver._memory


def verify(folder: Path, training: Training) -> list[int]:
    """The steps in the folder, each seen to hold what there was at its safe point."""
    store, found = a_store(LocalStorage(folder)), []
    for name in checkpoints(folder):
        loaded = store.load(name)
        found.append(loaded.manifest.step)
        if loaded.manifest.step in training.states:
            expected = training.states[loaded.manifest.step]
            saved = loaded.components["model"]
            assert all(torch.equal(expected[key], saved[key]) for key in expected), name
    return found


# --- the bytes of a save ---


@pytest.mark.parametrize("mode", MODES)
def test_a_save_asked_for_before_the_last_is_durable_has_its_own_bytes(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)
    storage = held(monkeypatch, tmp_path)
    wait = Saver.wait_for_turn

    def let_go_and_wait(saver: Saver) -> None:
        assert saver.current is None or storage.knocked.wait(20)
        storage.let_go()
        wait(saver)

    monkeypatch.setattr(Saver, "wait_for_turn", let_go_and_wait)
    training = Training(tmp_path, checkpoint_every_steps=1, keep=100)
    with training.session as session:
        for _ in session(range(8)):
            if mode == "lazy":
                storage.let_go()  # its fence waits for writes, so they may not wait for the next save
            training.step()
            storage.hold()  # the save of this step will not be durable when the next one is due
        storage.let_go()

    assert verify(tmp_path, training) == list(range(1, 9))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_saves_the_state_of_the_safe_point(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)
    monkeypatch.setenv("LAUNCH_CHECKPOINT_AUDIT", "1")
    training = Training(tmp_path, checkpoint_every_steps=3, keep=100)
    with training.session as session:
        for _ in session(range(10)):
            training.step()

    assert verify(tmp_path, training) == [3, 6, 9, 10]


def test_a_lazy_snapshot_takes_a_quarter_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", "lazy")
    held_bytes: list[int] = []
    take = Memory.take

    def watch(memory: Memory, size_bytes: int, *, waits: bool = True) -> Slot:
        slot = take(memory, size_bytes, waits=waits)
        held_bytes.append(memory._taken_bytes + sum(one.bytes for one in list(memory._free)))
        return slot

    monkeypatch.setattr(Memory, "take", watch)
    training = Training(tmp_path, checkpoint_every_steps=2, keep=100)
    with training.session as session:
        for _ in session(range(6)):
            training.step()

    state_bytes = of_kind(Committed, tmp_path)[-1].bytes
    assert state_bytes > 30 * PIECE_BYTES
    assert max(held_bytes) <= LAZY_SHARE * state_bytes + PIECE_BYTES
    assert verify(tmp_path, training) == [2, 4, 6]


def test_waiting_for_the_save_before_is_what_the_next_one_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = held(monkeypatch, tmp_path)
    wait = Saver.wait_for_turn

    def dawdle(saver: Saver) -> None:
        if saver.current is not None:
            threading.Timer(0.2, storage.let_go).start()
        wait(saver)

    monkeypatch.setattr(Saver, "wait_for_turn", dawdle)
    training = Training(tmp_path, checkpoint_every_steps=2)
    with training.session as session:
        for batch in session(range(5)):
            training.step()
            if batch == 1:
                storage.hold()

    first, second, *_ = of_kind(Committed, tmp_path)
    assert (first.step, second.step) == (2, 4)
    assert second.seconds >= 0.2
    assert second.lost_seconds >= 0.2
    assert second.durable_seconds >= 0.2
    costs = training.saver.costs
    assert costs is not None
    assert costs.capture_seconds <= costs.stood_seconds


# --- failures ---


class Broken(Held):
    """Fails as nobody expects it; from the chunk `nth` on, while `is_broken`."""

    is_broken = False
    nth = 1
    tries = 0

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        if self.is_broken and path.startswith("chunks/"):
            self.tries += 1
            if self.tries >= self.nth:
                raise RuntimeError("a library's own error")
        super().put(path, data, exclusive=exclusive)


def broken(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Broken:
    storage = Broken(LocalStorage(folder))
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: storage)
    return storage


@pytest.mark.parametrize("nth", [1, 7, 30])
@pytest.mark.parametrize("mode", MODES)
def test_no_error_in_a_writers_thread_is_swallowed(
    nth: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)
    storage = broken(monkeypatch, tmp_path)
    training = Training(tmp_path, checkpoint_every_steps=2, keep=100)
    with training.session as session:
        for batch in session(range(8)):
            training.step()
            training.saver.wait()
            if batch >= 3:
                storage.is_broken, storage.nth, storage.tries = batch == 3, nth, 0

    said = capsys.readouterr().err
    assert said.count("could not be written (RuntimeError: a library's own error)") == 1
    assert "the checkpoint of step 4 could not be written" in said
    assert verify(tmp_path, training) == [2, 6, 8]


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_save_gives_all_its_memory_back(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)
    storage = broken(monkeypatch, tmp_path)
    storage.is_broken = True
    training = Training(tmp_path, checkpoint_every_steps=2)

    def run() -> None:
        for _ in training.session(range(100)):
            training.step()
            training.saver.wait()

    with pytest.raises(SavingFailed, match="a library's own error"):
        run()
    training.session.close()

    assert training.memory._taken_bytes == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nth", [1, 2, 9, 20])
def test_a_snapshot_without_room_fails_alone_and_gives_back_what_it_took(
    nth: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)
    left = [nth]
    take = Memory.take

    def scarce(memory: Memory, size_bytes: int, *, waits: bool = True) -> Slot:
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError("no room")
        return take(memory, size_bytes, waits=waits)

    monkeypatch.setattr(Memory, "take", scarce)
    training = Training(tmp_path, checkpoint_every_steps=2, keep=100)
    with training.session as session:
        for batch in session(range(6)):
            training.step()
            if batch == 2:
                training.saver.wait()
                assert training.memory._taken_bytes == 0
                assert training.saver.failures_in_row == 1

    assert verify(tmp_path, training) == [4, 6]


def test_after_one_chunk_has_failed_the_others_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = broken(monkeypatch, tmp_path)
    storage.is_broken = True
    training = Training(tmp_path, checkpoint_every_steps=1)
    for _ in training.session(range(1), steps=2):
        training.step()
        training.saver.wait()
        storage.is_broken = False if training.session.step else storage.is_broken
    training.session.close()

    assert storage.tries == 1, "the store has tried for long, and there are sixty thousand more"


# --- the audit ---


def test_a_state_changed_behind_the_optimizers_back_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_AUDIT", "1")
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", "lazy")  # while a write is held, so is the copy
    storage = held(monkeypatch, tmp_path)
    training = Training(tmp_path, checkpoint_every_steps=2, keep=100)
    with training.session as session:
        for batch in session(range(7)):
            if batch == 4:
                assert storage.knocked.wait(20)
                with torch.no_grad():
                    training.model.get_parameter("7.weight").mul_(0.5)
                storage.let_go()
            training.step()
            training.saver.wait() if batch != 3 else None
            if batch == 3:
                storage.hold()

    said = capsys.readouterr().err
    assert "the checkpoint of step 4 could not be written (Torn: model/7.weight changed between" in said
    assert "LAUNCH_CHECKPOINT_SNAPSHOT=blocking" in said
    assert verify(tmp_path, training) == [2, 6, 7]


def test_without_such_a_change_the_audit_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_AUDIT", "1")
    training = Training(tmp_path, checkpoint_every_steps=2, keep=100)
    with training.session as session:
        for _ in session(range(6)):
            training.step()

    assert "could not" not in capsys.readouterr().err
    assert verify(tmp_path, training) == [2, 4, 6]
