"""A ledger of objects: what it asks the store for, and what it makes of a store that fails, forgets or lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.adapters.object_ledger import ObjectLedger, is_object_store
from launcher.core.runs.events import StopRequested
from launcher.errors import InputError, LedgerConflict, LedgerUnavailable
from tests.builders import RUN, T0, a_submit, after
from tests.hooks.slow_s3 import Line, Trouble
from tests.hooks.storages import MemoryStorage
from trainer_hooks.storage import Buffer, FsspecStorage
from trainer_hooks.storage.remote import Retries

OTHER = "digits-20260105-cd34"
SOON = Retries(first_wait_seconds=0.02)


class Counting(MemoryStorage):
    """Notes each request; `unanswered` puts are done, and nobody is told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.unanswered = 0

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        self.asked.append(f"put {path}")
        super().put(path, data, exclusive=exclusive)
        if self.unanswered > 0:
            self.unanswered -= 1
            raise OSError("no answer")

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        self.asked.append(f"read {path}")
        return super().read(path, limit_bytes=limit_bytes)

    def names(self, folder: str) -> tuple[str, ...]:
        self.asked.append(f"names {folder}")
        return super().names(folder)


@pytest.fixture
def storage() -> Counting:
    return Counting()


def on(storage: Counting) -> ObjectLedger:
    return ObjectLedger("s3://bucket/ledger", opens=lambda _: storage)


def on_line(uri: str) -> ObjectLedger:
    return ObjectLedger(uri, opens=lambda uri: FsspecStorage(uri, retries=SOON))


def stop(by: str) -> StopRequested:
    return StopRequested(by=by)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/ledger", True),
        ("gs://bucket", True),
        ("abfss://container/ledger", True),
        ("file:///shared/ledger", True),
        ("sqlite:////home/ada/ledger.db", False),
        ("postgresql+psycopg://db/ledger", False),
        ("ledger.db", False),
    ],
)
def test_the_scheme_says_whether_a_ledger_is_a_folder_or_a_database(url: str, expected: bool) -> None:
    assert is_object_store(url) is expected


def test_a_supervisor_pays_one_request_for_an_append_and_one_for_a_look(storage: Counting) -> None:
    ledger = on(storage)
    ledger.append(RUN, [a_submit()], after_seq=0, at=T0)
    ledger.append(RUN, [stop("ada")], after_seq=1, at=T0)
    ledger.read(RUN)

    assert storage.asked == [f"put runs/{RUN}/00000001.jsonl", f"put runs/{RUN}/00000002.jsonl", f"names runs/{RUN}"]


def test_the_runs_are_found_with_one_listing_and_each_beginning_is_read_once(storage: Counting) -> None:
    writer = on(storage)
    for run_id, at in ((RUN, after(1)), (OTHER, T0)):
        writer.append(run_id, [a_submit()], after_seq=0, at=at)
        writer.append(run_id, [stop("ada")], after_seq=1, at=at)
    storage.asked.clear()
    reader = on(storage)

    assert reader.run_ids() == (OTHER, RUN)
    assert reader.run_ids() == (OTHER, RUN)

    heads = [f"read runs/{run_id}/00000001.jsonl" for run_id in (RUN, OTHER)]
    assert sorted(storage.asked) == sorted(["names runs", "names runs", *heads])


def test_reading_behind_an_entry_does_not_fetch_what_lies_before_it(storage: Counting) -> None:
    writer = on(storage)
    for seq in range(4):
        writer.append(RUN, [a_submit() if seq == 0 else stop(str(seq))], after_seq=seq, at=T0)
    storage.asked.clear()

    assert [entry.seq for entry in on(storage).read(RUN, after_seq=2)] == [3, 4]
    assert f"read runs/{RUN}/00000001.jsonl" not in storage.asked


def test_an_append_in_the_middle_of_a_batch_is_a_conflict_though_its_name_is_free(storage: Counting) -> None:
    on(storage).append(RUN, [a_submit(), stop("ada"), stop("ada")], after_seq=0, at=T0)

    with pytest.raises(LedgerConflict):
        on(storage).append(RUN, [stop("bob")], after_seq=2, at=T0)

    assert len(on(storage).read(RUN)) == 3


def test_an_append_that_was_done_and_never_answered_is_done(storage: Counting) -> None:
    storage.unanswered = 1
    ledger = on(storage)

    ledger.append(RUN, [a_submit()], after_seq=0, at=T0)
    ledger.append(RUN, [stop("ada")], after_seq=1, at=T0)

    assert len(on(storage).read(RUN)) == 2


def test_deleted_entries_are_missed_and_not_skipped(storage: Counting) -> None:
    ledger = on(storage)
    for seq in range(3):
        ledger.append(RUN, [a_submit() if seq == 0 else stop("ada")], after_seq=seq, at=T0)
    storage.delete(f"runs/{RUN}/00000002.jsonl")

    with pytest.raises(LedgerUnavailable, match=r"lacks entry 2 .* lifecycle rules"):
        on(storage).read(RUN)


def test_a_run_whose_beginning_was_deleted_is_not_silently_forgotten(storage: Counting) -> None:
    ledger = on(storage)
    ledger.append(RUN, [a_submit()], after_seq=0, at=T0)
    ledger.append(RUN, [stop("ada")], after_seq=1, at=T0)
    storage.delete(f"runs/{RUN}/00000001.jsonl")

    with pytest.raises(LedgerUnavailable, match="lacks entry 1"):
        on(storage).run_ids()


@pytest.mark.parametrize(
    "damage", [lambda body: body[:-20], lambda body: body[: body.rindex(b"{")], lambda _: b"", bytes.upper]
)
def test_a_damaged_object_is_not_taken_for_fewer_entries(storage: Counting, damage: object) -> None:
    on(storage).append(RUN, [a_submit(), stop("ada")], after_seq=0, at=T0)
    path = f"runs/{RUN}/00000001.jsonl"
    assert callable(damage)
    storage.files[path] = damage(storage.files[path])

    with pytest.raises(LedgerUnavailable, match=r"00000001\.jsonl"):
        on(storage).read(RUN)


def test_words_that_hold_line_separators_come_back(storage: Counting) -> None:
    reason = "one\u2028two\x85three\nfour"
    on(storage).append(RUN, [StopRequested(by="ada", reason=reason)], after_seq=0, at=T0)

    assert [entry.event for entry in on(storage).read(RUN)] == [StopRequested(by="ada", reason=reason)]


def test_a_first_append_that_died_leaves_no_run(tmp_path: Path) -> None:
    (tmp_path / "runs" / RUN).mkdir(parents=True)
    (tmp_path / "runs" / RUN / ".00000001.jsonl.7-0.part").write_bytes(b"half")
    ledger = ObjectLedger(f"file://{tmp_path}")

    assert ledger.run_ids() == ()
    assert ledger.append(RUN, [a_submit()], after_seq=0, at=T0)


def test_a_scheme_without_its_library_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "adlfs", None)

    with pytest.raises(InputError, match="no library reads abfs://"):
        ObjectLedger("abfs://account/ledger").run_ids()


def test_a_folder_that_may_not_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(LedgerUnavailable, match="does not answer"):
        ObjectLedger(f"file://{tmp_path / 'file'}").append(RUN, [a_submit()], after_seq=0, at=T0)


@pytest.mark.system
@pytest.mark.parametrize("kind", ["lose the answer", "hang up before", "hang up within"])
def test_over_a_bad_line_an_append_is_made_once(s3_line: tuple[str, Line], kind: str) -> None:
    uri, line = s3_line
    line.troubles.append(Trouble(kind=kind, times=2, method="PUT"))  # type: ignore[arg-type]  # one of them

    on_line(uri).append(RUN, [a_submit()], after_seq=0, at=T0)

    assert not any(trouble.times for trouble in line.troubles)
    assert len(on_line(uri).read(RUN)) == 1


@pytest.mark.system
def test_a_burst_of_503_is_waited_out(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    line.troubles += [Trouble(kind="answer", times=3, method=method) for method in ("PUT", "GET")]

    on_line(uri).append(RUN, [a_submit()], after_seq=0, at=T0)

    assert on_line(uri).run_ids() == (RUN,)
    assert not any(trouble.times for trouble in line.troubles)


@pytest.mark.system
def test_a_store_that_stays_deaf_is_unavailable_and_nothing_was_recorded(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    trouble = Trouble(kind="answer", times=100)
    line.troubles.append(trouble)
    ledger = on_line(uri)

    for call in (
        lambda: ledger.append(RUN, [a_submit()], after_seq=0, at=T0),
        lambda: ledger.read(RUN),
        ledger.run_ids,
    ):
        with pytest.raises(LedgerUnavailable, match="does not answer"):
            call()
    trouble.times = 0

    assert on_line(uri).run_ids() == ()


@pytest.mark.system
def test_a_rival_that_was_first_is_a_conflict_though_our_answer_was_lost(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    ours, theirs = on_line(uri), on_line(uri)
    ours.append(RUN, [a_submit()], after_seq=0, at=T0)
    theirs.read(RUN)
    theirs.append(RUN, [stop("bob")], after_seq=1, at=T0)
    line.troubles.append(Trouble(kind="lose the answer", method="PUT"))

    with pytest.raises(LedgerConflict):
        ours.append(RUN, [stop("bob")], after_seq=1, at=T0)

    assert len(ours.read(RUN)) == 2
