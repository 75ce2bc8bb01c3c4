"""The launcher's side of a run folder, on a disk and on an object store's stand-in."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]  # it ships no types; these tests are about it
import pytest

from launcher.adapters.fsspec_journal import FsspecJournal
from launcher.adapters.system_clock import SystemClock
from launcher.core.runs.journal import TrainerCommitted, TrainerEnded, TrainerNoticed, TrainerStarted, TrainerStepped
from launcher.errors import BackendError, InputError
from trainer_hooks import protocol

EPOCH = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Run:
    """A run folder with a trainer's hand and a launcher's eyes; market time runs 60 times as fast."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.files, self.path = fsspec.core.url_to_fs(uri)
        self.journal = FsspecJournal(uri, clock=SystemClock(epoch=EPOCH, scale=60.0))

    def write(self, attempt: int, segment: int, *lines: str | protocol.Record, after_seconds: float = 1.0) -> None:
        at = EPOCH + timedelta(seconds=after_seconds)
        rows = [line if isinstance(line, str) else protocol.encode(line, at=at) for line in lines]
        self.write_bytes(attempt, segment, "".join(f"{row}\n" for row in rows).encode())

    def write_bytes(self, attempt: int, segment: int, content: bytes) -> None:
        name = f"{protocol.journal_folder(attempt)}/{protocol.segment_name(segment)}"
        self.files.makedirs(f"{self.path}/{protocol.journal_folder(attempt)}", exist_ok=True)
        self.files.pipe_file(f"{self.path}/{name}", content)

    def say(self, name: str, content: bytes) -> None:
        self.files.makedirs(f"{self.path}/{name}".rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(f"{self.path}/{name}", content)

    def control(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.files.cat_file(f"{self.path}/{name}"))
        return content


@pytest.fixture(params=["file", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    uri = str(tmp_path / "runs" / "r1") if request.param == "file" else f"memory://{uuid.uuid4().hex}/r1"
    yield Run(uri)
    fsspec.filesystem("memory").store.clear()


def test_every_record_arrives_in_the_launchers_time(run: Run) -> None:
    run.write(
        1,
        1,
        protocol.Started(step=100, resumed_from="step-100-a1", lost_steps=4),
        protocol.Step(step=110, step_seconds=0.5, metrics={"loss": 1.5}),
        protocol.Committed(step=120, name="step-120-a1", bytes=1000, seconds=0.25),
        protocol.Notice(source="ec2", seconds_left=2.0),
        protocol.Ended(reason="preempted", step=125, step_seconds=0.5, metrics={"loss": 1.25}),
    )
    when: dict[str, Any] = {"at": EPOCH + timedelta(seconds=60), "segment": 1}

    assert run.journal.read(1, after_segment=0) == (
        TrainerStarted(**when, step=100, resumed_from="step-100-a1", lost_steps=4),
        TrainerStepped(**when, step=110, step_seconds=30.0, metrics={"loss": 1.5}),
        TrainerCommitted(**when, step=120, name="step-120-a1", bytes=1000, seconds=15.0),
        TrainerNoticed(**when, source="ec2", seconds_left=120.0),
        TrainerEnded(**when, reason="preempted", step=125, step_seconds=30.0, metrics={"loss": 1.25}),
    )


def test_what_a_commit_cost_is_read_in_market_time_and_in_bytes(run: Run) -> None:
    told = protocol.Committed(
        step=120,
        name="step-120-a1",
        bytes=1000,
        seconds=0.25,
        lost_seconds=0.5,
        durable_seconds=2.0,
        written_bytes=10,
        stored_bytes=3000,
        kept=3,
        local_only=True,
    )
    run.write(1, 1, told)

    (line,) = run.journal.read(1, after_segment=0)

    assert isinstance(line, TrainerCommitted)
    assert (line.seconds, line.lost_seconds, line.durable_seconds) == (15.0, 30.0, 120.0)
    assert (line.written_bytes, line.stored_bytes, line.kept, line.local_only) == (10, 3000, 3, True)


def test_unknown_durations_stay_unknown(run: Run) -> None:
    run.write(1, 1, protocol.Step(step=1), protocol.Notice(source="signal"))

    step, notice = run.journal.read(1, after_segment=0)

    assert isinstance(step, TrainerStepped)
    assert isinstance(notice, TrainerNoticed)
    assert (step.step_seconds, notice.seconds_left) == (None, None)


def test_a_folder_that_is_not_there_yet_is_empty(run: Run) -> None:
    assert run.journal.read(1, after_segment=0) == ()


def test_only_newer_segments_are_read_in_order_of_number(run: Run) -> None:
    for segment in (10, 2, 1, 9, 11):
        run.write(1, segment, protocol.Step(step=segment))

    assert [line.segment for line in run.journal.read(1, after_segment=2)] == [9, 10, 11]
    assert [line.segment for line in run.journal.read(1, after_segment=0)] == [1, 2, 9, 10, 11]
    assert run.journal.read(1, after_segment=11) == ()


def test_an_attempt_reads_its_own_segments(run: Run) -> None:
    run.write(1, 1, protocol.Step(step=1))
    run.write(2, 1, protocol.Step(step=2))
    run.write(1000, 1, protocol.Step(step=3))

    read = [run.journal.read(attempt, after_segment=0) for attempt in (1, 2, 3, 1000)]

    assert [[getattr(line, "step", None) for line in lines] for lines in read] == [[1], [2], [], [3]]


def test_a_segment_written_after_a_look_is_seen_by_the_next_one(run: Run) -> None:
    run.write(1, 1, protocol.Step(step=1))
    assert len(run.journal.read(1, after_segment=0)) == 1

    run.write(1, 2, protocol.Step(step=2))

    assert [line.segment for line in run.journal.read(1, after_segment=1)] == [2]


AT = EPOCH.isoformat()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[]",
        "7",
        '{"v":1,"at":"' + AT + '","kind":"step","st',
        '{"v":1,"at":"' + AT + '","kind":"sneeze","step":1}',
        '{"v":1,"at":"' + AT + '","kind":["step"],"step":1}',
        '{"v":1,"at":"yesterday","kind":"step","step":1}',
        '{"v":1,"at":"0001-01-01T00:00:00+10:00","kind":"step","step":1}',
        '{"v":1,"at":"9999-12-31T00:00:00+00:00","kind":"step","step":1}',
        '{"v":1,"at":"' + AT + '","kind":"step"}',
        '{"v":1,"at":"' + AT + '","kind":"step","step":"many"}',
        '{"v":1,"at":"' + AT + '","kind":"step","step":-1}',
        '{"v":1,"at":"' + AT + '","kind":"step","step":1,"step_seconds":"fast"}',
        '{"v":1,"at":"' + AT + '","kind":"step","step":1,"step_seconds":NaN}',
        '{"v":1,"at":"' + AT + '","kind":"step","step":1,"metrics":3}',
        '{"v":1,"at":"' + AT + '","kind":"ended","step":1,"reason":"bored"}',
        '{"v":1,"at":"' + AT + '","kind":"committed","step":1,"name":"n","bytes":null,"seconds":0}',
    ],
)
def test_a_torn_or_foreign_line_is_left_out(run: Run, line: str) -> None:
    run.write(1, 1, protocol.Step(step=1), line, protocol.Step(step=2))

    assert [getattr(read, "step", None) for read in run.journal.read(1, after_segment=0)] == [1, 2]


def test_bytes_that_are_no_text_are_left_out(run: Run) -> None:
    good = protocol.encode(protocol.Step(step=1), at=EPOCH).encode()
    run.write_bytes(1, 1, b"\xff\xfe\x00\n" + good)

    assert len(run.journal.read(1, after_segment=0)) == 1


def test_fields_of_a_newer_trainer_are_ignored(run: Run) -> None:
    run.write(1, 1, '{"v":2,"at":"' + AT + '","kind":"step","step":1,"mood":"good"}')

    assert len(run.journal.read(1, after_segment=0)) == 1


def test_a_metric_that_is_no_number_is_dropped_and_the_step_is_kept(run: Run) -> None:
    run.write(1, 1, '{"v":1,"at":"' + AT + '","kind":"step","step":1,"metrics":{"loss":NaN,"acc":0.5,"note":"x"}}')

    (line,) = run.journal.read(1, after_segment=0)

    assert isinstance(line, TrainerStepped)
    assert line.metrics == {"acc": 0.5}


def test_files_that_are_no_segments_are_ignored(run: Run) -> None:
    run.write(1, 1, protocol.Step(step=1))
    for name in ("00000002.jsonl.tmp", ".00000003.jsonl", "notes.txt", "x00000004.jsonl"):
        run.files.pipe_file(f"{run.path}/journal/001/{name}", protocol.encode(protocol.Step(step=9), at=EPOCH).encode())

    assert [line.segment for line in run.journal.read(1, after_segment=0)] == [1]


def test_a_stop_names_its_attempt(run: Run) -> None:
    run.journal.request_stop(3)
    assert run.control(protocol.CONTROL_STOP) == {"attempt": 3}

    run.journal.request_stop(4)
    assert run.control(protocol.CONTROL_STOP) == {"attempt": 4}


def test_every_request_for_a_checkpoint_is_another_one(run: Run) -> None:
    run.journal.request_checkpoint()
    first = run.control(protocol.CONTROL_CHECKPOINT)
    run.journal.request_checkpoint()
    second = run.control(protocol.CONTROL_CHECKPOINT)

    assert first.keys() == second.keys() == {"id"}
    assert first != second


def test_an_attempt_is_ready_when_its_own_trainer_has_said_so(run: Run) -> None:
    assert not run.journal.is_ready(4)

    run.say(protocol.control_ready(3), b'{"attempt": 3}')
    assert (run.journal.is_ready(3), run.journal.is_ready(4)) == (True, False)

    run.say(protocol.control_ready(4), b'{"attempt": 4}')
    assert run.journal.is_ready(4)


def test_a_go_says_to_the_cent_what_was_spent_and_may_be_said_again(run: Run) -> None:
    run.journal.hand_over(4, spent_usd=Decimal("12.340000000000000001"))
    assert run.control("control/go-4") == {"spent_usd": "12.340000000000000001"}

    run.journal.hand_over(4, spent_usd=Decimal("12.50"))
    assert run.control("control/go-4") == {"spent_usd": "12.50"}
    assert not run.journal.is_ready(4)


def test_a_handover_leaves_no_trace_in_the_journal(run: Run) -> None:
    """A newer attempt there would fence the one that trains."""
    run.journal.is_ready(4)
    run.journal.hand_over(4, spent_usd=Decimal(1))

    assert [path.rpartition("/")[2] for path in run.files.ls(run.path, detail=False)] == ["control"]


def test_a_request_leaves_nothing_else_behind(run: Run) -> None:
    run.journal.request_stop(1)
    run.journal.request_checkpoint()
    run.journal.hand_over(2, spent_usd=Decimal(1))

    names = sorted(path.rpartition("/")[2] for path in run.files.ls(f"{run.path}/control", detail=False))
    assert names == ["checkpoint", "go-2", "stop"]


def test_a_folder_that_does_not_answer_is_an_error_to_repeat(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    (tmp_path / "journal" / "001" / "00000001.jsonl").mkdir(parents=True)

    with pytest.raises(BackendError, match="did not answer"):
        run.journal.read(1, after_segment=0)


def test_whether_an_attempt_is_ready_is_unknown_where_the_folder_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / protocol.control_ready(1)).mkdir(parents=True)

    with pytest.raises(BackendError, match="did not answer"):
        Run(str(tmp_path)).journal.is_ready(1)


def test_a_folder_that_cannot_be_written_is_an_error_to_repeat(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("in the way")

    for ask in (lambda journal: journal.request_stop(1), lambda journal: journal.hand_over(1, spent_usd=Decimal(1))):
        with pytest.raises(BackendError, match="did not answer"):
            ask(Run(str(tmp_path)).journal)


def test_a_uri_that_no_library_reads_is_a_wrong_input() -> None:
    with pytest.raises(InputError, match="no library reads nosuch://bucket/run"):
        FsspecJournal("nosuch://bucket/run", clock=SystemClock())
