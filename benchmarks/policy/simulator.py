"""A run on a trace, tick by tick, under a policy: the rules under which all policies and the oracle are compared.

A launch takes some ticks, billed and without progress. A preemption takes the machine and no progress. The fallback
can always be had. Asking a zone for a machine is free and answered at once. With an overlap the old machine computes on
while the new one starts, both billed, and the last of these ticks is the pause of the change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from benchmarks.policy.terms import Sights, Terms
from benchmarks.policy.traces import TICKS_PER_HOUR, Zone

FOREVER = 1 << 30
FEED_TICKS = 5  # a look every 10 minutes


class Mode(Enum):
    """What the run computes on, or waits for."""

    IDLE = "idle"
    SPOT = "spot"
    FALLBACK = "fallback"


class Sight:
    """What is known of a zone; the simulator keeps it up to date, a policy only reads it."""

    __slots__ = ("seen_tick", "since_tick", "up")

    def __init__(self) -> None:
        self.up: bool | None = None  # when last seen; never seen: None
        self.since_tick = 0  # the first tick known of this state; before the window: negative
        self.seen_tick = -FOREVER


class View(NamedTuple):
    """What a policy sees."""

    tick: int
    mode: Mode
    zone: int | None  # of the spot machine
    warm_up_ticks: int  # until the machine computes
    incoming: int | None  # the zone of a spot machine that starts beside it
    work_ticks: int  # left
    slack_ticks: int  # left: time to the deadline less the work
    spent: float
    place: int | None  # the zone in whose region the checkpoint lies; before any: None
    sights: Sequence[Sight]  # [zones]


class Decision(NamedTuple):
    """What the run shall be on from now on; the mode that it is in, without zones, is to go on as it does.

    `zones` are asked in their order until one gives a spot machine, its own being a yes; if all refuse, `refused` is
    done, or without it nothing. `hold_ticks` is a promise to decide the same again while nothing changes.
    """

    mode: Mode
    zones: tuple[int, ...] = ()
    refused: Mode | None = None
    overlap: bool = False
    hold_ticks: int = 1


class Policy(Protocol):
    """One for each run: it may remember."""

    def decide(self, view: View) -> Decision: ...


MakePolicy = Callable[[Terms], Policy]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run took, and what it cost in the unit of the prices."""

    cost: float
    ticks: int  # until the work was done, or the deadline
    work_ticks_missing: int  # at the deadline
    preemptions: int
    launches: int
    spot_ticks: int  # billed
    fallback_ticks: int
    egress_cost: float


def simulate(policy: Policy, zones: Sequence[Zone], start: int, terms: Terms) -> Outcome:
    """The run that starts at tick `start` of the traces, up to its end or its deadline."""
    run = _Run(zones, start, terms)
    while run.work_ticks and run.tick < terms.deadline_ticks:
        run.look()
        decision = policy.decide(run.view())
        run.follow(decision)
        run.go_on(decision.hold_ticks)
    return run.outcome()


class _Machine:
    __slots__ = ("mode", "place", "price", "until", "warm_up", "zone")

    def __init__(self, mode: Mode, zone: int | None, *, place: int, price: float, until: int, warm_up: int) -> None:
        self.mode, self.zone, self.place = mode, zone, place
        self.price = price  # per tick
        self.until = until  # the tick of the trace at which it is preempted
        self.warm_up = warm_up


class _Run:
    def __init__(self, zones: Sequence[Zone], start: int, terms: Terms) -> None:
        self._zones, self._start, self._terms, self._how = zones, start, terms, terms.sights
        self._sights = [Sight() for _ in zones]
        self.tick, self.work_ticks = 0, terms.work_ticks
        self._machine: _Machine | None = None
        self._incoming: _Machine | None = None
        self._place: int | None = None
        self._spent = self._egress_cost = 0.0
        self._preemptions = self._launches = 0
        self._billed_ticks = {Mode.SPOT: 0, Mode.FALLBACK: 0}
        if terms.sights is not Sights.ATTEMPTS:
            self._see_all()

    def look(self) -> None:
        """Learn what this tick brings, preemptions first; a machine that starts beside the lost one takes over."""
        now = self._start + self.tick
        if self._incoming and self._incoming.until <= now:
            self._note(self._incoming.zone, up=False)
            self._incoming = None
        if self._machine and self._machine.until <= now:
            self._preemptions += 1
            self._note(self._machine.zone, up=False)
            self._machine, self._incoming = self._incoming, None
        if self._how is Sights.KNOWN:
            self._see_all()
        elif self._how is Sights.FEED and now % FEED_TICKS == 0:
            for index, zone in enumerate(self._zones):
                self._note(index, up=zone.up[now])

    def view(self) -> View:
        machine, incoming = self._machine, self._incoming
        return View(
            self.tick,
            machine.mode if machine else Mode.IDLE,
            machine.zone if machine else None,
            machine.warm_up if machine else 0,
            incoming.zone if incoming else None,
            self.work_ticks,
            self._terms.deadline_ticks - self.tick - self.work_ticks,
            self._spent,
            self._place,
            self._sights,
        )

    def follow(self, decision: Decision) -> None:
        if decision.mode is Mode.SPOT and decision.zones:
            self._ask(decision)
        else:
            self._change(decision.mode)

    def _ask(self, decision: Decision) -> None:
        now = self._start + self.tick
        for index in decision.zones:
            up = self._zones[index].up[now]
            self._note(index, up=up)
            if up:
                self._move(index, overlap=decision.overlap)
                return
        if decision.refused:
            self._change(decision.refused)

    def _move(self, index: int, *, overlap: bool) -> None:
        machine = self._machine
        if index in {one.zone for one in (machine, self._incoming) if one}:
            return
        started = self._launch(Mode.SPOT, index)
        if overlap and machine and not machine.warm_up:
            self._incoming = started
        else:
            self._machine, self._incoming = started, None

    def _change(self, mode: Mode) -> None:
        """To the fallback, which is where the checkpoint lies, or to nothing; no change ends no hand-over."""
        if mode is (self._machine.mode if self._machine else Mode.IDLE):
            return
        match mode:
            case Mode.IDLE:
                self._machine = self._incoming = None
            case Mode.FALLBACK:
                self._machine, self._incoming = self._launch(mode, None), None
            case Mode.SPOT:
                raise ValueError("spot was wanted in no zone; name those to ask")

    def _launch(self, mode: Mode, index: int | None) -> _Machine:
        terms = self._terms
        last = self._place
        place = (last or 0) if index is None else index
        egress_price = 0.0 if last is None else terms.egress_prices[last][place]
        self._launches += 1
        self._egress_cost += egress_price
        self._spent += egress_price
        per_hour = terms.fallback_price_per_hour if index is None else terms.spot_prices_per_hour[index]
        return _Machine(
            mode,
            index,
            place=place,
            price=per_hour / TICKS_PER_HOUR,
            until=FOREVER if index is None else self._zones[index].until[self._start + self.tick],
            warm_up=terms.launch_ticks,
        )

    def go_on(self, hold_ticks: int) -> None:
        """Let time pass, in one leap as long as nothing can change and the policy has promised to keep its mind."""
        ticks = self._leap(hold_ticks)
        self.tick += ticks
        machine, incoming = self._machine, self._incoming
        if machine:
            self._bill(machine, ticks)
            if machine.warm_up:
                machine.warm_up -= ticks
            elif not (incoming and incoming.warm_up == 1):
                self.work_ticks -= ticks
                self._place = machine.place
        if incoming:
            self._bill(incoming, ticks)
            incoming.warm_up -= ticks
            if not incoming.warm_up:
                self._machine, self._incoming = incoming, None

    def _leap(self, hold_ticks: int) -> int:
        now = self._start + self.tick
        ticks = min(hold_ticks, self._terms.deadline_ticks - self.tick, self._next_sight(now) - now)
        if self._machine:
            ticks = min(ticks, self._machine.until - now, self._machine.warm_up or self.work_ticks)
        if self._incoming:
            ticks = min(ticks, self._incoming.until - now, max(1, self._incoming.warm_up - 1))
        return ticks

    def _next_sight(self, now: int) -> int:
        """The tick of the trace at which the policy may learn of a change without asking."""
        if self._how is Sights.ATTEMPTS:
            return FOREVER
        change = min(zone.until[now] for zone in self._zones)
        if self._how is Sights.KNOWN:
            return change
        if any(sight.up is not zone.up[now] for sight, zone in zip(self._sights, self._zones, strict=True)):
            change = now + 1
        return -(-change // FEED_TICKS) * FEED_TICKS

    def _bill(self, machine: _Machine, ticks: int) -> None:
        self._billed_ticks[machine.mode] += ticks
        self._spent += ticks * machine.price

    def _see_all(self) -> None:
        now = self._start + self.tick
        for sight, zone in zip(self._sights, self._zones, strict=True):
            sight.up, sight.since_tick, sight.seen_tick = zone.up[now], zone.since[now] - self._start, self.tick

    def _note(self, index: int | None, *, up: bool) -> None:
        if index is None:
            raise ValueError("the fallback was preempted; it never is")
        sight = self._sights[index]
        if sight.up is not up and self._how is not Sights.KNOWN:
            sight.since_tick = self.tick
        sight.up, sight.seen_tick = up, self.tick

    def outcome(self) -> Outcome:
        return Outcome(
            cost=self._spent,
            ticks=self.tick,
            work_ticks_missing=self.work_ticks,
            preemptions=self._preemptions,
            launches=self._launches,
            spot_ticks=self._billed_ticks[Mode.SPOT],
            fallback_ticks=self._billed_ticks[Mode.FALLBACK],
            egress_cost=self._egress_cost,
        )
