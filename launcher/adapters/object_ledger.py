"""The ledger in a bucket or a folder, without a database: whatever can create an object only once can order writers.

    <uri>/runs/<run_id>/<seq of its first entry>.jsonl    one object per append; objects are only ever added

The object's first line says who wrote how many, each further one is an entry: `{"seq": …, "at": …, "event": {…}}`. Two
writers behind the same entry ask for the same name, and one of them gets it (`If-None-Match: *` on S3 and Azure,
`ifGenerationMatch=0` on GCS, `link` on a file system). An append whose fate stays unknown is `LedgerUnavailable`; if it
did arrive after all, the next one meets `LedgerConflict` and reads it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from launcher.core.gravity import STORES
from launcher.core.runs.events import Entry, Event, from_json, to_json
from launcher.errors import InputError, LedgerConflict, LedgerUnavailable, Problem
from trainer_hooks.storage import Storage, open_storage

_RUNS = "runs"
_OBJECT = re.compile(r"(\d{8,})\.jsonl")
_MOST_BYTES = 64 << 20  # of one append: far more than any, far less than the memory of a laptop

Batch = tuple[Entry, ...]


def is_object_store(url: str) -> bool:
    """Whether `url` names a folder for an `ObjectLedger`, and no database."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and (scheme == "file" or scheme in STORES)


class ObjectLedger:
    """`launcher.ports.Ledger` in a folder that fsspec can reach. What was read once is not asked for again."""

    def __init__(self, uri: str, *, opens: Callable[[str], Storage] = open_storage) -> None:
        self._uri = uri.rstrip("/")
        self._opens = opens
        self._known: dict[str, dict[int, Batch]] = {}  # by run, then by the number of the batch's first entry

    def append(self, run_id: str, events: Sequence[Event], *, after_seq: int, at: datetime) -> tuple[Entry, ...]:
        """As the port says; an instant before the newest entry's is moved up to it."""
        newest = self._newest(run_id, at_least=after_seq)
        last_seq, at = (newest.seq, max(at, newest.at)) if newest else (0, at)
        if last_seq != after_seq:
            raise LedgerConflict(f"run {run_id} is at entry {last_seq}, not {after_seq}")
        batch = tuple(
            Entry(run_id=run_id, seq=seq, at=at.astimezone(UTC), event=event)
            for seq, event in enumerate(events, start=after_seq + 1)
        )
        if batch:
            self._create(batch)
            self._known.setdefault(run_id, {})[after_seq + 1] = batch
        return batch

    def read(self, run_id: str, *, after_seq: int = 0) -> tuple[Entry, ...]:
        batches = self._batches(run_id, after_seq)
        return tuple(entry for batch in batches for entry in batch if entry.seq > after_seq)

    def run_ids(self) -> tuple[str, ...]:
        """One listing, and one look at each run that was never seen: when it began stands in its first object."""
        named = self._names(_RUNS)
        self._fetch([(run_id, 1) for run_id in named], may_lack=True)
        begun = [(entries[0].at, run_id) for run_id in named if (entries := self._first(run_id))]
        return tuple(run_id for _, run_id in sorted(begun))

    def _first(self, run_id: str) -> Batch:
        """The run's first batch. Without one, there may be an empty folder of an append that died, and nothing else."""
        known = self._known.get(run_id, {})
        return known[1] if 1 in known else self.read(run_id)

    def _newest(self, run_id: str, *, at_least: int) -> Entry | None:
        """The newest entry; of what is known already, if that goes so far: who is behind will meet the conflict."""
        known = self._known.get(run_id, {})
        newest = known[max(known)][-1] if known else None
        if (newest.seq if newest else 0) >= at_least:
            return newest
        batches = self._batches(run_id, at_least)
        return batches[-1][-1] if batches else None

    def _batches(self, run_id: str, after_seq: int) -> list[Batch]:
        """Those that hold entries behind `after_seq`, and the one before them, which may."""
        matches = (_OBJECT.fullmatch(name) for name in self._names(f"{_RUNS}/{run_id}"))
        firsts = sorted(int(match[1]) for match in matches if match)
        older = [first for first in firsts if first <= after_seq][:-1]
        firsts = firsts[len(older) :]
        self._fetch([(run_id, first) for first in firsts])
        batches = [self._known[run_id][first] for first in firsts]
        self._check_whole(run_id, batches, starts_at=1 if not older else firsts[0])
        return batches

    def _check_whole(self, run_id: str, batches: Iterable[Batch], *, starts_at: int) -> None:
        """Objects that somebody deleted were money that somebody spent."""
        for batch in batches:
            if batch[0].seq != starts_at:
                lost = f"entry {starts_at}" + (f" to {batch[0].seq - 1}" if batch[0].seq - 1 > starts_at else "")
                fix = "restore the objects, and exempt the folder from lifecycle rules"
                raise LedgerUnavailable(f"run {run_id} lacks {lost} in {self._uri}/{_RUNS}/{run_id}: {fix}")
            starts_at = batch[-1].seq + 1

    def _fetch(self, wanted: Iterable[tuple[str, int]], *, may_lack: bool = False) -> None:
        """Read the batches that are not known yet, several at once."""
        missing = [(run_id, first) for run_id, first in wanted if first not in self._known.get(run_id, {})]
        if not missing:
            return

        def fetch(place: tuple[str, int]) -> Batch:
            try:
                return _decoded(*place, self._storage.read(_path(*place), limit_bytes=_MOST_BYTES))
            except FileNotFoundError:
                if may_lack:
                    return ()
                raise

        try:
            with ThreadPoolExecutor(self._storage.parallel) as pool:
                found = list(pool.map(fetch, missing))
        except (OSError, ValueError) as error:
            raise self._unavailable(error) from error
        for (run_id, first), batch in zip(missing, found, strict=True):
            if batch:
                self._known.setdefault(run_id, {})[first] = batch

    def _create(self, batch: Batch) -> None:
        path, body = _path(batch[0].run_id, batch[0].seq), _encoded(batch, writer=uuid.uuid4().hex)
        try:
            self._storage.put(path, body, exclusive=True)
        except FileExistsError as error:
            raise LedgerConflict(f"run {batch[0].run_id} has an entry {batch[0].seq} already") from error
        except OSError as error:
            if not self._holds(path, body):
                raise self._unavailable(error) from error

    def _holds(self, path: str, body: bytes) -> bool:
        """Whether a put that was never answered was done; no other writer's object is the same."""
        with suppress(OSError):
            return self._storage.read(path, limit_bytes=_MOST_BYTES) == body
        return False

    def _names(self, folder: str) -> tuple[str, ...]:
        try:
            return self._storage.names(folder)
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> LedgerUnavailable:
        return LedgerUnavailable(f"the ledger {self._uri} does not answer: {error or type(error).__name__}")

    @cached_property
    def _storage(self) -> Storage:
        try:
            return self._opens(self._uri)
        except (ImportError, ValueError) as error:
            fix = "install the extra for it: spotlaunch[s3], [gcs] or [azure]"
            problem = Problem("L110", f"no library reads {self._uri}: {error}", "LAUNCH_LEDGER", fix)
            raise InputError([problem]) from error


def _path(run_id: str, first: int) -> str:
    return f"{_RUNS}/{run_id}/{first:08d}.jsonl"


def _encoded(batch: Batch, *, writer: str) -> bytes:
    lines = [json.dumps({"v": 1, "writer": writer, "entries": len(batch)})]
    lines += [f'{{"seq": {e.seq}, "at": "{e.at.isoformat()}", "event": {to_json(e.event)}}}' for e in batch]
    return "\n".join([*lines, ""]).encode()


def _decoded(run_id: str, first: int, body: bytes) -> Batch:
    """Raises: ValueError: not what an append writes, or of a newer version."""
    try:
        header, *rows = [json.loads(line) for line in body.split(b"\n")[:-1]]  # JSON leaves U+2028 as it is
        batch = tuple(_entry(run_id, row) for row in rows)
        is_whole = [entry.seq for entry in batch] == list(range(first, first + header["entries"])) and batch
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_path(run_id, first)} is damaged, or of a newer version: {error}") from error
    if not is_whole:
        raise ValueError(f"{_path(run_id, first)} does not hold the entries that it says")
    return batch


def _entry(run_id: str, row: dict[str, Any]) -> Entry:
    event = from_json(json.dumps(row["event"]))
    return Entry(run_id=run_id, seq=row["seq"], at=datetime.fromisoformat(row["at"]), event=event)
