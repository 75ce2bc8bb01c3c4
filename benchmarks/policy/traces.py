"""Public traces of spot availability, read in place and never kept: no licence is stated for some of them.

`FOLDER/spot_availability.json` maps a path (`…/SET/ZONE_GPU_COUNT`) to `gap`, the seconds between two looks, and `rle`,
run lengths [[up, looks], …]; traces with prices also have `spot`, in USD per hour.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TICK_SECONDS = 120
TICKS_PER_HOUR = 3600 // TICK_SECONDS
VARIABLE = "SPOTLAUNCH_TRACES"
FILE = "spot_availability.json"


class NoTraces(Exception):
    """No folder with traces was named, or it holds none; the message is what to tell the user."""


@dataclass(frozen=True, slots=True, eq=False)
class Zone:
    """One zone, tick by tick."""

    name: str
    region: str
    spot_price_per_hour: float | None
    up: Sequence[bool]  # [ticks]
    since: Sequence[int]  # [ticks], the tick from which on the zone is in its state; 0 may be earlier in truth
    until: Sequence[int]  # [ticks], the first tick in another state, or the end of the trace

    @property
    def ticks(self) -> int:
        return len(self.since)


def traces_folder(asked: Path | None) -> Path:
    """The folder asked for, or the one that SPOTLAUNCH_TRACES names.

    Raises: NoTraces: there is none, or no spot_availability.json in it.
    """
    named = asked or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        raise NoTraces(f"skipped: no traces; give --traces FOLDER or set {VARIABLE} to a folder with {FILE}")
    if not (named / FILE).is_file():
        raise NoTraces(f"skipped: no {FILE} in {named}; give --traces FOLDER or set {VARIABLE}")
    return named


def read_sets(folder: Path) -> dict[str, list[Zone]]:
    """Zones by the name of their set, in the file's order."""
    sets: dict[str, list[Zone]] = {}
    for path, trace in json.loads((folder / FILE).read_text()).items():
        *_, set_name, name = path.split("/")
        sets.setdefault(set_name, []).append(_zone(name, trace))
    return sets


def zone(name: str, up: Sequence[bool] | NDArray[np.bool_], *, spot_price_per_hour: float | None = None) -> Zone:
    """A zone from its ticks."""
    ticks = np.asarray(up, dtype=bool)
    if not len(ticks):
        raise ValueError(f"{name} has no ticks; give one or more")
    changes = np.flatnonzero(np.diff(ticks)) + 1
    starts, ends = np.append(0, changes), np.append(changes, len(ticks))
    lengths = ends - starts
    return Zone(
        name=name,
        region=_region(name),
        spot_price_per_hour=spot_price_per_hour,
        up=ticks.tolist(),
        since=np.repeat(starts, lengths).tolist(),
        until=np.repeat(ends, lengths).tolist(),
    )


def starts(zones: Sequence[Zone], *, every_hours: int, window_ticks: int, from_hour: int = 0) -> range:
    """First ticks of the windows that fit into all zones."""
    last = min(one.ticks for one in zones) - window_ticks
    return range(from_hour * TICKS_PER_HOUR, last + 1, every_hours * TICKS_PER_HOUR)


def _zone(name: str, trace: Mapping[str, Any]) -> Zone:
    values, looks = zip(*trace["rle"], strict=True)
    raw = np.repeat(np.array(values, dtype=bool), looks)
    gap_seconds = int(trace["gap"])
    at_seconds = np.arange(len(raw) * gap_seconds // TICK_SECONDS) * TICK_SECONDS
    return zone(name, raw[at_seconds // gap_seconds], spot_price_per_hour=trace.get("spot"))


def _region(name: str) -> str:
    """us-east-1a_v100_1 lies in us-east-1, us-west1-a_h100_16 in us-west1."""
    return name.partition("_")[0][:-1].removesuffix("-")
