"""When places have spot capacity: drawn from hazards by age, or read from a record."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol
from zlib import crc32

from launcher.core.hazards import (
    AVAILABLE,
    LIFE_HAZARD,
    RETURN_HAZARD,
    SPELL_HAZARD,
    Hazards,
    age_at,
    cumulated,
    lived_hours,
)
from launcher.core.policy.market import Place
from launcher.core.policy.spot import learned_scale

# Places differ, and so do a place's own days: standard deviation of the logarithm of hazards in a future. Between 0.25
# and 0.4: either held 78 to 88 % of the runs on the traces of 2022-10 (python -m benchmarks policy calibration).
FRAILTY = 0.3
_RESTS = 128  # quantiles of what is left of an outage that somebody comes upon

Record = tuple[bool, Sequence[float]]
"""Whether a place had capacity at hour 0, and the hours at which that changed; the last one is the record's end."""


class Weather(Protocol):
    """Of one future. Instants are hours since the submit."""

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        """Whether the place has capacity, and until when that stays so."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a place's record teaches: how it stands at its end (`None`: nobody knows); ends of spells and outages, and
    how many the hazards of the traces let one expect."""

    is_up: bool | None
    age_hours: float  # of that spell or outage
    lost: tuple[int, float]
    found: tuple[int, float]


def habits(record: Record) -> Habits:
    begins_up, changes = record
    spells = [until - since for since, until in pairwise((0.0, *changes))]
    up, down = (spells[number::2] for number in ((0, 1) if begins_up else (1, 0)))
    ends_up = begins_up ^ (len(spells) % 2 == 0)
    return Habits(
        is_up=ends_up,
        age_hours=spells[-1],
        lost=(len(up) - ends_up, _expected(SPELL_HAZARD, up)),
        found=(len(down) - (not ends_up), _expected(RETURN_HAZARD, down)),
    )


def _expected(hazards: Hazards, spells: Iterable[float]) -> float:
    return sum(cumulated(hazards, hours) for hours in spells)


class Drawn:
    """Places that come and go by themselves. Nobody asks of an instant before one that was asked of.

    A place begins as its record ends. One without a record has capacity with the chance that its provider states, else
    `AVAILABLE`, and is somewhere in its spell or outage.
    """

    def __init__(
        self, seed: int, known: Mapping[str, Habits] | None = None, *, swaps: tuple[str, str] = ("", "")
    ) -> None:
        """A place's luck depends on the seed and its key alone; those named in `swaps` have each other's."""
        self._seed, self._known = seed, known or {}
        self._lucks = dict([swaps, swaps[::-1]])
        self._spells: dict[str, _Spell] = {}

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        spell = self._spells.get(place.key)
        if spell is None:
            name = self._lucks.get(place.key, place.key)
            luck = random.Random(self._seed ^ crc32(name.encode()))  # noqa: S311  # a simulation, not a secret
            spell = self._spells[place.key] = _Spell(luck, place, self._known.get(place.key))
        while spell.until <= now:
            spell.turn()
        return spell.is_up, spell.until


class _Spell:
    __slots__ = ("_lives", "_luck", "_returns", "is_up", "until")

    def __init__(self, luck: random.Random, place: Place, known: Habits | None) -> None:
        """Where many machines are taken, capacity also comes back late."""
        self._luck = luck
        frailty = math.exp(luck.gauss(0.0, FRAILTY) - FRAILTY**2 / 2)
        lives, returns = _learned(place.scale, known) if known else (place.scale, 1.0)
        self._lives, self._returns = frailty * lives, returns / frailty
        available = AVAILABLE if place.obtainability is None else place.obtainability
        seen = known.is_up if known else None
        self.is_up = luck.random() < available if seen is None else seen
        if known and seen is not None:
            self.until = self._lasts(known.age_hours)
        elif self.is_up:
            self.until = self._lasts(0.0, LIFE_HAZARD)
        else:
            self.until = _rest_hours(self._returns, luck.random())

    def turn(self) -> None:
        self.is_up = not self.is_up
        self.until += self._lasts(0.0)

    def _lasts(self, age_hours: float, lives: Hazards = SPELL_HAZARD) -> float:
        """What is left of a spell, or of an outage, of that age."""
        hazards, scale = (lives, self._lives) if self.is_up else (RETURN_HAZARD, self._returns)
        if scale <= 0:
            return math.inf
        mass = self._luck.expovariate(1.0) / scale
        return age_at(hazards, mass + cumulated(hazards, age_hours)) - age_hours if age_hours else age_at(hazards, mass)


def _learned(scale: float, known: Habits) -> tuple[float, float]:
    (lost, lives), (found, returns) = known.lost, known.found
    return learned_scale(scale, taken=lost, expected=scale * lives), learned_scale(1.0, taken=found, expected=returns)


class Recorded:
    """Places as their records say, from `since` hours after their beginning; behind its end a record begins again.

    Places without one are as `others` say, or never have capacity.
    """

    def __init__(self, records: Mapping[str, Record], *, since: float = 0.0, others: Weather | None = None) -> None:
        self._records, self._since, self._others = records, since, others

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        if self._others and place.key not in self._records:
            return self._others.spell(place, now)
        begins_up, changes = self._records.get(place.key, (False, ()))
        if len(changes) < 2:
            return begins_up, math.inf
        turns, within = divmod(now + self._since, changes[-1])
        number = bisect_right(changes, within)
        is_up, until = begins_up ^ bool(number % 2), changes[number]
        if number == len(changes) - 1 and is_up is begins_up:
            until += changes[0]  # as it begins, so it ends: one spell
        return is_up, turns * changes[-1] + until - self._since


def _rest_hours(scale: float, quantile: float) -> float:
    """Of an outage met at a random instant, the time until it ends; scales in steps of a fifth, for the cache."""
    return _rests(round(math.log2(scale) * 4))[int(quantile * _RESTS)]


@lru_cache(maxsize=64)
def _rests(quarter_octaves: int) -> tuple[float, ...]:
    """P(rest ≤ x) = ∫₀ˣ S / mean, in even quantiles."""
    scale = 2.0 ** (quarter_octaves / 4)
    mean = lived_hours(RETURN_HAZARD, scale, 1e4)
    grid = [0.05 * 1.05**n for n in range(240)]
    shares = [lived_hours(RETURN_HAZARD, scale, x) / mean for x in grid]
    return tuple(grid[min(len(grid) - 1, bisect_right(shares, (n + 0.5) / _RESTS))] for n in range(_RESTS))
