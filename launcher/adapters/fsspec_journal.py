"""The launcher's side of a run folder, on anything fsspec can reach.

What the trainer wrote in real time is read in the launcher's: instants and durations pass through its clock.
"""

from __future__ import annotations

import json
import math
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from launcher.adapters.system_clock import SystemClock
from launcher.core.runs.journal import (
    EndReason,
    JournalLine,
    TrainerCommitted,
    TrainerEnded,
    TrainerNoticed,
    TrainerStarted,
    TrainerStepped,
)
from launcher.errors import BackendError, InputError, Problem
from trainer_hooks import protocol

_SEGMENT = re.compile(r"(\d{8,})\.jsonl")

# Errors of storage libraries that are not OSErrors; a library that was never imported cannot have raised.
_FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)


class FsspecJournal:
    """One run's folder. Raises: InputError: no installed library reads such a URI."""

    def __init__(self, run_uri: str, *, clock: SystemClock) -> None:
        self._uri = run_uri.rstrip("/")
        self._clock = clock
        self._files, self._path = open_folder(self._uri)

    def read(self, attempt: int, *, after_segment: int) -> tuple[JournalLine, ...]:
        """Segments appear in order, so whatever is listed may be read: none will turn up before it later."""
        folder = f"{self._path}/{protocol.journal_folder(attempt)}"
        with self._translated():
            segments = [(number, path) for number, path in self._segments(folder) if number > after_segment]
            texts = [(number, self._files.cat_file(path)) for number, path in sorted(segments)]
        return tuple(line for number, text in texts for line in self._lines(number, text))

    def request_stop(self, attempt: int) -> None:
        self._write(protocol.CONTROL_STOP, {"attempt": attempt})

    def request_checkpoint(self) -> None:
        """Every request has an id of its own, so that the trainer answers a repeated one with a save of its own."""
        self._write(protocol.CONTROL_CHECKPOINT, {"id": uuid.uuid4().hex})

    def is_ready(self, attempt: int) -> bool:
        return self.get(protocol.control_ready(attempt)) is not None

    def hand_over(self, attempt: int, *, spent_usd: Decimal) -> None:
        self._write(protocol.control_go(attempt), {"spent_usd": str(spent_usd)})

    def put(self, name: str, content: dict[str, object]) -> None:
        """Replace a small file of the launcher's own. Raises: BackendError: the folder did not answer."""
        self._write(name, content)

    def get(self, name: str) -> dict[str, Any] | None:
        """What `put` wrote there; `None`: nothing, or nothing readable. Raises: BackendError."""
        try:
            with self._translated():
                found = json.loads(self._files.cat_file(f"{self._path}/{name}"))
        except ValueError:
            return None
        except BackendError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return found if isinstance(found, dict) else None

    def _segments(self, folder: str) -> Iterator[tuple[int, str]]:
        try:
            paths = self._files.ls(folder, detail=False)
        except FileNotFoundError:
            return
        for path in paths:
            match = _SEGMENT.fullmatch(path.rpartition("/")[2])
            if match:
                yield int(match[1]), path

    def _lines(self, segment: int, text: bytes) -> Iterator[JournalLine]:
        for row in text.decode(errors="replace").splitlines():
            try:
                decoded = protocol.decode(row)
                line = self._line(*decoded, segment=segment) if decoded else None
            except (TypeError, ValueError, OverflowError):  # well-formed, but not what the contract says
                continue
            if line is not None:
                yield line

    def _line(self, at: datetime, record: protocol.Record, *, segment: int) -> JournalLine:
        """Raises: TypeError, ValueError, OverflowError: a field does not hold what the contract says."""
        where: dict[str, Any] = {"at": self._clock.from_wall(at), "segment": segment}
        match record:
            case protocol.Started(step=step, resumed_from=name, lost_steps=lost):
                resumed_from = None if name is None else str(name)
                return TrainerStarted(**where, step=_count(step), resumed_from=resumed_from, lost_steps=_count(lost))
            case protocol.Step(step=step, step_seconds=took, metrics=values):
                took = self._seconds(took)
                return TrainerStepped(**where, step=_count(step), step_seconds=took, metrics=_metrics(values))
            case protocol.Committed():
                return self._committed(record, where)
            case protocol.Notice(source=source, seconds_left=left):
                return TrainerNoticed(**where, source=str(source), seconds_left=self._seconds(left))
            case protocol.Ended(step=step, step_seconds=took, metrics=values):
                return TrainerEnded(
                    **where,
                    reason=_reason(record.reason),
                    step=_count(step),
                    step_seconds=self._seconds(took),
                    metrics=_metrics(values),
                )

    def _committed(self, record: protocol.Committed, where: Mapping[str, Any]) -> TrainerCommitted:
        return TrainerCommitted(
            **where,
            step=_count(record.step),
            name=str(record.name),
            bytes=_count(record.bytes),
            seconds=self._seconds(record.seconds) or 0.0,
            lost_seconds=self._seconds(record.lost_seconds),
            durable_seconds=self._seconds(record.durable_seconds),
            written_bytes=_count_or_none(record.written_bytes),
            stored_bytes=_count_or_none(record.stored_bytes),
            kept=_count_or_none(record.kept),
            local_only=record.local_only is True,
        )

    def _seconds(self, value: object) -> float | None:
        return None if value is None else _number(value) * self._clock.scale

    def _write(self, name: str, content: dict[str, object]) -> None:
        path, body = f"{self._path}/{name}", json.dumps(content).encode()
        with self._translated():
            if "file" in _protocols(self._files):
                _replace_file(Path(path), body)
            else:
                self._put(path, body)

    def _put(self, path: str, body: bytes) -> None:
        """One object, written in one request. Not every store has folders that must be there first."""
        try:
            self._files.pipe_file(path, body)
        except FileNotFoundError:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, body)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except foreign_errors() as error:
            raise BackendError(f"run folder {self._uri} did not answer: {error or type(error).__name__}") from error


def open_folder(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it ships no types

    try:
        files, path = url_to_fs(uri, use_listings_cache=False)  # the trainer adds what a cache hides
    except (ImportError, ValueError) as error:
        fix = "install the extra for it: spotlaunch[s3], [gcs] or [azure]"
        raise InputError([Problem("L110", f"no library reads {uri}: {error}", "", fix)]) from error
    return files, str(path).rstrip("/")


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _replace_file(path: Path, body: bytes) -> None:
    """A trainer that looks meanwhile finds the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    fresh.write_bytes(body)
    fresh.replace(path)


def foreign_errors() -> tuple[type[BaseException], ...]:
    """What storage libraries raise when a store does not do what it was asked."""
    known = ((sys.modules.get(module), name) for module, name in _FOREIGN_ERRORS)
    return (OSError, *(getattr(module, name) for module, name in known if module))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _count_or_none(value: object) -> int | None:
    return None if value is None else _count(value)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _metrics(values: object) -> dict[str, float]:
    """The finite ones: a loss that became NaN is a fact for a log, but JSON has no word for it."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is not a mapping")
    is_plain = {name: isinstance(value, int | float) and math.isfinite(value) for name, value in values.items()}
    return {str(name): float(value) for name, value in values.items() if is_plain[name]}


def _reason(value: object) -> EndReason:
    match value:
        case "completed" | "preempted" | "stopped" | "out_of_budget" | "failed":
            return value
        case _:
            raise ValueError(f"{value!r} is not a reason to end")
