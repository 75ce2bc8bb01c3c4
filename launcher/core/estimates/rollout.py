"""One possible future of a run: the policy's own decisions, in a spot market that comes and goes.

Between two decisions a machine trains, is set up, is handed over or is taken. At a preemption the steps since the last
committed save are lost (or half a step, where the notice leaves time to save). A future comes from its weather and its
step time alone: there is no other luck in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal

from launcher.core.estimates.weather import Weather
from launcher.core.gravity import HOURS_PER_MONTH
from launcher.core.hazards import LIFE_HAZARD, cumulated
from launcher.core.policy.decision import Action, HandOver, Holding, Keep, Launch, Leave, Seen, Standing, Wait, decide
from launcher.core.policy.diary import Decide, Diary, Ending, Stay
from launcher.core.policy.market import PAUSE_HOURS, Market, Place
from launcher.core.policy.spot import learned_scale, pause_hours
from launcher.core.prices.supervision import AROUND_SECONDS
from launcher.core.prices.traffic import Charge

PARTS = (
    *("steps", "lost", "restarts", "setup", "saves", "idle", "fallback"),
    *("storage", "egress", "requests", "supervisor"),
)

ASK_HOURS = 1 / 60  # that a launch takes which is refused
_MOST_IDLE, _MORE_IDLE_PER_HOUR = 3_000, 10  # decisions without a machine, and per hour of work: then it never ends
_MOST_DECISIONS = 100_000  # ten years on the fallback take as many
_NOTICE_MARGIN_SECONDS = 10.0  # from a notice until the trainer knows of it, and for its last word
_HAIR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a future costs beyond places and their machines."""

    throughput_factor80: float  # the step time is within [t / f, t · f] in 80 of 100 cases
    idle_seconds: float  # billed after an attempt's end, until it is released
    closing_seconds: float  # what the supervisor keeps back to save and release in time
    retry_seconds: float  # until a place that had no capacity is asked again
    reads: float  # of the data
    checkpoint_gb: float
    kept: int
    storage_usd_per_gb_month: Decimal
    supervisor_usd_per_hour: Decimal = Decimal(0)  # of a machine that is hired for it


@dataclass(slots=True)
class Future:
    """What happened, by dollars and hours."""

    usd: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    hours: float = 0.0
    preemptions: int = 0
    restart_hours: float = 0.0
    fallback_hours: float = 0.0

    @property
    def total_usd(self) -> float:
        return sum(self.usd.values())

    def pay(self, charge: Charge, times: float = 1.0) -> None:
        """Bytes that were moved; the time that it took is part of what was done meanwhile."""
        self.usd["egress"] += times * float(charge.egress_usd)
        self.usd["requests"] += times * float(charge.requests_usd)


def roll(
    market: Market,
    weather: Weather,
    outlook: Outlook,
    *,
    factor: float = 1.0,
    first: Place | None = None,
    decide: Decide = decide,
    diary: Diary | None = None,
) -> Future:
    """The future under `decide`, with step times off by `factor`; the same values give the same future.

    `first`: where it begins, whatever the policy would choose. `diary` is told of every machine and decision.
    """
    run = _Run(market, weather, outlook, factor, decide, diary)
    if first:
        run.begin(first)
    while run.steps > _HAIR and run.goes_on():
        run.follow(run.decided())
    return run.ended()


class _Machine:
    """`until`: when it is taken, or its place closes; `done`: steps that it has done."""

    __slots__ = ("done", "is_fallback", "is_first", "place", "ready_at", "since", "until", "usd", "usd_per_hour")

    def __init__(self, place: Place, *, now: float, until: float, is_first: bool, is_fallback: bool) -> None:
        self.place, self.since, self.until = place, now, until
        self.ready_at = now + place.setup_hours
        self.is_first, self.is_fallback = is_first, is_fallback
        self.usd_per_hour = float(place.option.placement.usd_per_hour)
        self.done = self.usd = 0.0


class _Run:
    """The state of a future. Steps are those of the promise, more of them where the true ones take longer."""

    def __init__(  # all that a future comes from, and who is told of it
        self,
        market: Market,
        weather: Weather,
        outlook: Outlook,
        factor: float,
        decide: Decide,
        diary: Diary | None,
    ) -> None:
        self._market, self._weather, self._outlook = market, weather, outlook
        self._decide, self._diary = decide, diary
        self.future = Future()
        self.steps = self._in_all = market.steps * factor
        self._now = 0.0
        self._here: _Machine | None = None
        self._incoming: _Machine | None = None
        self._seen: dict[str, Seen] = {}
        self._scales: dict[str, float] = {}
        self._lives: dict[str, tuple[int, float]] = {}  # taken, and how many were to be expected
        self._homes: tuple[str | None, ...] = ()
        self._spent = 0.0
        self._decisions = self._idle_decisions = 0
        self._most_idle = _MOST_IDLE + _MORE_IDLE_PER_HOUR * self.steps * market.unit_hours

    def goes_on(self) -> bool:
        """Whether it is still worth a look."""
        return self._decisions < _MOST_DECISIONS and self._idle_decisions < self._most_idle

    def decided(self) -> Action:
        machine, now = self._here, self._now
        self._decisions += 1
        self._idle_decisions += machine is None
        here = None
        if machine is not None:
            here = Holding(machine.place, machine.since, machine.ready_at <= now + _HAIR, _unsaved_steps(machine))
        standing = Standing(
            self.steps + (here.ahead if here else 0.0),
            self._spent,
            here=here,
            is_joined=self._incoming is not None,
            homes=self._homes,
            seen=self._seen,
            scales=self._scales,
            in_all=self._in_all,
        )
        action = self._decide(standing, self._market, now)
        if self._diary:
            self._diary.decided(now, action)
        return action

    def follow(self, action: Action) -> None:
        match action:
            case Keep(until=until) | Wait(until=until):
                self._pass(until)
            case Launch(place=place):
                self._ask(place, overlaps=False)
            case HandOver(place=place, overlaps=overlaps):
                self._ask(place, overlaps=overlaps)
            case Leave():
                self._leave()

    def begin(self, place: Place) -> None:
        """Where it begins is no fallback."""
        self._ask(place, overlaps=False)
        if self._here:
            self._here.is_fallback = False

    def _ask(self, place: Place, *, overlaps: bool) -> None:
        now = self._now
        is_up, until = self._weather.spell(place, now) if place.is_spot else (True, math.inf)
        if not is_up:
            if self._diary:
                self._diary.refused(now, place)
            self._note_down(place)
            self._pass(now + ASK_HOURS)
            return
        self._seen.pop(place.key, None)
        is_fallback = not place.is_spot and bool(self._market.tiers)
        ends_at = min(until, now + place.usable_hours(now))
        is_first = self._here is None and not self._lives and not self._spent
        machine = _Machine(place, now=now, until=ends_at, is_first=is_first, is_fallback=is_fallback)
        machine.usd = self._market.move_usd(self._homes, place)
        self._pay("egress", machine.usd)
        if self._homes:
            restore = place.option.traffic.restore
            self.future.pay(restore)
            self._spent += float(restore.usd)
            machine.usd += float(restore.usd)
        if self._here is None:
            self._here = machine
        else:
            self._incoming = machine
            if not overlaps:
                self._change()
        if self._incoming or self._here.ready_at > self._now + _HAIR:
            self._pass(math.inf)

    def _pass(self, until: float) -> None:
        """Time goes by until then, or until something happens; while a machine is set up, only events count."""
        here, incoming = self._here, self._incoming
        if here is None:
            self._now = max(self._now, until)
            return
        ready_at = here.ready_at
        is_ready = ready_at <= self._now + _HAIR
        ends_at = max(self._now, ready_at) + self.steps * here.place.step_hours
        then = min(max(until, self._now) if is_ready else math.inf, here.until, ends_at if is_ready else ready_at)
        if incoming:
            then = min(then, incoming.until, incoming.ready_at)
        self._work(here, then)
        if incoming:
            self._spend("restarts", then - self._now, incoming)
        self._now = then
        if here.until <= then:
            self._lose(here)
        elif self.steps <= _HAIR:
            self._close(here)
        elif incoming and incoming.until <= then:
            self._note_down(incoming.place)
            self._tell(incoming, "preempted")
            self._incoming = None
        elif incoming and incoming.ready_at <= then:
            self._change()

    def _work(self, machine: _Machine, until: float) -> None:
        span = until - self._now
        if machine.ready_at > self._now + _HAIR:
            self._spend("setup" if machine.is_first else "restarts", span, machine)
            return
        place = machine.place
        steps = min(self.steps, span / place.step_hours)
        self.steps -= steps
        machine.done += steps
        saving = place.option.saving_share
        self._spend("steps", span / (1.0 + saving), machine)
        self._spend("saves", span * saving / (1.0 + saving), machine)
        if steps:
            self._homes = (place.home,)

    def _lose(self, machine: _Machine) -> None:
        """Taken, or closed at a known time: then it had saved before."""
        place, is_taken = machine.place, machine.place.is_spot
        lost = 0.0
        if is_taken:
            lost = _lost_steps(machine)
            self.future.preemptions += 1
            self._note_down(place)
        self.steps += lost
        usd = lost * place.option.step_seconds / 3600 * machine.usd_per_hour
        if not machine.is_fallback:
            self.future.usd["steps"] -= usd
            self.future.usd["lost"] += usd
        self._settle(machine, lost, taken=is_taken)
        self._tell(machine, "preempted" if is_taken else "closed", lost=lost)
        self._here, self._incoming = self._incoming, None
        if self._here is None:
            self._now += self._outlook.idle_seconds / 3600

    def _change(self) -> None:
        """The old machine saves and ends, and the new one takes over."""
        old, new = self._here, self._incoming
        assert old is not None
        assert new is not None
        pause = PAUSE_HOURS if new.ready_at <= self._now + _HAIR else old.place.durable_hours
        self._spend("saves", old.place.durable_hours, old)
        self._spend("idle", self._outlook.idle_seconds / 3600, old)
        self._spend("restarts", pause, new)
        self._settle(old, 0.0, taken=False)
        self._tell(old, "handed over", closing=old.place.durable_hours + self._outlook.idle_seconds / 3600)
        self._now = min(self._now + pause, new.until)
        self._here, self._incoming = new, None

    def ended(self) -> Future:
        """With what was paid by the hour; one that was given up has cost what it has, and takes for ever."""
        future, outlook = self.future, self._outlook
        months = self._now / HOURS_PER_MONTH
        future.usd["storage"] += outlook.checkpoint_gb * outlook.kept * months * float(outlook.storage_usd_per_gb_month)
        future.usd["supervisor"] += (self._now + AROUND_SECONDS / 3600) * float(outlook.supervisor_usd_per_hour)
        future.hours = self._now if self.steps <= _HAIR else math.inf
        return future

    def _leave(self) -> None:
        machine = self._here
        assert machine is not None
        self._close(machine)
        self._here = None

    def _close(self, machine: _Machine) -> None:
        """The last save is waited for."""
        hours = machine.place.durable_hours
        self._spend("saves", hours, machine)
        self._spend("idle", self._outlook.idle_seconds / 3600, machine)
        self._settle(machine, 0.0, taken=False)
        closing = hours + self._outlook.idle_seconds / 3600
        self._tell(machine, "finished" if self.steps <= _HAIR else "left", closing=closing)
        self._now += closing

    def _settle(self, machine: _Machine, lost: float, *, taken: bool) -> None:
        """Bytes that it has moved, and what its life has taught."""
        place, traffic, future = machine.place, machine.place.option.traffic, self.future
        reads = self._outlook.reads
        reads = reads if reads <= 1 else reads * (machine.done - lost) / self._in_all
        saves = machine.done * place.option.step_seconds / place.option.interval_seconds + (not taken)
        before = future.usd["egress"] + future.usd["requests"]
        future.pay(traffic.read, reads)
        future.pay(traffic.save, saves)
        moved = future.usd["egress"] + future.usd["requests"] - before
        machine.usd += moved
        self._spent += moved
        if machine.is_fallback:
            future.fallback_hours += self._now - machine.since
        if place.is_spot:
            count, expected = self._lives.get(place.key, (0, 0.0))
            expected += place.scale * cumulated(LIFE_HAZARD, self._now - machine.since)
            self._lives[place.key] = count + taken, expected
            self._scales[place.key] = learned_scale(place.scale, taken=count + taken, expected=expected)

    def _tell(self, machine: _Machine, ending: Ending, *, lost: float = 0.0, closing: float = 0.0) -> None:
        """Of a machine's whole life, at its end. `lost` counts steps, `closing` hours that are billed from now on."""
        if self._diary is None:
            return
        stay = Stay(
            place=machine.place,
            since=machine.since,
            ready_at=machine.ready_at,
            until=self._now + closing,
            closing_hours=closing,
            lost_hours=lost * machine.place.step_hours,
            ending=ending,
            usd=machine.usd,
        )
        self._diary.stays.append(stay)

    def _note_down(self, place: Place) -> None:
        known = self._seen.get(place.key)
        since = known.since if known and not known.is_up else self._now
        again_at = self._now + pause_hours(self._outlook.retry_seconds / 3600, self._now - since)
        self._seen[place.key] = Seen(is_up=False, since=since, again_at=again_at)

    def _spend(self, part: str, hours: float, machine: _Machine) -> None:
        """Billed time."""
        usd = hours * machine.usd_per_hour
        self.future.usd["fallback" if machine.is_fallback else part] += usd
        machine.usd += usd
        self._spent += usd
        if part == "restarts":
            self.future.restart_hours += hours

    def _pay(self, part: str, usd: float) -> None:
        self.future.usd[part] += usd
        self._spent += usd


def _lost_steps(machine: _Machine) -> float:
    """Half a step where the notice leaves time to finish the step and save, else all that were not saved."""
    option = machine.place.option
    needed = option.step_seconds + option.durable_seconds + _NOTICE_MARGIN_SECONDS
    if option.placement.offer.notice_seconds >= needed:
        return min(machine.done, 0.5)
    return _unsaved_steps(machine)


def _unsaved_steps(machine: _Machine) -> float:
    """Since the newest save that is committed: one that is still being written saves nothing yet."""
    place, trained = machine.place, machine.done * machine.place.step_hours
    if place.interval_hours == math.inf:
        return machine.done
    written = trained - max(0.0, place.durable_hours - place.option.save_seconds / 3600)
    saved = max(0.0, written // place.interval_hours) * place.interval_hours
    return max(0.0, machine.done - saved / place.step_hours)
