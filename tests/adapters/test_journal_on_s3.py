"""Control files and journals in a bucket: a real S3 server, over a line on which everything goes wrong."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import s3fs  # type: ignore[import-untyped]  # it ships no types

from launcher.adapters.fsspec_journal import FsspecJournal
from launcher.adapters.system_clock import SystemClock
from launcher.core.journal import TrainerEnded, TrainerStepped
from launcher.errors import BackendError
from tests.hooks.slow_s3 import Kind, Line, Trouble
from trainer_hooks import protocol
from trainer_hooks.storage import open_storage

pytestmark = pytest.mark.system

AT = datetime(2026, 5, 1, 12, tzinfo=UTC)


def a_journal(uri: str) -> FsspecJournal:
    """Over the line that the environment names now: fsspec would hand out the file system of an earlier test."""
    s3fs.S3FileSystem.clear_instance_cache()
    return FsspecJournal(uri, clock=SystemClock(epoch=AT))


def write(uri: str, segment: int, *records: protocol.Record) -> None:
    """As the trainer of attempt 1."""
    rows = "".join(f"{protocol.encode(record, at=AT)}\n" for record in records)
    open_storage(uri).put(f"{protocol.journal_folder(1)}/{protocol.segment_name(segment)}", rows.encode())


def control(uri: str, name: str) -> bytes:
    return open_storage(uri).read(name, limit_bytes=1000)


def test_what_a_trainer_wrote_into_the_bucket_is_read_in_order(s3: str) -> None:
    journal = a_journal(s3)
    assert journal.read(1, after_segment=0) == ()

    write(s3, 1, protocol.Step(step=1, step_seconds=0.5))
    write(s3, 2, protocol.Step(step=2, step_seconds=0.5), protocol.Ended(reason="completed", step=2, step_seconds=0.5))

    read = journal.read(1, after_segment=0)
    assert [type(line) for line in read] == [TrainerStepped, TrainerStepped, TrainerEnded]
    assert [line.segment for line in journal.read(1, after_segment=1)] == [2, 2]


@pytest.mark.parametrize("kind", ["answer", "hang up before", "hang up within", "lose the answer", "cut the answer"])
def test_a_bad_line_costs_no_line_of_a_journal_and_no_request(kind: Kind, s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    write(uri, 1, protocol.Step(step=1, step_seconds=0.5))
    journal = a_journal(uri)
    line.troubles = [Trouble(kind=kind, times=2, path="list-type=2"), Trouble(kind=kind, times=1, method="PUT")]
    line.troubles += [Trouble(kind=kind, times=1, method="GET", path=".jsonl")]

    journal.request_stop(1)
    read = journal.read(1, after_segment=0)

    assert [trouble.times for trouble in line.troubles] == [0, 0, 0]
    assert len(read) == 1
    assert control(uri, protocol.CONTROL_STOP) == b'{"attempt": 1}'


def test_a_request_to_save_has_an_id_of_its_own_each_time(s3: str) -> None:
    journal = a_journal(s3)

    journal.request_checkpoint()
    first = control(s3, protocol.CONTROL_CHECKPOINT)
    journal.request_checkpoint()

    assert first != control(s3, protocol.CONTROL_CHECKPOINT)


def test_a_bucket_that_does_not_answer_is_said_to_be_that_and_is_asked_again(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    write(uri, 1, protocol.Step(step=1, step_seconds=0.5))
    journal = a_journal(uri)
    line.troubles = [Trouble(kind="answer", times=999, status=403, code="AccessDenied")]

    with pytest.raises(BackendError, match="did not answer"):
        journal.read(1, after_segment=0)
    with pytest.raises(BackendError, match="did not answer"):
        journal.request_stop(1)

    line.troubles = []
    assert len(journal.read(1, after_segment=0)) == 1
