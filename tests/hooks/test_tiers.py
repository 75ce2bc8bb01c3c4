"""Checkpoints on a fast disk of the machine first, in the run folder behind it: nothing is lost between the two."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.hooks.folders import checkpoints, launch, of_kind
from tests.hooks.held import Held, held, install, train
from tests.hooks.states import a_store
from tests.hooks.storages import Full
from tests.hooks.training import Death, Parts, Recipe, undisturbed
from trainer_hooks import CheckpointsDamaged, SavingFailed, Session
from trainer_hooks.checkpoint.tiers import Shipper
from trainer_hooks.protocol import Committed, Started
from trainer_hooks.schedule import SaveCost
from trainer_hooks.storage import Buffer, LocalStorage, Storage

pytestmark = pytest.mark.system

RECIPE = Recipe(steps=10, every=4)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's fast disk."""
    monkeypatch.setenv("LAUNCH_CHECKPOINT_LOCAL", str(tmp_path / "disk"))
    return tmp_path / "disk"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run folder."""
    return tmp_path / "run"


def on(disk: Path) -> Path:
    """The run's own folder there."""
    (found,) = disk.iterdir()
    return found


def at(step: int, act: Callable[[Session], object]) -> Callable[[Session], None]:
    """Once, while that step is running."""
    return lambda session: None if session.step + 1 != step else (act(session), None)[1]


def settle(session: Session) -> None:
    """All that was saved is where it goes, or could not be brought there."""
    session._keeper.wait()
    session._keeper._saver.wait_shipped()


def die(session: Session) -> None:
    settle(session)
    raise Death


def spoil(folder: Path, name: str) -> None:
    """The checkpoint's manifest is not what was written."""
    path = folder / "checkpoints" / name / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"', b"?", 1))


def seen_steps(folder: Path, attempt: int = 1) -> list[tuple[int, bool]]:
    return [(record.step, record.local_only) for record in of_kind(Committed, folder, attempt)]


# --- committed here first, there later ---


def test_a_checkpoint_is_on_the_disk_at_once_and_in_the_run_folder_later(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = held(monkeypatch, folder)
    storage.hold()

    def look(session: Session) -> None:
        session._keeper.wait()
        assert storage.knocked.wait(60)
        assert (checkpoints(on(disk)), checkpoints(folder)) == (["step-4-a1"], [])
        assert session._keeper.has(4)
        storage.let_go()
        session._keeper._saver.wait_shipped()

    _, fingerprint = train(folder, RECIPE, act=at(5, look))

    assert undisturbed(RECIPE) == fingerprint
    assert checkpoints(folder)[-1] == "step-10-a1"
    assert seen_steps(folder)[:2] == [(4, True), (4, False)]


def test_each_step_is_told_twice_and_the_second_time_it_has_arrived(folder: Path, disk: Path) -> None:
    train(folder, RECIPE, act=settle)

    assert seen_steps(folder) == [(step, local) for step in (4, 8, 10) for local in (True, False)]
    first, second = of_kind(Committed, folder)[-2:]
    assert 0 < second.written_bytes <= first.bytes == second.bytes
    assert second.durable_seconds >= first.durable_seconds
    assert (first.kept, second.kept) == (2, 2)


def test_the_end_of_a_training_waits_until_all_has_arrived(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = held(monkeypatch, folder)
    storage.hold()
    wait = Shipper.wait

    def let_go_and_wait(shipper: Shipper, timeout_seconds: float | None = None) -> bool:
        storage.let_go()
        return wait(shipper, timeout_seconds)

    monkeypatch.setattr(Shipper, "wait", let_go_and_wait)
    with Session(run_uri=str(folder), checkpoint_every_steps=100, model=nn.Linear(2, 1)) as session:
        list(session(range(3)))

        assert checkpoints(folder) == ["step-3-a1"]


@pytest.mark.parametrize("survives", [False, True])
def test_what_is_on_the_disk_only_is_lost_with_the_machine(
    survives: bool, folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_LOCAL_SURVIVES", str(int(survives)))
    found: list[SaveCost] = []

    def look(session: Session) -> None:
        settle(session)
        keeper = session._keeper
        assert keeper._shipper is not None
        keeper._shipper.bytes_per_second = 1.0
        cost = keeper._save_cost()
        assert cost is not None
        assert keeper.costs is not None
        found.append(cost)
        shipping = 0 if survives else keeper.costs.written_bytes
        assert cost.safe_seconds == keeper.costs.durable_seconds + shipping > 0

    train(folder, RECIPE, act=at(7, look))

    assert len(found) == 1


def test_both_places_are_pruned(folder: Path, disk: Path) -> None:
    recipe = Recipe(steps=10, every=1)

    train(folder, recipe, act=settle)

    assert checkpoints(on(disk)) == ["step-9-a1", "step-10-a1"]
    assert checkpoints(folder)[-1] == "step-10-a1"
    assert len(checkpoints(folder)) == 2
    for place in (on(disk), folder):
        store = a_store(LocalStorage(place))
        named = {chunk.hash for name in store.names() for chunk in store.verify(name).chunks}
        assert named == {path.name for path in (place / "chunks").iterdir()}


def test_what_never_changes_is_shipped_once(folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = held(monkeypatch, folder)
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with Session(run_uri=str(folder), checkpoint_every_steps=1, model=model, optimizer=optimizer) as session:
        for _ in session(range(5)):
            model(torch.ones(1, 100)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            session._keeper.wait()
            session._keeper._saver.wait_shipped()

    chunks = [path for path in storage.seen if path.startswith("chunks/")]
    assert len(chunks) == len(set(chunks)) == 1 + 5, "the frozen one, and one for each step"


def test_only_the_newest_waits_its_turn_and_an_overtaken_one_is_no_failure(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = held(monkeypatch, folder)

    def act(session: Session) -> None:
        session._keeper.wait()
        if session.step == 1:
            session._keeper._saver.wait_shipped()
            storage.hold()
        if session.step == 2:
            assert storage.knocked.wait(60)
        if session.step == 8:
            assert checkpoints(on(disk)) == ["step-2-a1", "step-7-a1", "step-8-a1"], "what is on its way is kept"
            storage.let_go()
            session._keeper._saver.wait_shipped()

    train(folder, Recipe(steps=9, every=1), act=act)

    arrived = [step for step, is_local in seen_steps(folder) if not is_local]
    assert arrived == [1, 2, 8, 9], "however slow the line, what it has begun arrives"
    assert "could not" not in capsys.readouterr().err


# --- what a resume takes ---


@pytest.mark.parametrize("newer", ["disk", "run folder"])
def test_a_resume_takes_the_newest_of_both(newer: str, folder: Path, disk: Path) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    lacking = folder if newer == "disk" else on(disk)
    shutil.rmtree(lacking / "checkpoints" / "step-8-a1")

    session, fingerprint = train(folder, RECIPE, seed=7)

    assert session.resumed_from == "step-8-a1"
    assert undisturbed(RECIPE) == fingerprint


def test_of_two_that_are_the_same_the_disks_is_taken(
    folder: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    for chunk in (folder / "chunks").iterdir():
        chunk.write_bytes(b"nobody reads this")

    session, fingerprint = train(folder, RECIPE, seed=7)

    assert (session.resumed_from, undisturbed(RECIPE)) == ("step-8-a1", fingerprint)
    assert "damaged" not in capsys.readouterr().err


def test_a_lost_disk_costs_nothing_that_has_arrived(folder: Path, disk: Path) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    shutil.rmtree(disk)

    session, fingerprint = train(folder, RECIPE, seed=7)

    assert (session.resumed_from, undisturbed(RECIPE)) == ("step-8-a1", fingerprint)


@pytest.mark.parametrize("damage", ["manifest", "chunks", "everything"])
def test_for_a_damaged_one_on_the_disk_the_run_folders_steps_in(
    damage: str, folder: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    if damage == "manifest":
        spoil(on(disk), "step-8-a1")
    for chunk in (on(disk) / "chunks").iterdir() if damage != "manifest" else ():
        chunk.write_bytes(bytes(chunk.stat().st_size))
    if damage == "everything":
        spoil(on(disk), "step-4-a1")

    session, fingerprint = train(folder, RECIPE, seed=7)

    assert (session.resumed_from, undisturbed(RECIPE)) == ("step-8-a1", fingerprint)
    assert "step-8-a1 is damaged and was skipped, 0 steps lost" in capsys.readouterr().err


def test_what_a_damaged_disk_costs_is_told(folder: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    shutil.rmtree(folder / "checkpoints" / "step-8-a1")
    spoil(on(disk), "step-8-a1")
    shutil.rmtree(on(disk) / "checkpoints" / "step-4-a1")

    session, fingerprint = train(folder, RECIPE, seed=7)

    assert (session.resumed_from, undisturbed(RECIPE)) == ("step-4-a1", fingerprint)
    assert of_kind(Started, folder, 2) == [Started(step=4, resumed_from="step-4-a1", lost_steps=4)]
    assert "step-8-a1 is damaged and was skipped, 4 steps lost" in capsys.readouterr().err


def test_if_nothing_verifies_in_either_place_it_does_not_start_over(folder: Path, disk: Path) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    for place in (on(disk), folder):
        for name in checkpoints(place):
            spoil(place, name)

    with pytest.raises(CheckpointsDamaged):
        train(folder, RECIPE)


def test_a_disk_that_cannot_be_read_gives_way_to_the_same_checkpoint_in_the_run_folder(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    broken, read = on(disk), LocalStorage.read

    def failing(storage: LocalStorage, path: str, *, limit_bytes: int) -> bytes:
        if storage._root == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return read(storage, path, limit_bytes=limit_bytes)

    monkeypatch.setattr("trainer_hooks.checkpoint.reader.PAUSES_SECONDS", ())
    with monkeypatch.context() as patched:
        patched.setattr(LocalStorage, "read", failing)
        session = Session(run_uri=str(folder), **_objects())
    session.close()

    assert session.resumed_from == "step-8-a1"


def _objects() -> dict[str, Any]:
    return Parts(RECIPE, seed=3).objects()


def test_what_was_found_on_the_disk_only_is_shipped_when_the_session_starts(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    shutil.rmtree(folder / "checkpoints" / "step-8-a1")

    session = Session(run_uri=str(folder), **_objects())
    session._keeper._saver.wait_shipped()

    assert checkpoints(folder) == ["step-4-a1", "step-8-a1"]
    session.close()
    assert [(one.step, one.name, one.local_only) for one in of_kind(Committed, folder, 2)] == [(8, "step-8-a1", False)]
    shutil.rmtree(disk)
    assert undisturbed(RECIPE) == train(folder, RECIPE, seed=5)[1]


def test_what_is_in_both_places_is_not_shipped_again(folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    storage = held(monkeypatch, folder)

    session = Session(run_uri=str(folder), **_objects())
    session.close()

    assert storage.seen == []


# --- a run folder that fails ---


def unreachable(monkeypatch: pytest.MonkeyPatch) -> Full:
    broken = Full(LocalStorage(Path()), is_full=False, number=errno.EHOSTUNREACH)

    def wrap(storage: Storage) -> Full:
        broken.storage = storage
        return broken

    install(monkeypatch, wrap)
    return broken


def test_while_the_run_folder_is_away_the_training_goes_on_and_ships_later(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = unreachable(monkeypatch)

    def act(session: Session) -> None:
        settle(session)
        broken.is_full = session.step + 1 in (4, 8, 16, 20)

    _, fingerprint = train(folder, Recipe(steps=30, every=4), act=act)

    said = capsys.readouterr().err
    assert [said.count(f"step-{step}-a1 stays on this machine's disk") for step in (4, 8, 12, 16, 20)] == [
        1,
        1,
        0,
        1,
        1,
    ]
    assert said.count("1 more in a row and the training stops") == 2
    assert undisturbed(Recipe(steps=30, every=4)) == fingerprint
    assert [step for step, is_local in seen_steps(folder) if is_local] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert [step for step, is_local in seen_steps(folder) if not is_local] == [12, 24, 28, 30]


def test_three_that_cannot_be_shipped_end_the_training(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = unreachable(monkeypatch)
    broken.is_full = True

    def act(session: Session) -> None:
        settle(session)
        assert session.step < 17

    with pytest.raises(SavingFailed, match="No route to host"):
        train(folder, Recipe(steps=30, every=4), act=act)

    assert checkpoints(on(disk)) == ["step-8-a1", "step-12-a1"]


class FailsAtFirst(Held):
    """The first so many chunks do not come through."""

    failures = 0

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        if path.startswith("chunks/") and self.failures:
            self.failures -= 1
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)
        super().put(path, data, exclusive=exclusive)


@pytest.mark.parametrize(("failures", "is_there"), [(2, True), (3, False)])
def test_the_last_one_is_shipped_again_if_it_did_not_arrive(
    failures: int, is_there: bool, folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FailsAtFirst(LocalStorage(folder))
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: storage)
    storage.failures = failures
    session = Session(run_uri=str(folder), checkpoint_every_steps=100, model=nn.Linear(2, 1))
    if is_there:
        list(session(range(3)))
    else:
        with pytest.raises(SavingFailed, match="timed out"):
            list(session(range(3)))
    session.close()

    assert checkpoints(on(disk)) == ["step-3-a1"], "it was not written a second time"
    assert checkpoints(folder) == (["step-3-a1"] if is_there else [])


# --- a newer attempt ---


def test_a_superseded_attempt_ships_nothing(folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = held(monkeypatch, folder)

    def newer(session: Session) -> None:
        session._keeper.wait()
        storage.put("journal/002/00000000.jsonl", b"")

    with pytest.raises(SystemExit) as left:
        train(folder, RECIPE, act=at(4, newer))

    assert left.value.code == 75
    assert (storage.seen, checkpoints(folder)) == ([], [])


@pytest.mark.parametrize("during", ["the chunks", "the commit"])
def test_superseded_on_the_way_it_ends_without_a_word_too_many(
    during: str,
    folder: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Overtaken(Held):
        def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
            super().put(path, data, exclusive=exclusive)
            if path.startswith("chunks/" if during == "the chunks" else "checkpoints/"):
                super().put("journal/002/00000000.jsonl", b"")

    install(monkeypatch, Overtaken)
    with pytest.raises(SystemExit) as left:
        train(folder, RECIPE, act=settle)

    assert left.value.code == 75
    assert checkpoints(folder) == ([] if during == "the chunks" else ["step-4-a1"])
    assert caplog.records == []


# --- a real death ---

CHILD = """
import os, signal, sys, threading
from pathlib import Path
import torch
from tests.hooks.held import Held, train
from tests.hooks.training import Recipe
from trainer_hooks.storage import LocalStorage
import trainer_hooks.session
torch.set_num_threads(1)
storage = Held(LocalStorage(Path(sys.argv[1])))
trainer_hooks.session.open_storage = lambda uri: storage
def act(session):
    session._keeper.wait()
    if session.step == 5:
        session._keeper._saver.wait_shipped()
        storage.hold()  # what comes from now on gets no further than the disk
    if session.step == 8:
        assert storage.knocked.wait(60)
        os.kill(os.getpid(), signal.SIGKILL)
train(Path(sys.argv[1]), Recipe(steps=10, every=4), act=act)
"""


@pytest.mark.parametrize("machine", ["stays", "goes after the next start"])
def test_killed_between_the_disk_and_the_run_folder_nothing_is_lost(
    machine: str, folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], cwd=root, check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (checkpoints(on(disk)), checkpoints(folder)) == (["step-4-a1", "step-8-a1"], ["step-4-a1"])
    if machine != "stays":
        Session(run_uri=str(folder), **_objects()).close()
        assert checkpoints(folder) == ["step-4-a1", "step-8-a1"]
        shutil.rmtree(disk)

    session, fingerprint = train(folder, RECIPE, seed=7)

    assert session.resumed_from == "step-8-a1"
    assert undisturbed(RECIPE) == fingerprint


def test_the_launchers_next_attempt_ships_what_the_one_before_left(
    folder: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, folder, attempt=3, checkpoint_local=str(disk))
    with pytest.raises(Death):
        train(folder, RECIPE, act=at(10, die))
    shutil.rmtree(folder / "checkpoints")
    launch(monkeypatch, folder, attempt=4, checkpoint_local=str(disk))

    train(folder, RECIPE, seed=7)

    assert checkpoints(folder) == ["step-8-a3", "step-10-a4"]
