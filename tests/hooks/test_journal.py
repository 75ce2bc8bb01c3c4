"""The journal is read for ever, written in order, and never in the way."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from tests.hooks.storages import Disk, MemoryStorage
from trainer_hooks import journal as journals
from trainer_hooks.journal import Journal
from trainer_hooks.protocol import Committed, Ended, Notice, Started, Step, decode, encode
from trainer_hooks.storage import Buffer, LocalStorage

GOLDEN = Path(__file__).parent.parent / "golden" / "journal-v1.jsonl"


def steps(storage: MemoryStorage) -> list[int]:
    lines = [line for path in sorted(storage.files) for line in storage.files[path].decode().splitlines()]
    decoded = [decode(line) for line in lines]
    assert all(decoded)
    return [one[1].step for one in decoded if one and isinstance(one[1], Step)]


def flush(journal: Journal) -> None:
    journal.flush(timeout_seconds=30)


def test_version_1_is_readable_for_ever() -> None:
    decoded = [decode(line) for line in GOLDEN.read_text().splitlines()]

    assert [None if one is None else one[1] for one in decoded] == [
        Started(step=0),
        Started(step=120, resumed_from="step-120-a1", lost_steps=40),
        Step(step=150, step_seconds=0.25, metrics={"loss": 2.5}),
        Step(step=151),
        Committed(step=160, name="step-160-a2", bytes=10332895, seconds=0.085),
        Notice(source="ec2", seconds_left=118.5),
        Notice(source="signal"),
        Ended(reason="completed", step=300, step_seconds=0.25, metrics={"loss": 2.0, "final_loss": 1.5}),
        *(Ended(reason=reason, step=7) for reason in ("preempted", "stopped", "out_of_budget", "failed")),
        None,  # a kind of some later version
        Step(step=9),  # with a field of some later version
    ]
    assert decoded[0] is not None
    assert decoded[0][0].isoformat() == "2026-11-21T04:00:28.932939+00:00"


def test_what_is_written_today_is_version_1() -> None:
    lines = GOLDEN.read_text().splitlines()[:12]

    for line in lines:
        decoded = decode(line)
        assert decoded is not None
        assert encode(decoded[1], at=decoded[0]) == line


def test_records_appear_in_order_in_numbered_segments() -> None:
    storage = MemoryStorage()
    journal = Journal(storage, attempt=3)
    journal.claim()
    for step in range(5):
        journal.append(Step(step=step))
        flush(journal)
    journal.close(timeout_seconds=30)

    assert steps(storage) == [0, 1, 2, 3, 4]
    assert list(storage.files) == [f"journal/003/{number:08d}.jsonl" for number in range(6)]
    assert storage.files["journal/003/00000000.jsonl"] == b""


def test_a_second_process_of_an_attempt_adds_segments() -> None:
    storage = MemoryStorage()
    for step in range(2):
        journal = Journal(storage, attempt=1)
        journal.claim()
        journal.append(Step(step=step))
        journal.close(timeout_seconds=30)

    assert steps(storage) == [0, 1]


def test_a_power_loss_takes_nothing_that_was_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "run", patch)
        journal = Journal(LocalStorage(tmp_path / "run"), attempt=1)
        journal.claim()
        journal.append(Step(step=1))
        journal.close(timeout_seconds=30)

    disk.left_by("nothing synced later", tmp_path / "left")

    assert LocalStorage(tmp_path / "left").names("journal/001") == ("00000000.jsonl", "00000001.jsonl")


class Moody(MemoryStorage):
    """Fails while `is_down`, after the object was written if `writes_anyway`; no segment may ever change."""

    is_down = True
    writes_anyway = False

    def __init__(self) -> None:
        super().__init__()
        self.has_failed = threading.Event()

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        before = self.files.get(path)
        if self.is_down and not self.writes_anyway:
            self.has_failed.set()
            raise OSError("down")
        super().put(path, data, exclusive=exclusive)
        assert before in (None, self.files[path]), "a segment is immutable"
        if self.is_down:
            self.has_failed.set()
            raise OSError("written, but nobody knows")


@pytest.mark.parametrize("writes_anyway", [False, True])
def test_a_failing_storage_is_logged_once_and_nothing_is_lost(
    writes_anyway: bool, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Moody()
    storage.writes_anyway = writes_anyway
    journal = Journal(storage, attempt=1)
    with caplog.at_level(logging.WARNING):
        for step in range(20):
            journal.append(Step(step=step))
            storage.has_failed.wait(30)
        storage.is_down = False
        journal.close(timeout_seconds=30)

    assert steps(storage) == list(range(20))
    assert len(caplog.records) == 1


def test_a_flush_gives_up_on_a_storage_that_stays_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LAST_RETRY_SECONDS", 0.01)
    journal = Journal(Moody(), attempt=1)
    journal.append(Step(step=1))

    journal.close(timeout_seconds=3600)  # the suite would time out


def test_without_a_storage_nothing_happens() -> None:
    journal = Journal(None, attempt=1)
    journal.claim()
    journal.append(Step(step=1))
    journal.close(timeout_seconds=3600)
