"""Records of spot capacity as files, CSV or JSON (docs/replay.md).

place,since_hours,up            {"end_hours": 336,
use2-az1,0,1                     "places": {"use2-az1": [[0, true], [3.5, false]]}}
use2-az1,3.5,0
*,336,end
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from launcher.core.estimates.weather import Record
from launcher.core.replays.traces import Trace
from launcher.errors import InputError, Problem

MAX_BYTES = 50_000_000  # nine zones looked at every two minutes for a month are 2 MB
COLUMNS = ["place", "since_hours", "up"]
_UP, _DOWN, _END = {"1", "true", "yes", "up"}, {"0", "false", "no", "down"}, "end"
_FOR_EVER = 1e9  # hours: of a last state whose end nobody names
_EXAMPLE = "write place,since_hours,up, e.g. use2-az1,3.5,0"


class _Row(NamedTuple):
    place: str
    since: float
    is_up: bool | None  # None: the record's end
    where: str


def load_trace(path: Path) -> Trace:
    """Raises: InputError: it cannot be read, or a line of it does not say when a place was up."""
    text = _text(path)
    rows = list(_json_rows(text, path) if path.suffix == ".json" else _csv_rows(text, path))
    if not any(row.is_up is not None for row in rows):
        _refuse("holds no state of a place", str(path), _EXAMPLE)
    ends = {row.place: row.since for row in rows if row.is_up is None}
    by_place: dict[str, list[_Row]] = {}
    for row in rows:
        if row.is_up is not None:
            by_place.setdefault(row.place, []).append(row)
    for row in rows:
        if row.is_up is None and row.place != "*" and row.place not in by_place:
            _refuse(f"{row.place} ends without a state before", row.where, f"write {row.place},0,1 above it")
    found = {place: _record(rows, ends.get(place, ends.get("*"))) for place, rows in by_place.items()}
    hours = min(ends.get(place, ends.get("*", math.inf)) for place in by_place)
    return Trace(name=path.name, records=found, hours=hours)


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            _refuse(f"has {size:,} bytes; at most {MAX_BYTES:,}", str(path), "leave out rows that repeat a state")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        _refuse(f"cannot be read: {error.strerror}", str(path), "check the path")
    except UnicodeDecodeError:
        _refuse("is not UTF-8 text", str(path), "save it as UTF-8")


def _csv_rows(text: str, path: Path) -> Iterator[_Row]:
    lines = ((n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip() and line[0] != "#")
    first = next(lines, None)
    if first is None or next(csv.reader([first[1]])) != COLUMNS:
        found = "nothing" if first is None else first[1][:60]
        _refuse(f"begins with {found}, not with {','.join(COLUMNS)}", f"{path}:{first[0] if first else 1}", _EXAMPLE)
    for number, line in lines:
        where = f"{path}:{number}"
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if len(cells) != len(COLUMNS):
            _refuse(f"{line[:60]} has {len(cells)} columns, not {len(COLUMNS)}", where, _EXAMPLE)
        yield _row(*cells, where=where)


def _json_rows(text: str, path: Path) -> Iterator[_Row]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        _refuse(f"is not JSON: {error.msg}", f"{path}:{error.lineno}", "mend it, or write CSV")
    except RecursionError:
        _refuse("is nested too deeply", str(path), "mend it, or write CSV")
    fix = 'write {"end_hours": 336, "places": {"use2-az1": [[0, true], [3.5, false]]}}'
    if not isinstance(whole, dict) or not isinstance(whole.get("places"), dict) or set(whole) - {"places", "end_hours"}:
        _refuse("is not an object with places and end_hours", str(path), fix)
    for place, states in whole["places"].items():
        if not isinstance(states, list):
            _refuse(f"places.{place} is no list", str(path), fix)
        for number, state in enumerate(states):
            where = f"{path} places.{place}[{number}]"
            if not isinstance(state, list) or len(state) != 2:
                _refuse(f"{json.dumps(state)[:60]} is not [hours, up]", where, fix)
            yield _row(place, *(_plain(cell) for cell in state), where=where)
    if whole.get("end_hours") is not None:
        yield _row("*", _plain(whole["end_hours"]), _END, where=f"{path} end_hours")


def _plain(cell: Any) -> str:
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def _row(place: str, since: str, up: str, *, where: str) -> _Row:
    try:
        hours = float(since)
    except ValueError:
        hours = math.nan
    if not 0 <= hours < _FOR_EVER:
        _refuse(f"since_hours is {since[:60]}, not hours since the record's beginning", where, _EXAMPLE)
    word = up.lower()
    if word not in _UP | _DOWN | {_END}:
        _refuse(f"up is {up[:60]}", where, "write 1 (there was capacity), 0 (there was none) or end")
    if not place:
        _refuse("place is empty", where, "write an offer's key, a zone, or a pattern such as aws/us-east-2/*")
    return _Row(place, hours, None if word == _END else word in _UP, where)


def _record(rows: Iterable[_Row], end: float | None) -> Record:
    """Changes alone: a state that is repeated is none."""
    begins_up, is_up, before = True, True, -1.0
    changes: list[float] = []
    last = None
    for row in rows:
        assert row.is_up is not None
        if before < 0 and row.since > 0:
            fix = f"write {row.place},0,… for its state at the beginning"
            _refuse(f"{row.place} begins at {row.since:g} h", row.where, fix)
        if row.since <= before:
            _refuse(f"{row.place} goes from {before:g} h back to {row.since:g} h", row.where, "put its rows in order")
        if before < 0:
            begins_up = row.is_up
        elif row.is_up is not is_up:
            changes.append(row.since)
        is_up, before, last = row.is_up, row.since, row
    if last is not None and end is not None and end <= before:
        _refuse(f"{last.place} has a state at {before:g} h, and ends at {end:g} h", last.where, "let it end later")
    return begins_up, (*changes, _FOR_EVER if end is None else end)


def _refuse(message: str, where: str, fix: str) -> NoReturn:
    raise InputError([Problem("L160", message, where, fix)])
