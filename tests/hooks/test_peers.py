"""How other checkpointers have lost trainings, each as a test that this one passes. Most are proved elsewhere:

what happened                                            test
data written, renamed, never synced                      test_storage_local.py::test_a_power_loss_at_any_call_leaves_whole_objects
a kill while the same name was written over              test_crash_matrix.py::test_a_kill_at_any_call_of_a_first_attempt_loses_no_commit
a crash in a save after the oldest was deleted           test_crash_matrix.py::test_a_kill_at_any_call_of_a_resume_and_another_of_the_recovery_lose_no_commit
files that crashes left stay for ever                    test_crash_matrix.py::test_a_kill_at_any_call_of_a_resume_and_another_of_the_recovery_lose_no_commit
an old name removed before the new one is there          test_storage_local.py::test_a_put_that_fails_leaves_the_old_object_and_no_other
two writers of one step, the later one wins              test_storage.py::test_an_exclusive_put_never_replaces
a process that was given up wakes and writes             test_store.py::test_a_superseded_attempt_neither_commits_nor_removes
the optimizer steps while the state is copied            test_snapshot.py::test_a_step_waits_until_what_it_changes_is_copied
a state that user code changes meanwhile                 test_snapshot.py::test_the_audit_finds_who_changes_a_state_before_the_step
memory that grows with every save                        test_snapshot.py::test_memory_that_was_given_back_is_taken_again
a pickle in the folder is run by a resume                test_hostile.py::test_no_code_runs_and_nothing_outside_is_opened_or_changed
a flipped bit loads silently                             test_store.py::test_any_flipped_bit_is_found_and_the_older_checkpoint_loads
a range that never reached the disk loads silently       test_store.py::test_any_truncation_growth_or_zeroed_range_is_found
damaged checkpoints count as kept                        test_store.py::test_pruning_counts_only_what_was_verified
random state is restored, then the iterator draws        test_exact_resume.py::test_a_training_killed_in_any_step_ends_bit_equal
the epoch starts over                                    test_session.py::test_a_batch_is_seen_once
a loader's own state comes too late                      test_session.py::test_a_loader_with_a_state_restores_itself
a save in the middle of a step                           test_session.py::test_save_inside_a_loop_waits_for_the_safe_point
a signal to the whole job kills the loader's workers     test_hooks_system.py::test_a_termination_is_a_clean_exit_with_75_and_nothing_is_lost
one rank dies between the shards                         test_ranks_system.py::test_the_death_of_one_rank_while_it_writes_leaves_the_checkpoint_before
all replicas write the same bytes                        test_ranks_system.py::test_each_rank_writes_its_share_and_each_chunk_is_written_once
a few 5xx end the save                                   test_storage_remote.py::test_an_upload_survives_three_troubles_in_a_row
parts of uploads that nobody finishes are paid for       test_storage_remote.py::test_uploads_in_parts_that_others_left_are_aborted_below_the_folder_only
"""  # noqa: E501  # a table's rows are lines

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests.hooks.folders import checkpoints, launch
from tests.hooks.held import install
from tests.hooks.states import a_store
from tests.hooks.storages import _Passing
from trainer_hooks import SavingFailed, Session
from trainer_hooks.storage import Buffer, LocalStorage, Storage


def test_every_test_of_the_table_is_there() -> None:
    assert __doc__ is not None
    rows = re.findall(r"(test_\w+\.py)::(test_\w+)$", __doc__, flags=re.MULTILINE)

    assert len(rows) == len(__doc__.strip().splitlines()) - 3
    for file, name in rows:
        assert f"\ndef {name}(" in (Path(__file__).parent / file).read_text(), f"{file}::{name}"


class Training:
    """Two chunks that change at every step, one by its optimizer and one beside it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(300, 300)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)

    def session(self, folder: Path, *, every: int = 1, keep: int = 2) -> Session:
        objects = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}
        return Session(run_uri=str(folder), checkpoint_every_steps=every, keep=keep, **objects)

    def step(self) -> None:
        self.model(torch.rand(2, 300)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.model)

    def weights(self) -> list[torch.Tensor]:
        return [self.model.weight.detach().clone(), self.ema.module.weight.detach().clone()]


# --- torch.distributed.checkpoint, thread_count > 1: a writer thread's failure is swallowed (pytorch #191391) ---


class OneFails(_Passing):
    """Of the puts of chunks, only the given one, whichever thread it is in."""

    def __init__(self, storage: Storage, number: int) -> None:
        self.storage = storage
        self._left = number
        self._lock = threading.Lock()

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        with self._lock:
            self._left -= path.startswith("chunks/")
            is_it = path.startswith("chunks/") and self._left == 0
        if is_it:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self.storage.put(path, data, exclusive=exclusive)


@pytest.mark.parametrize("number", [1, 2])
def test_the_failure_of_one_writer_thread_fails_the_save(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, lambda storage: OneFails(storage, number))
    training = Training()

    with training.session(tmp_path) as session:
        for _ in session(range(3)):
            training.step()
            if session.step == 1:  # the save of step 1 has begun
                session._keeper.wait()
                assert checkpoints(tmp_path) == []

    assert "the checkpoint of step 1 could not be written (OSError: [Errno 28]" in capsys.readouterr().err
    assert [a_store(LocalStorage(tmp_path)).verify(name).step for name in checkpoints(tmp_path)] == [2, 3]


# --- its cached stager: save N + 1 before N is written changes N (87.7 % of its bytes, measured on 2.13.0) ---


class Slow(_Passing):
    """Reads what it is to put after all others had a chance to overwrite it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        threading.Event().wait(0.01)
        self.storage.put(path, data, exclusive=exclusive)


@pytest.mark.parametrize("mode", ["overlap", "lazy", "blocking"])
def test_saves_that_come_faster_than_they_are_written_are_each_of_their_own_step(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)
    install(monkeypatch, Slow)
    training, expected = Training(), dict[int, list[torch.Tensor]]()

    with training.session(tmp_path, keep=8) as session:
        for _ in session(range(6)):
            expected[session.step] = training.weights()
            training.step()
        expected[session.step] = training.weights()

    store = a_store(LocalStorage(tmp_path))
    found = {step: store.load(f"step-{step}-a1").components for step in range(1, 7)}
    for step, components in found.items():
        weights = [components["model"]["weight"], components["ema"]["module.weight"]]
        assert all(map(torch.equal, expected[step], weights)), step


# --- HF: the largest number is the latest, though incomplete (#35782), a sentinel is written and never read;
# --- torchtitan: purging counts such folders as kept ---


def test_an_incomplete_folder_is_neither_the_latest_nor_kept_in_place_of_a_complete_one(tmp_path: Path) -> None:
    training = Training()
    with training.session(tmp_path, every=2) as session:
        for _ in session(range(4)):
            training.step()
    for step in (5, 900):
        folder = tmp_path / "checkpoints" / f"step-{step}-a1"
        folder.mkdir()
        (folder / ".manifest.json.1-0.part").write_bytes(b"half")
        (folder / "checkpoint-is-incomplete.txt").write_text("")

    again = Training()
    with again.session(tmp_path) as session:
        assert session.resumed_from == "step-4-a1"
        for _ in session(range(5)):
            again.step()

    assert checkpoints(tmp_path) == ["step-4-a1", "step-5-a2"]
    assert not (tmp_path / "checkpoints" / "step-900-a1").exists()


# --- Accelerate: total_limit deletes the oldest before the new one is written ---


class Counting(_Passing):
    """How many checkpoints there are whenever one is about to be removed."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage = storage
        self.seen: list[int] = []
        self._folder = folder

    def delete(self, path: str) -> None:
        if path.endswith("manifest.json"):
            self.seen.append(len(checkpoints(self._folder)))
        self.storage.delete(path)

    def remove(self, folder: str, names: Collection[str]) -> None:
        assert "manifest.json" not in names
        self.storage.remove(folder, names)


def test_the_oldest_goes_only_when_the_newest_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Counting(LocalStorage(tmp_path), tmp_path)
    install(monkeypatch, lambda _: storage)
    training = Training()

    with training.session(tmp_path, keep=2) as session:
        for _ in session(range(6)):
            training.step()

    assert storage.seen == [3, 3, 3, 3], "two that are kept, and the one that goes"


def train_on(training: Training, folder: Path) -> None:
    with training.session(folder) as session:
        for _ in session(range(9)):
            training.step()


def test_where_nothing_can_be_written_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    with training.session(tmp_path) as session:
        for _ in session(range(3)):
            training.step()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "journal" not in str(path)}

    class Full(_Passing):
        def __init__(self, storage: Storage) -> None:
            self.storage = storage

        def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    install(monkeypatch, Full)

    with pytest.raises(SavingFailed):
        train_on(Training(), tmp_path)

    assert before == {path: path.read_bytes() for path in before}


# --- Lightning on SLURM saves, and broadcasts, inside the signal handler, in the middle of a step ---


def test_a_signal_does_nothing_in_its_handler_but_take_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, tmp_path)
    training, by_the_training = Training(), list[str]()

    class Watched(_Passing):
        def __init__(self, storage: Storage) -> None:
            self.storage = storage

        def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
            if threading.current_thread() is threading.main_thread():
                by_the_training.append(path)
            self.storage.put(path, data, exclusive=exclusive)

    install(monkeypatch, Watched)
    finished: list[torch.Tensor] = []
    session = training.session(tmp_path, every=100_000)

    def train() -> None:
        for _ in session(iter(int, 1), steps=100_000):
            if session.step == 2:
                by_the_training.clear()
                training.model(torch.rand(2, 300)).square().sum().backward()
                os.kill(os.getpid(), signal.SIGTERM)
                assert (by_the_training, checkpoints(tmp_path)) == ([], [])
            training.step()
            finished[:] = training.weights()
            threading.Event().wait(0.005)

    with pytest.raises(SystemExit) as left:
        train()

    assert left.value.code == 75
    assert checkpoints(tmp_path) == [f"step-{session.step}-a1"]
    components: Any = a_store(LocalStorage(tmp_path)).load(f"step-{session.step}-a1").components
    assert torch.equal(finished[0], components["model"]["weight"]), "of a step that was finished"


# --- DCP's process-based async save starts a script without a main guard a second time ---

UNGUARDED = """
import sys, torch
from trainer_hooks import Session
print("begun", flush=True)
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
session = Session(run_uri=sys.argv[1], checkpoint_every_steps=1, model=model, optimizer=optimizer)
for batch in session(range(3)):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
"""


@pytest.mark.system
def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    root = Path(__file__).parent.parent.parent
    environ = os.environ | {"PYTHONPATH": str(root)}

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")], env=environ, check=True, capture_output=True, text=True
    )

    assert done.stdout == "begun\n"
    assert checkpoints(tmp_path / "run") == ["step-2-a1", "step-3-a1"]


# --- memory that an async save holds on to until the next one (#170163) ---


def test_gradients_that_were_saved_are_freed_when_the_script_clears_them(tmp_path: Path) -> None:
    training = Training()
    with training.session(tmp_path, every=1) as session:
        for batch in session(range(3)):
            if batch == 0:
                training.model(torch.ones(1, 300)).sum().backward()  # not used yet, so it is saved
                gradient = StorageWeakRef(training.model.weight.grad.untyped_storage())  # type: ignore[union-attr]
            if batch == 1:
                session._keeper.wait()
                training.optimizer.zero_grad()
                assert gradient.expired()

    saved: Any = a_store(LocalStorage(tmp_path)).load("step-2-a1").components
    assert "hooks-gradients" not in saved
