"""A small world in which a run is driven by `decide` alone, and every place is as unkind as its nature says.

Instants are hours since the submit, work is counted in steps. A machine is asked for, granted, set up, and then trains;
it saves every interval, a save counts once it is durable, and what was not saved is lost with the machine. The run
looks at the world every `poll_hours`, or, where that is None, whenever something happens and when a decision said so.
Capacity that stays keeps the one promise on which deadlines rest: whoever asks for it again and again has it no later
than `delay_hours` after the first asking.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from benchmarks.policy.hosts import HAIR, Hosts, Machine
from benchmarks.policy.natures import Case, is_up, turns_at
from launcher.core.policy.decision import Action, HandOver, Holding, Keep, Launch, Leave, Seen, Standing, Wait, decide
from launcher.core.policy.guards import spare_hours
from launcher.core.policy.market import Place

MOST_DECISIONS = 20_000
FEED_HOURS = 0.2  # until a feed contradicts a refusal


End = Literal["finished", "broke", "unfinished", "too many decisions", "until is not after now", "asks on and on"]


class Story(NamedTuple):
    """How a run went."""

    end: End
    ended_at: float  # hours; infinite: never
    spent: float
    closing_usd: float  # of it for the ends of the machines that a broke run had
    num_decisions: int
    log: tuple[str, ...]


class World:
    """One run; `story` makes it happen."""

    def __init__(self, case: Case, *, is_told: bool = False) -> None:
        self.case, self.market = case, case.market
        self.now = 0.0
        self.steps = float(case.market.steps)  # not saved when the present machine began
        self.spent = 0.0
        self.here: Machine | None = None
        self.incoming: Machine | None = None
        self.overlaps = True
        self.seen: dict[str, Seen] = {}
        self.homes: tuple[str | None, ...] = ()
        self.hosts = Hosts(case)
        self.busy_until = 0.0  # with a release
        self.until = 0.0
        self.num_decisions = 0
        self.log: list[str] | None = [] if is_told else None
        self.closing_usd = 0.0

    def story(self) -> Story:
        last = 2 * self.market.deadline + 5
        while self.now <= last:
            end = self._turn()
            if end:
                return self._told(end, self._finish_at() if end == "finished" else math.inf)
            self.now = self._next_look()
        return self._told("unfinished", math.inf)

    def _told(self, end: End, at: float) -> Story:
        return Story(end, at, self.spent, self.closing_usd, self.num_decisions, tuple(self.log or ()))

    # what happens between two looks

    def _finish_at(self) -> float:
        """When the last save is durable, if nothing comes in between."""
        here = self.here
        if here is None or here.begun_at == math.inf:
            return math.inf
        return here.begun_at + self.steps * here.place.step_hours + here.place.durable_hours

    def _next_look(self) -> float:
        poll = self.case.poll_hours
        if poll is not None:
            return (math.floor(self.now / poll + 1e-6) + 1) * poll
        return max(min(self._events()), self.now + 1e-9)

    def _events(self) -> list[float]:
        now, case = self.now, self.case
        found = [max(self.until, now + HAIR), self.busy_until, case.later_at, self._finish_at(), self._broke_at()]
        for machine in (self.here, self.incoming):
            if machine:
                place, since = machine.place, machine.granted_at
                given_up = since + case.give_up_hours if machine.hangs else math.inf
                closing_at = machine.closes_at - place.closing_hours
                found += [since, machine.ready_at, machine.dies_at, machine.ends_at, closing_at, given_up]
        if self.market.has_feed:
            found += [turns_at(case.habits[p.key], now) for p in self.market.spot]
        return [at for at in found if at > now + HAIR / 100]

    def _broke_at(self) -> float:
        if self.case.left == math.inf:
            return math.inf
        rate, kept = self._rate()
        return self.now + max(HAIR, (self.case.left - self.spent - kept) / rate) if rate else math.inf

    def _rate(self) -> tuple[float, float]:
        """Dollars an hour now, and what the ends of the machines take."""
        machines = [m for m in (self.here, self.incoming) if m and m.granted_at <= self.now]
        rate = sum(m.place.usd_per_hour for m in machines)
        return rate, sum(m.place.usd_per_hour * m.place.closing_hours for m in machines)

    # one look

    def _turn(self) -> End | None:
        """What the run finds, and then does; not `None`: how it ended."""
        self._bill()
        self._change_prices()
        if self._finish_at() <= self.now + HAIR and self._lives_to_finish():
            if self.incoming:
                self._free(self.incoming)
            return "finished"
        self._find()
        if self._is_broke():
            return "broke"
        self._conduct()
        if self.now >= self.busy_until - HAIR and not (self.here and self.here.stops_at < math.inf):
            return self._decide()
        self.until = math.inf
        return None

    def _lives_to_finish(self) -> bool:
        assert self.here
        return self.here.dies_at >= self._finish_at()

    def _bill(self) -> None:
        """The end of the last machine belongs to any run: what follows its last save is left out."""
        finish_at = self._finish_at()
        for machine in (self.here, self.incoming):
            if machine:
                until = min(self.now, machine.dies_at, finish_at if machine is self.here else math.inf)
                self.spent += max(0.0, until - machine.billed_to) * machine.place.usd_per_hour
                machine.billed_to = max(until, machine.billed_to)

    def _find(self) -> None:
        """Machines that were lost or given up, and ends that are done."""
        case, now = self.case, self.now
        incoming, here = self.incoming, self.here
        if incoming and self._is_lost(incoming):
            self.incoming = None
        if here is None:
            return
        if now >= here.ends_at - HAIR and here.dies_at >= here.ends_at:
            self._tell("%s has ended", here.key)
            self._free(here)
            self._keep_steps(here, here.ends_at)
            self._take_over(case.release_hours)
        elif self._is_lost(here):
            self._keep_steps(here, min(now, here.dies_at))
            self._take_over(0.0)

    def _is_lost(self, machine: Machine) -> bool:
        now = self.now
        if machine.dies_at <= now + HAIR:
            if machine.dies_at >= machine.granted_at:
                self._tell("%s is lost", machine.key)
        elif machine.hangs and now - machine.granted_at >= self.case.give_up_hours - HAIR:
            self._tell("%s is given up", machine.key)
            self._free(machine)
        else:
            return False
        self._note(machine.key, is_up=False)
        return True

    def _free(self, machine: Machine) -> None:
        if machine.granted_at <= self.now:
            self.spent += self.case.release_hours * machine.place.usd_per_hour

    def _keep_steps(self, machine: Machine, at: float) -> None:
        saved = min(machine.saved(at), self.steps)
        if saved > 0:
            self.steps -= saved
            self.homes = (machine.place.home,)

    def _take_over(self, release_hours: float) -> None:
        self.here, self.incoming = self.incoming, None
        if self.here:
            self.here.begun_at = max(self.now, self.here.ready_at)
            return
        self.busy_until = self.now + release_hours

    def _is_broke(self) -> bool:
        if self.case.left == math.inf:
            return False
        rate, kept = self._rate()
        if not rate or self.spent + kept < self.case.left - HAIR:
            return False
        incoming = self.incoming
        if incoming and self.here and self.here.stops_at == math.inf:
            self._drop(incoming, "what is left does not pay for %s too")
            return self._is_broke()
        self.closing_usd = kept
        self.spent += kept
        return True

    def _change_prices(self) -> None:
        case = self.case
        if case.market_later is None or self.now < case.later_at or self.market is case.market_later:
            return
        self.market = case.market_later
        places = {place.key: place for place in self.market.places}
        for machine in (self.here, self.incoming):
            if machine:
                machine.place = places[machine.key]
        self._tell("prices are others now")

    def _conduct(self) -> None:
        """What needs no decision: a place that closes, and the two ends of a handover."""
        here, incoming, now = self.here, self.incoming, self.now
        if here is None or here.stops_at < math.inf:
            return
        if incoming and incoming.place.is_spot and here.begun_at <= now and self._is_short(here):
            self._drop(incoming, "the slack does not bear %s any more")
            incoming = None
        closes = here.closes_at - now < here.place.closing_hours + HAIR
        if closes or (incoming and now >= (incoming.ready_at - HAIR if self.overlaps else incoming.granted_at)):
            self._end(here)

    def _is_short(self, here: Machine) -> bool:
        market, run = self.market, self.standing()
        spare = [spare_hours(p, run.steps, market, self.now) for p in market.firm]
        needed = market.reserve_hours + here.place.closing_hours
        return max((hours for hours in spare if hours is not None), default=math.inf) < needed

    def _drop(self, incoming: Machine, why: str) -> None:
        self._tell(why, incoming.key)
        self._free(incoming)
        self._note(incoming.key, is_up=False)
        self.incoming = None

    def _end(self, here: Machine) -> None:
        """After a step and a save; one that does not train is released at once."""
        self._tell("%s is asked to end", here.key)
        if here.begun_at > self.now:
            self._free(here)
            self._take_over(self.case.release_hours)
            return
        here.stops_at = self.now + here.place.step_hours
        here.ends_at = here.stops_at + here.place.durable_hours
        self.hosts.leave_early(here, here.stops_at)

    # deciding

    def _decide(self) -> End | None:
        for _ in range(len(self.market.places) + 3):
            self.num_decisions += 1
            if self.num_decisions > MOST_DECISIONS:
                return "too many decisions"
            run = self.standing()
            action = decide(run, self.market, self.now)
            if self.log is not None:
                self._say(action)
            if isinstance(action, Keep | Wait) and action.until <= self.now:
                return "until is not after now"
            is_done = self._follow(action)
            if isinstance(action, Keep) and self.here:
                self.hosts.plot(self.here, run, self.market, self.now)
            if is_done or (isinstance(action, Launch | HandOver) and not self._asks_on(action.place)):
                return None
        return "asks on and on"

    def standing(self) -> Standing:
        here, now, steps, holding = self.here, self.now, self.steps, None
        if here:
            saved = min(here.saved(now), steps)
            trains = here.begun_at <= now + HAIR
            ahead = max(0.0, min(here.done(now), self.steps) - saved)
            holding = Holding(here.place, since=min(now, here.granted_at), trains=trains, ahead=ahead)
            steps -= saved
        if self.market.has_feed:
            self._read_feed()
        return Standing(
            steps=steps,
            spent=self.spent,
            left=self.case.left - self.spent,
            here=holding,
            is_joined=self.incoming is not None,
            homes=self.homes,
            seen=self.seen,
            leased=frozenset(self.hosts.leased),
        )

    def _asks_on(self, place: Place) -> bool:
        """At the same look: where a machine was granted, or looks come with events, or the case wants it so."""
        return self.case.poll_hours is None or self.case.asks_on or self._is_up(place)

    def _follow(self, action: Action) -> bool:
        """Whether nothing else is to be decided before the next look."""
        self.until = math.inf
        match action:
            case Launch(place=place) | HandOver(place=place):
                self._ask(place, overlaps=not isinstance(action, HandOver) or action.overlaps)
                return False
            case Leave():
                assert self.here
                self._end(self.here)
            case Keep(until=until):
                self.until = until
            case Wait(until=until):
                self.until = until
        return True

    def _ask(self, place: Place, *, overlaps: bool) -> None:
        assert place in self.market.places
        assert self.here is None or place.key != self.here.key
        machine = self.hosts.granted(place, self.now)
        if machine is None:
            self._note(place.key, is_up=False)
            self._tell("%s refuses", place.key)
            return
        self.seen[place.key] = Seen(is_up=True, since=self.seen[place.key].since if self._is_up(place) else self.now)
        self.spent += place.arrival_usd + self.market.move_usd(self.homes, place)
        if self.here is None:
            self.here = machine
            machine.begun_at = machine.ready_at
            return
        self.incoming, self.overlaps = machine, overlaps
        self.hosts.leave_early(self.here, self.now)

    # what is known of places

    def _is_up(self, place: Place) -> bool:
        known = self.seen.get(place.key)
        return known is not None and known.is_up

    def _note(self, key: str, *, is_up: bool) -> None:
        known, now = self.seen.get(key), self.now
        since = known.since if known and known.is_up is is_up else now
        self.seen[key] = Seen(is_up=is_up, since=since, again_at=now + self.case.retry_hours)

    def _read_feed(self) -> None:
        """It says what a place's nature is, not what it does to machines; a refusal is believed for a while."""
        for place in self.market.spot:
            if not place.is_spot:
                continue
            up, known = is_up(self.case.habits[place.key], self.now), self.seen.get(place.key)
            if known is None:
                self.seen[place.key] = Seen(is_up=up, since=self.now)
            elif up is not known.is_up and (not up or self.now >= known.since + FEED_HOURS):
                self._note(place.key, is_up=up)

    def _tell(self, what: str, *values: object) -> None:
        if self.log is not None:
            self.log.append(f"{self.now:9.5f} h ${self.spent:8.4f} {self.steps:9.2f} steps: {what % values}")

    def _say(self, action: Action) -> None:
        run = self.standing()
        here = "idle" if run.here is None else f"{run.here.place.key} {'trains' if run.here.trains else 'is set up'}"
        to = action.place.key if isinstance(action, Launch | HandOver) else getattr(action, "until", "")
        self._tell("%s, %.2f steps: %s %s, %s", here, run.steps, type(action).__name__, to, getattr(action, "why", ""))
