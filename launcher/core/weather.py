"""When places have spot capacity: drawn from hazards by age, or read from a record."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from launcher.core.hazards import AVAILABLE, LIFE_HAZARD, RETURN_HAZARD, SPELL_HAZARD, age_at, cumulated, lived_hours
from launcher.core.market import Place

FRAILTY = 0.5  # places differ: standard deviation of the logarithm of a place's own hazards
_RESTS = 128  # quantiles of what is left of an outage that somebody comes upon


class Weather(Protocol):
    """Of one future. Instants are hours since the submit."""

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        """Whether the place has capacity, and until when that stays so."""
        ...


class Drawn:
    """Places that come and go by themselves. Nobody asks of an instant before one that was asked of.

    At the beginning each has capacity with the chance `AVAILABLE`, and is somewhere in its spell or outage; `begins_up`
    surely has some.
    """

    def __init__(self, luck: random.Random, *, begins_up: Place | None = None) -> None:
        self._luck, self._begins_up = luck, begins_up
        self._spells: dict[str, tuple[bool, float, float]] = {}  # up, until, its own hazards against its scale

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        known = self._spells.get(place.key)
        if known is None:
            known = self._begin(place)
        is_up, until, frailty = known
        while until <= now:
            is_up = not is_up
            until += self._length(place, frailty, is_up=is_up)
        self._spells[place.key] = is_up, until, frailty
        return is_up, until

    def _begin(self, place: Place) -> tuple[bool, float, float]:
        frailty = math.exp(self._luck.gauss(0.0, FRAILTY) - FRAILTY**2 / 2)
        if place is self._begins_up or self._luck.random() < AVAILABLE:
            return True, self._lived(LIFE_HAZARD, place.scale * frailty), frailty
        return False, _rests()[int(self._luck.random() * _RESTS)] * frailty, frailty

    def _length(self, place: Place, frailty: float, *, is_up: bool) -> float:
        if is_up:
            return self._lived(SPELL_HAZARD, place.scale * frailty)
        return self._lived(RETURN_HAZARD, 1.0 / frailty)

    def _lived(self, hazards: tuple[tuple[float, float], ...], scale: float) -> float:
        return age_at(hazards, self._luck.expovariate(1.0) / scale) if scale > 0 else math.inf


class Recorded:
    """By a place's key: the instants at which it changes, and whether it had capacity at the first of them.

    Behind its end a record begins again; a place without one never has capacity.
    """

    def __init__(self, records: Mapping[str, tuple[bool, Sequence[float]]]) -> None:
        """Each record: whether it begins up, and its changes, the last of which is its end."""
        self._records = records

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        begins_up, changes = self._records.get(place.key, (False, ()))
        if not changes:
            return begins_up, math.inf
        length = changes[-1]
        turns, within = divmod(now, length)
        number = bisect_right(changes, within)
        return begins_up ^ bool(number % 2), turns * length + changes[number]


@lru_cache(maxsize=1)
def _rests() -> tuple[float, ...]:
    """Of an outage met at a random instant, the time until it ends: P(rest ≤ x) = ∫₀ˣ S / mean, in even quantiles."""
    mean = lived_hours(RETURN_HAZARD, 1.0, 1e4)
    grid = [0.05 * 1.05**n for n in range(240)]
    shares = [lived_hours(RETURN_HAZARD, 1.0, x) / mean for x in grid]
    return tuple(grid[min(len(grid) - 1, bisect_right(shares, (n + 0.5) / _RESTS))] for n in range(_RESTS))


def expected_ends(place: Place, hours: float) -> float:
    """Preemptions to be expected of a machine that has lived so long."""
    return place.scale * cumulated(LIFE_HAZARD, hours)
