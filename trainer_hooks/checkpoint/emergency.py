"""What to save when the machine is about to be taken: pure arithmetic over what earlier saves showed.

A save that does not become complete leaves the store as it was: its manifest is put last, and no plan deletes
anything. So the worst of a wrong prediction is the older checkpoint; what is at stake is only how new the newest is.

    finish   bytes left of the save in flight / speed + commit
    new      capture + bytes that changed / speed + commit
    both     the one after the other: there is one set of buffers, so the capture waits for the one in flight
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SAFE_SHARE = 0.8
"""Of the time left: stores slow down at times, and the process must still end."""

HOPE_FACTOR = 2.0
"""Speeds were measured beside the training, which now stands still: so much too slow they may have been."""


class Plan(StrEnum):
    """In order of preference, where there is time for all of them.

    FINISH_THEN_NEW   both are committed, the older one first: if the time proves short, that one is kept.
    NEW               only the present state. One in flight is given up: with it, there would be no time.
    LOCAL_ONLY        the present state, on a disk that survives. One in flight goes on, nobody waits for it.
    FINISH            wait for the one in flight, start nothing.
    NOTHING           leave at once: nothing new would become complete.
    """

    FINISH_THEN_NEW = "finish_then_new"
    NEW = "new"
    LOCAL_ONLY = "local_only"
    FINISH = "finish"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A save whose manifest is not committed yet."""

    step: int
    bytes_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Speeds in bytes a second, as the last saves reached them; `None`: nothing was written there yet.

    `new_bytes` is what a new save would have to write: as much as changed in the last one, else everything.
    """

    step: int  # finished
    saved_step: int | None  # of the newest checkpoint that would be found
    seconds_left: float | None  # until the machine is gone; None: the notice does not say
    new_bytes: int
    remote_speed: float | None
    in_flight: InFlight | None = None
    capture_seconds: float = 0.0
    commit_seconds: float = 1.0  # from the last byte to the manifest, and to the process's end
    local_speed: float | None = None
    local_survives: bool = False  # a later attempt will find what is on the local disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    plan: Plan
    seconds: float | None  # predicted; None: not known
    why: str  # to be said to the user


def decide(now: Situation) -> Action:
    """The plan that ends with the newest state among those that surely fit into the time left.

    - With more than one that gets as far, the one that leaves more behind: see `Plan`.
    - If none surely fits (SAFE_SHARE), the shortest that may; it is the likeliest.
    - If none may, one in flight is waited for all the same, since it is being written anyway. Without one, a save
      is tried if a better speed than the measured one would do (HOPE_FACTOR), and else nothing is begun.
    - Without a measured speed a new save is tried: it costs nothing but the time that is lost anyway.
    - Without a time that is left, what is in flight comes first, then the present state.
    """
    plans = _plans(now)
    if not plans:
        return Action(plan=Plan.NOTHING, seconds=0.0, why=f"step {now.step:,} is saved")
    left = None if now.seconds_left is None else max(0.0, now.seconds_left)
    if left is None:
        return _first(plans, "the notice does not say how much time is left")
    if left == 0.0:
        return _last_resort(now, plans, left)
    known = [(plan, seconds) for plan, seconds in plans if seconds is not None]
    for plan, seconds in known:
        if seconds <= SAFE_SHARE * left:
            return Action(plan=plan, seconds=seconds, why=f"it takes {seconds:.1f} s of {left:.0f} s")
    if len(known) < len(plans):
        return _first([one for one in plans if one[1] is None], "how fast the store is was not measured yet")
    plan, shortest = min(known, key=lambda one: one[1])
    if shortest <= left:
        return Action(plan=plan, seconds=shortest, why=f"it takes {shortest:.1f} s of {left:.0f} s, which may do")
    return _last_resort(now, plans, left)


def _plans(now: Situation) -> list[tuple[Plan, float | None]]:
    """What would make the newest state newer, in order of preference, and the seconds it would take."""
    finish = _write_seconds(now, now.in_flight.bytes_left, now.remote_speed) if now.in_flight else 0.0
    new = _write_seconds(now, now.new_bytes, now.remote_speed, capture_seconds=now.capture_seconds)
    local = _write_seconds(now, now.new_bytes, now.local_speed, capture_seconds=now.capture_seconds)
    newest = max(-1 if now.saved_step is None else now.saved_step, now.in_flight.step if now.in_flight else -1)
    plans: list[tuple[Plan, float | None]] = []
    if now.step > newest:
        if now.in_flight:
            plans.append((Plan.FINISH_THEN_NEW, None if finish is None or new is None else finish + new))
        plans.append((Plan.NEW, new))
        if now.local_survives and local is not None:
            plans.append((Plan.LOCAL_ONLY, local))
    if now.in_flight:
        plans.append((Plan.FINISH, finish))
    return plans


def _write_seconds(now: Situation, size: int, speed: float | None, *, capture_seconds: float = 0.0) -> float | None:
    return None if speed is None else capture_seconds + size / max(speed, 1e-9) + now.commit_seconds


def _first(plans: Sequence[tuple[Plan, float | None]], why: str) -> Action:
    plan, seconds = plans[0]
    return Action(plan=plan, seconds=seconds, why=why)


def _last_resort(now: Situation, plans: Sequence[tuple[Plan, float | None]], left: float) -> Action:
    """Nothing is predicted to fit."""
    if now.in_flight:
        seconds = next(seconds for plan, seconds in plans if plan is Plan.FINISH)
        return Action(plan=Plan.FINISH, seconds=seconds, why=f"no time for more in {left:.0f} s")
    if left == 0.0:
        return Action(plan=Plan.NOTHING, seconds=0.0, why="no time is left")
    plan, shortest = min(((plan, seconds or 0.0) for plan, seconds in plans), key=lambda one: one[1])
    if shortest <= HOPE_FACTOR * left:
        return Action(plan=plan, seconds=shortest, why=f"it took {shortest:.1f} s lately, {left:.0f} s are left")
    return Action(plan=Plan.NOTHING, seconds=0.0, why=f"a save would take {shortest:.1f} s, {left:.0f} s are left")
