"""How places treat whom they gave a machine: what an adversary draws for each of a case's places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from launcher.core.policy.market import Market


class Nature(IntEnum):
    """The first ones are those of spot, the last two those of capacity that stays; that may be steady, too."""

    STEADY = 0  # always up
    FLAPPING = 1  # up for a part of each period; machines die with it
    ENDING = 2  # up until an instant, never again
    NEVER = 3
    AT_START = 4  # a machine dies so many hours after its set-up ended, or before
    AT_SAVE = 5  # just before the first save would be durable
    AT_GUARD = 6  # just before the look at which the run would leave
    AT_LEAVING = 7  # as soon as another place was asked for, or the run leaves
    HANGING = 8  # granted, never ready
    DELAYING = 9  # refused for as long as the promise lets it
    LATE = 10  # granted at once, and there at the last moment


class Habit(NamedTuple):
    nature: Nature
    hours: float = 0.0  # a period, an instant or a shift
    share: float = 0.0  # of the period
    phase: float = 0.0


class Case(NamedTuple):
    """All that decides how a run goes."""

    market: Market
    habits: Mapping[str, Habit]  # by a place's key
    poll_hours: float | None  # between two looks; None: they come with events
    asks_on: bool  # a refusal is answered by another asking at the same look
    release_hours: float
    delay_hours: float  # until capacity that stays is there, at the latest
    retry_hours: float
    give_up_hours: float  # until a machine that is not ready counts as lost
    left: float  # USD that may be spent
    market_later: Market | None = None  # at other prices
    later_at: float = math.inf


def is_up(habit: Habit, now: float) -> bool:
    """Whether a place would grant a machine."""
    match habit.nature:
        case Nature.NEVER:
            return False
        case Nature.FLAPPING:
            return (now + habit.phase) % habit.hours < habit.share * habit.hours
        case Nature.ENDING:
            return now < habit.hours
        case _:
            return True


def turns_at(habit: Habit, now: float) -> float:
    """When that changes next."""
    match habit.nature:
        case Nature.FLAPPING:
            begin = now - (now + habit.phase) % habit.hours
            down_at = begin + habit.share * habit.hours
            return down_at if down_at > now else begin + habit.hours
        case Nature.ENDING:
            return habit.hours if habit.hours > now else math.inf
        case _:
            return math.inf
