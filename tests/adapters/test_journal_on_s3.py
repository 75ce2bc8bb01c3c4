"""Control files and journals in a bucket: a real S3 server, over a line on which everything goes wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import s3fs  # type: ignore[import-untyped]  # it ships no types

from launcher.adapters.fsspec_journal import FsspecJournal
from launcher.adapters.system_clock import SystemClock
from launcher.core.runs.journal import TrainerEnded, TrainerStepped
from launcher.errors import BackendError
from tests.hooks.folders import launch
from tests.hooks.ranks_training import wait_for
from tests.hooks.slow_s3 import Kind, Line, Trouble
from tests.hooks.training import Recipe, train, undisturbed
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


@pytest.mark.parametrize("kind", ["answer", "hang up before", "hang up within", "lose the answer", "cut the answer"])
def test_over_a_bad_line_a_trainer_that_waits_is_seen_and_gets_its_go(kind: Kind, s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    journal = a_journal(uri)
    assert not journal.is_ready(2)
    open_storage(uri).put(protocol.control_ready(2), b'{"attempt": 2}')
    line.troubles = [Trouble(kind=kind, method=method, path="control/") for method in ("GET", "PUT")]

    is_ready = journal.is_ready(2)
    journal.hand_over(2, spent_usd=Decimal("12.34"))

    assert [trouble.times for trouble in line.troubles] == [0, 0]
    assert is_ready
    assert control(uri, protocol.control_go(2)) == b'{"spent_usd": "12.34"}'


def test_a_session_waits_in_a_bucket_for_the_go_of_its_launcher(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = a_journal(s3)
    monkeypatch.setattr("trainer_hooks.control.REMOTE_PERIOD_SECONDS", 0.05)
    launch(monkeypatch, Path(), attempt=2, relieves=1, run_uri=s3)

    def hand_over() -> None:
        wait_for(lambda: journal.is_ready(2))
        assert open_storage(s3).names("journal") == ()
        journal.hand_over(2, spent_usd=Decimal("12.34"))

    with ThreadPoolExecutor(1) as pool:
        launcher = pool.submit(hand_over)
        assert train(Path(), Recipe(steps=4), run_uri=s3) == undisturbed(Recipe(steps=4))
        launcher.result()

    assert [type(line) for line in journal.read(2, after_segment=0)][-1] is TrainerEnded


def test_a_bucket_that_does_not_answer_is_said_to_be_that_and_is_asked_again(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    write(uri, 1, protocol.Step(step=1, step_seconds=0.5))
    journal = a_journal(uri)
    line.troubles = [Trouble(kind="answer", times=999, status=403, code="AccessDenied")]

    with pytest.raises(BackendError, match="did not answer"):
        journal.read(1, after_segment=0)
    with pytest.raises(BackendError, match="did not answer"):
        journal.request_stop(1)
    with pytest.raises(BackendError, match="did not answer"):
        journal.is_ready(1)
    with pytest.raises(BackendError, match="did not answer"):
        journal.hand_over(1, spent_usd=Decimal(1))

    line.troubles = []
    assert len(journal.read(1, after_segment=0)) == 1
