"""Records of spot capacity that were made elsewhere, and which places of a plan they speak of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from launcher.core.estimates.weather import Record
from launcher.core.policy.market import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """`records` by the names that the file gives them; `hours` is what all of them cover, infinite without an end."""

    name: str
    records: Mapping[str, Record]
    hours: float


def records_for(trace: Trace, places: Sequence[Place]) -> dict[str, Record]:
    """By a spot place's key. A name is a key, else a zone or a region, else a pattern for keys: the closest counts."""
    found = {}
    for place in places:
        name = _closest(trace, place) if place.is_spot else None
        if name is not None:
            found[place.key] = trace.records[name]
    return found


def starts_within(trace: Trace, *, window_hours: float, count: int) -> list[float]:
    """As many evenly spread hours as asked for, each with a whole window behind it; else only the first hour."""
    room = trace.hours - window_hours
    if count < 2 or room <= 0 or math.isinf(room):
        return [0.0]
    return [room * number / (count - 1) for number in range(count)]


def _closest(trace: Trace, place: Place) -> str | None:
    offer = place.option.placement.offer
    if place.key in trace.records:
        return place.key
    if offer.zone in trace.records:
        return offer.zone
    if offer.region in trace.records:
        return offer.region
    return next((name for name in trace.records if fnmatchcase(place.key, name)), None)
