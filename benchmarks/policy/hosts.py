"""Machines of a small world, and who grants them as unkindly as the natures of its places want it."""

from __future__ import annotations

import math

from benchmarks.policy.natures import Case, Habit, Nature, is_up, turns_at
from launcher.core.policy.decision import Standing
from launcher.core.policy.market import Market, Place

HAIR = 1e-7  # hours


class Machine:
    """From the asking until it is gone; all instants are infinite until they are known."""

    __slots__ = ("begun_at", "billed_to", "dies_at", "ends_at", "granted_at", "key", "place", "ready_at", "stops_at")

    def __init__(self, place: Place, *, granted_at: float, dies_at: float = math.inf, hangs: bool = False) -> None:
        self.place, self.key = place, place.key
        self.granted_at = self.billed_to = granted_at
        self.ready_at = math.inf if hangs else granted_at + place.setup_hours
        self.dies_at = dies_at
        self.begun_at = math.inf  # trains from then on
        self.stops_at = math.inf  # it was asked to, and does after its step
        self.ends_at = math.inf  # its last save is durable then

    def done(self, now: float) -> float:
        """Steps, saved or not."""
        return max(0.0, min(now, self.stops_at) - self.begun_at) / self.place.step_hours

    def saved(self, now: float) -> float:
        if now >= self.ends_at:
            return self.done(now)
        place, until = self.place, min(now, self.stops_at + self.place.durable_hours)
        hours = (until - place.durable_hours - self.begun_at) / place.interval_hours
        return math.floor(hours + 1e-9) * place.interval_hours / place.step_hours if hours >= 1 else 0.0

    @property
    def closes_at(self) -> float:
        return min(self.place.closes_at, self.granted_at + self.place.lease_hours)

    @property
    def hangs(self) -> bool:
        return self.ready_at == math.inf


class Hosts:
    """Of one run: they remember who asked for capacity that stays, and since when."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._chases: dict[str, tuple[float, float]] = {}  # the first and the last asking in vain
        self.leased: set[str] = set()

    def granted(self, place: Place, now: float) -> Machine | None:
        """`None`: refused."""
        habit = self._case.habits[place.key]
        if not place.is_spot:
            return self._firm(place, habit, now)
        if not is_up(habit, now):
            return None
        dies_at, ready_at = math.inf, now + place.setup_hours
        match habit.nature:
            case Nature.FLAPPING | Nature.ENDING:
                dies_at = turns_at(habit, now)
            case Nature.AT_START:
                dies_at = max(now + HAIR, ready_at + habit.hours)
            case Nature.AT_SAVE:
                dies_at = ready_at + place.interval_hours + place.durable_hours - HAIR
            case _:
                pass
        return Machine(place, granted_at=now, dies_at=dies_at, hangs=habit.nature is Nature.HANGING)

    def _firm(self, place: Place, habit: Habit, now: float) -> Machine | None:
        """Within the promise: refused only if the next asking still comes in time. A lease is renewed at once."""
        case, is_new = self._case, place.key not in self.leased
        first, latest = self._chases.pop(place.key, (now, now))
        if now > latest + case.delay_hours + case.retry_hours:  # nobody has asked for long: it begins anew
            first = now
        last = first + case.delay_hours
        again_at = now + case.retry_hours + (case.poll_hours or 0.0)
        if habit.nature is Nature.DELAYING and is_new and again_at <= last:
            self._chases[place.key] = (first, now)
            return None
        if place.lease_hours < math.inf:
            self.leased.add(place.key)
        return Machine(place, granted_at=max(now, last) if habit.nature is Nature.LATE and is_new else now)

    def leave_early(self, machine: Machine, at: float) -> None:
        """Some machines are taken as soon as they are to be left."""
        if machine.place.is_spot and self._case.habits[machine.key].nature is Nature.AT_LEAVING:
            machine.dies_at = min(machine.dies_at, at + HAIR)

    def plot(self, machine: Machine, run: Standing, market: Market, now: float) -> None:
        """Some are taken at the last moment before the guard of the time would see it, if no save helps them before."""
        if self._case.habits[machine.key].nature is not Nature.AT_GUARD or machine.begun_at > now or not market.firm:
            return
        needed = min(p.finish_hours(run.steps) for p in market.firm)
        if needed == math.inf:
            return
        due_at, poll = market.deadline - needed - market.reserve_hours - machine.place.closing_hours, 0.0
        if self._case.poll_hours is not None:
            poll = self._case.poll_hours
            due_at = math.ceil(due_at / poll - 1e-6) * poll
        if due_at <= now + 2 * HAIR:
            due_at = now + (poll or 0.05)
        if machine.saved(due_at) <= machine.saved(now) + 1e-9:
            machine.dies_at = max(now + HAIR, due_at - HAIR)
