"""The newest checkpoint goes along when a run moves to a place with a bucket of its own; a death costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.adapters.checkpoint_store import CheckpointFolder
from launcher.core.runs.checkpoints import Replica
from launcher.errors import BackendError
from tests.hooks.slow_s3 import Line, Trouble
from tests.hooks.states import a_store, save, step_of
from tests.hooks.storages import Dying, MemoryStorage, When
from tests.hooks.training import Death
from trainer_hooks.storage import LocalStorage, Storage, open_storage


def move(old: str, new: str) -> Replica | None:
    return CheckpointFolder(old).replicate(CheckpointFolder(new))


def steps(uri: str) -> tuple[str, ...]:
    return a_store(open_storage(uri), attempt=99).names()


def loaded_step(uri: str) -> int:
    return step_of(a_store(open_storage(uri), attempt=99).load_newest())


@pytest.fixture
def homes(tmp_path: Path) -> tuple[str, str]:
    """A run folder with the checkpoints of steps 10 and 20, and one that does not exist yet."""
    old = str(tmp_path / "old")
    store = a_store(LocalStorage(Path(old)), keep=9)
    save(store, 10)
    save(store, 20)
    return old, str(tmp_path / "new")


def test_the_newest_checkpoint_and_no_other_goes_along(homes: tuple[str, str]) -> None:
    old, new = homes

    moved = move(old, new)

    assert moved is not None
    assert (moved.name, moved.copied_bytes) == ("step-20-a1", moved.bytes)
    assert steps(new) == ("step-20-a1",)
    assert loaded_step(new) == 20
    assert steps(old) == ("step-20-a1", "step-10-a1")


def test_a_second_time_nothing_is_copied(homes: tuple[str, str]) -> None:
    move(*homes)

    again = move(*homes)

    assert again is not None
    assert (again.name, again.copied_bytes) == ("step-20-a1", 0)


def test_of_what_changed_since_only_that_is_copied(homes: tuple[str, str]) -> None:
    old, new = homes
    move(old, new)
    save(a_store(LocalStorage(Path(old)), keep=9), 30)

    moved = move(old, new)

    assert moved is not None
    assert 0 < moved.copied_bytes < moved.bytes
    assert loaded_step(new) == 30


def test_a_chunk_that_lies_there_damaged_is_replaced(homes: tuple[str, str]) -> None:
    old, new = homes
    move(old, new)
    (chunk, *_) = sorted((Path(new) / "chunks").iterdir())
    chunk.write_bytes(bytes(chunk.stat().st_size))

    move(old, new)

    assert loaded_step(new) == 20


def test_a_damaged_newest_checkpoint_leaves_the_one_before_it_to_go_on_from(homes: tuple[str, str]) -> None:
    old, new = homes
    store = a_store(LocalStorage(Path(old)), attempt=1)
    (own, *_) = {c.hash for c in store.manifest("step-20-a1").chunks} - {
        c.hash for c in store.manifest("step-10-a1").chunks
    }
    (Path(old) / "chunks" / own).unlink()

    moved = move(old, new)

    assert moved is not None
    assert moved.name == "step-10-a1"
    assert loaded_step(new) == 10


def test_what_was_never_committed_is_no_checkpoint(homes: tuple[str, str]) -> None:
    old, new = homes
    (Path(old) / "checkpoints" / "step-30-a1" / "manifest.json").parent.mkdir()

    moved = move(old, new)

    assert moved is not None
    assert moved.name == "step-20-a1"
    assert move(str(Path(old) / "nowhere"), new) is None


def test_back_home_the_later_attempt_wins(homes: tuple[str, str]) -> None:
    """A late writer of the first attempt does not."""
    old, new = homes
    move(old, new)
    save(a_store(LocalStorage(Path(new)), attempt=2), 40)
    save(a_store(LocalStorage(Path(old)), attempt=1, keep=9), 90)

    moved = move(new, old)

    assert moved is not None
    assert moved.name == "step-40-a2"
    assert loaded_step(old) == 40


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_at_any_call_leaves_a_whole_checkpoint_or_none(
    homes: tuple[str, str], monkeypatch: pytest.MonkeyPatch, when: When
) -> None:
    old, new = homes
    survived = 0
    for call in range(1, 200):
        memory = MemoryStorage()
        dying: Storage = Dying(memory, at=call, when=when)

        def opened(uri: str, at_new: Storage) -> Storage:
            return at_new if uri == new else LocalStorage(Path(uri))

        monkeypatch.setattr(
            "launcher.adapters.checkpoint_store.open_storage", lambda uri, dying=dying: opened(uri, dying)
        )
        try:
            move(old, new)
            survived = call
            break
        except Death:
            found = a_store(memory, attempt=9).load_newest()
            assert found is None or step_of(found) == 20
        monkeypatch.setattr(
            "launcher.adapters.checkpoint_store.open_storage", lambda uri, memory=memory: opened(uri, memory)
        )
        move(old, new)
        assert step_of(a_store(memory, attempt=9).load_newest()) == 20
    assert survived > 5


@pytest.mark.system
def test_a_store_copies_from_bucket_to_bucket_by_itself(s3_line: tuple[str, Line]) -> None:
    """No chunk's bytes come here: they would leave the region through the internet, at four times the price."""
    uri, line = s3_line
    old, new = f"{uri}/old", f"{uri}/new"
    save(a_store(open_storage(old), keep=9), 10)
    save(a_store(open_storage(old), keep=9), 20)
    line.seen.clear()

    moved = move(old, new)

    assert moved is not None
    assert moved.copied_bytes == moved.bytes
    assert [request for request in line.seen if request.startswith("GET") and "/chunks/" in request] == []
    assert loaded_step(new) == 20
    again = move(old, new)
    assert again is not None
    assert again.copied_bytes == 0


@pytest.mark.system
def test_a_chunk_that_a_bucket_lost_is_not_copied_as_if_it_were_there(s3: str) -> None:
    store = a_store(open_storage(f"{s3}/old"), keep=9)
    save(store, 10)
    save(store, 20)
    (own, *_) = {c.hash for c in store.manifest("step-20-a1").chunks} - {
        c.hash for c in store.manifest("step-10-a1").chunks
    }
    open_storage(f"{s3}/old").delete(f"chunks/{own}")

    moved = move(f"{s3}/old", f"{s3}/new")

    assert moved is not None
    assert moved.name == "step-10-a1"
    assert loaded_step(f"{s3}/new") == 10


@pytest.mark.system
def test_a_move_that_the_line_breaks_off_is_taken_up_again(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    old, new = f"{uri}/old", f"{uri}/new"
    save(a_store(open_storage(old)), 20)
    line.troubles = [Trouble(kind="answer", times=999, method="PUT", path="/new/chunks", status=403, code="Denied")]

    with pytest.raises(BackendError, match="could not be copied"):
        move(old, new)

    assert steps(new) == ()
    line.troubles = []
    move(old, new)
    assert loaded_step(new) == 20


@pytest.mark.system
@pytest.mark.parametrize("is_bucket", [True, False])
def test_a_bucket_that_is_not_there_is_an_error_and_not_a_run_without_checkpoints(
    s3: str, homes: tuple[str, str], is_bucket: bool
) -> None:
    save(a_store(open_storage(f"{s3}/old")), 20)

    with pytest.raises(BackendError):
        move(f"{s3}/old" if is_bucket else homes[0], "s3://nobodys-bucket/new")


@pytest.mark.system
def test_a_checkpoint_goes_from_a_disk_to_a_bucket_and_back(s3: str, homes: tuple[str, str], tmp_path: Path) -> None:
    old, _ = homes

    there, back = move(old, s3), move(s3, str(tmp_path / "back"))

    assert there is not None
    assert back is not None
    assert loaded_step(s3) == loaded_step(str(tmp_path / "back")) == 20
