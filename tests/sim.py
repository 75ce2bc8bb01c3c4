"""A market, its machines and their trainers in simulated time, behind the supervisor's ports.

A fake here is never kinder than reality: an effect outlives the caller that died; a killed trainer loses what it
had not committed; a machine runs, and bills, until somebody stops it or the market takes it. The bill that a test
compares with the ledger's is kept here on its own, from the market's prices and the machines' lives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from launcher.core.offers import Placement
from launcher.core.prices.options import Option, Rules
from launcher.core.runs.checkpoints import Replica
from launcher.core.runs.events import Entry, Event, RunSubmitted, StopRequested, from_json, to_json
from launcher.core.runs.journal import JournalLine
from launcher.core.runs.machine import LaunchRequest, Phase
from launcher.core.runs.state import Attempt, RunState, attempt_of, fold, job_name
from launcher.errors import BackendError, LaunchRefused, LedgerConflict
from launcher.supervisor import Supervisor
from tests.builders import RUN, T0
from tests.machines import Fate, Machine, Saved, Work

MOST_SLEEPS = 3_000


class SimClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, now: datetime = T0) -> None:
        self._now = now
        self._sleeps = 0

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        assert 0 <= seconds < math.inf, f"asked to sleep for {seconds}"
        self._sleeps += 1
        assert self._sleeps < MOST_SLEEPS, "the run does not come to an end"
        self._now += timedelta(seconds=seconds)


class MemoryLedger:
    """The ledger's promises, in a dict; events travel as JSON, as they do in a database."""

    def __init__(self) -> None:
        self._entries: dict[str, list[Entry]] = {}

    def append(self, run_id: str, events: Sequence[Event], *, after_seq: int, at: datetime) -> tuple[Entry, ...]:
        known = self._entries.get(run_id, [])
        if len(known) != after_seq:
            raise LedgerConflict(f"run {run_id} is at entry {len(known)}, not {after_seq}")
        at = max(at, known[-1].at) if known else at
        numbered = enumerate(events, start=after_seq + 1)
        new = tuple(Entry(run_id=run_id, seq=n, at=at, event=from_json(to_json(event))) for n, event in numbered)
        if new:
            self._entries[run_id] = [*known, *new]
        return new

    def read(self, run_id: str, *, after_seq: int = 0) -> tuple[Entry, ...]:
        return tuple(self._entries.get(run_id, [])[after_seq:])

    def run_ids(self) -> tuple[str, ...]:
        return tuple(self._entries)


PriceBook = Mapping[str, Sequence[tuple[float, Decimal]]]
"""By an offer's key: (seconds behind T0, USD per hour of all nodes from then on), in order."""


@dataclass(slots=True, kw_only=True)
class FakeBackend:
    """Machines of one market. `fate` says what becomes of a launch; `deaf` are times (seconds behind T0) when every
    call fails, and a launch fails after it has taken effect. One that `forgets` starts a released job anew;
    one that is `blind` names no job, so that nothing can be swept."""

    clock: SimClock
    work: Work
    fate: Callable[[LaunchRequest], Fate]
    prices: PriceBook = field(default_factory=dict)
    deaf: Sequence[tuple[float, float]] = ()
    stop_seconds: float = 0.0
    forgets: bool = False
    blind: bool = False
    machines: dict[str, Machine] = field(default_factory=dict)
    retired: list[Machine] = field(default_factory=list)
    folders: dict[str, list[Saved]] = field(default_factory=dict)
    go_at: dict[str, datetime] = field(default_factory=dict)
    told_usd: dict[str, Decimal] = field(default_factory=dict)
    launch_calls: dict[str, int] = field(default_factory=dict)
    grants: list[str] = field(default_factory=list)
    _granted_later: dict[str, tuple[datetime, LaunchRequest, Fate]] = field(default_factory=dict)
    _stopped: set[str] = field(default_factory=set)

    def launch(self, request: LaunchRequest) -> None:
        self.advance()
        job = request.job
        calls = self.launch_calls[job] = self.launch_calls.get(job, 0) + 1
        if job in self._stopped:
            self._answer()
            raise LaunchRefused("unavailable", f"{job} was released")
        if not self._has_machine(job) and job not in self._granted_later:
            fate = self.fate(request)
            if fate.refusal and calls <= fate.refused_calls:
                self._answer()
                raise LaunchRefused(fate.refusal, f"{request.placement.offer.where} has none")
            if fate.grant_seconds < math.inf:
                at = self.clock.now() + timedelta(seconds=fate.grant_seconds)
                self._granted_later[job] = (at, request, fate)
                self.advance()
        self._answer()

    def phase(self, job: str) -> Phase:
        self.advance()
        self._answer()
        machine = self.machines.get(job)
        if machine is None or machine.stopped_at is not None:
            return Phase(kind="absent")
        now = self.clock.now()
        if ended_at := machine.ended_at(now):
            return Phase(kind="gone", started_at=machine.granted_at, gone_at=ended_at)
        if machine.exit_code is not None:
            return Phase(kind="exited", exit_code=machine.exit_code, started_at=machine.granted_at)
        kind: Literal["running", "starting"] = "running" if machine.running_at <= now else "starting"
        return Phase(kind=kind, started_at=machine.granted_at)

    def stop(self, job: str) -> None:
        self._answer()
        self.clock.sleep(self.stop_seconds)
        self.advance()
        if not self.forgets:
            self._stopped.add(job)
        self._granted_later.pop(job, None)
        machine = self.machines.get(job)
        if machine is not None and machine.stopped_at is None:
            machine.stopped_at = self.clock.now()

    def names(self, run_id: str) -> tuple[str, ...]:
        self.advance()
        self._answer()
        ours = sorted(job for job in self.running() if job.startswith(f"{run_id}-"))
        return () if self.blind else tuple(ours)

    def running(self) -> list[str]:
        """Jobs whose machines are billed now, whether or not anybody may ask."""
        return [job for job, machine in self.machines.items() if machine.ended_at(self.clock.now()) is None]

    def billed_usd(self, now: datetime) -> Decimal:
        """The market's own account: every machine, each second at the market's price of that second."""
        machines = [*self.machines.values(), *self.retired]
        return sum((self._machine_usd(machine, now) for machine in machines), Decimal(0))

    def price_usd_per_hour(self, placement: Placement, at: datetime) -> Decimal:
        book = self.prices.get(placement.offer.key, ())
        return next((p for since, p in reversed(book) if self._at(since) <= at), placement.usd_per_hour)

    def advance(self) -> None:
        """Bring every machine to the present."""
        now = self.clock.now()
        for job, (at, request, fate) in sorted(self._granted_later.items()):
            if at <= now:
                del self._granted_later[job]
                self._grant(request, fate, at)
        for job in sorted(self.machines):
            self.machines[job].advance(now)

    def _has_machine(self, job: str) -> bool:
        return job in self.machines and not (self.forgets and self.machines[job].stopped_at)

    def _grant(self, request: LaunchRequest, fate: Fate, at: datetime) -> None:
        self.grants.append(request.job)
        if request.job in self.machines:
            self.retired.append(self.machines[request.job])
        self.machines[request.job] = Machine(
            job=request.job,
            placement=request.placement,
            fate=fate,
            work=self.work,
            folder=self.folders.setdefault(request.env.get("LAUNCH_RUN_URI", ""), []),
            go_at=self.go_at,
            waits="LAUNCH_RELIEVES" in request.env,
            granted_at=at,
        )

    def _answer(self) -> None:
        seconds = (self.clock.now() - T0).total_seconds()
        if any(since <= seconds < until for since, until in self.deaf):
            raise BackendError("the backend did not answer")

    def _machine_usd(self, machine: Machine, now: datetime) -> Decimal:
        end = machine.ended_at(now) or now
        changes = [self._at(since) for since, _ in self.prices.get(machine.placement.offer.key, ())]
        bounds = sorted({machine.granted_at, end, *(at for at in changes if machine.granted_at < at < end)})
        spans = pairwise(bounds)
        return sum(
            (
                Decimal((until - since) // timedelta(microseconds=1))
                / 3_600_000_000
                * self.price_usd_per_hour(machine.placement, since)
                for since, until in spans
            ),
            Decimal(0),
        )

    def _at(self, seconds: float) -> datetime:
        return T0 + timedelta(seconds=seconds)


@dataclass(slots=True, kw_only=True)
class FakeJournal:
    """The run folder of every attempt; it is deaf when the backend is."""

    backend: FakeBackend
    run_id: str = RUN

    def read(self, attempt: int, *, after_segment: int) -> tuple[JournalLine, ...]:
        self.backend.advance()
        self.backend._answer()
        machine = self.backend.machines.get(job_name(self.run_id, attempt))
        return tuple(line for line in machine.lines if line.segment > after_segment) if machine else ()

    def request_stop(self, attempt: int) -> None:
        """There is one such file: who had not seen the last one will never see it."""
        self.backend.advance()
        self.backend._answer()
        now = self.backend.clock.now()
        for job, machine in self.backend.machines.items():
            if attempt_of(job) == attempt:
                machine.asked_at = machine.asked_at or now
            elif machine.asked_at == now:
                machine.asked_at = None

    def request_checkpoint(self) -> None:
        """Nobody in these tests asks for one."""

    def is_ready(self, attempt: int) -> bool:
        self.backend.advance()
        self.backend._answer()
        machine = self.backend.machines.get(job_name(self.run_id, attempt))
        return machine is not None and machine.ready_at is not None

    def hand_over(self, attempt: int, *, spent_usd: Decimal) -> None:
        self.backend.advance()
        self.backend._answer()
        job = job_name(self.run_id, attempt)
        self.backend.go_at.setdefault(job, self.backend.clock.now())
        self.backend.told_usd.setdefault(job, spent_usd)


@dataclass(slots=True, kw_only=True)
class FakeFolders:
    """Run folders: one for all regions, or one beside each; what was brought from which to which."""

    backend: FakeBackend
    is_regional: bool = False
    is_newest_damaged: bool = False
    brought: list[tuple[str, str]] = field(default_factory=list)

    def beside(self, state: RunState, option: Option) -> str:
        uri = state.submitted.run_uri
        return f"{uri}/{option.placement.offer.region}/{state.run_id}" if self.is_regional else uri

    def replicate(self, old: str, new: str) -> Replica | None:
        self.backend.advance()
        self.brought.append((old, new))
        there = sorted(self.backend.folders.get(old, []), key=lambda saved: saved.step)
        whole = there[:-1] if self.is_newest_damaged else there
        if not whole:
            return None
        here = self.backend.folders.setdefault(new, [])
        size = self.backend.work.checkpoint_bytes
        copied = 0 if whole[-1] in here else size
        here.append(whole[-1])
        return Replica(name=whole[-1].name, bytes=size, copied_bytes=copied)


@dataclass(frozen=True, kw_only=True)
class Remembering(Supervisor):
    """Folds only what is new, as `fold` may be used: hundreds of looks at hundreds of entries take too long."""

    known: dict[str, RunState] = field(default_factory=dict)

    def _state(self) -> RunState:
        before = self.known.get(self.run_id)
        after = fold(before, self.ledger.read(self.run_id, after_seq=before.seq if before else 0))
        assert after is not None
        self.known[self.run_id] = after
        return after


@dataclass(slots=True, kw_only=True)
class Sim:
    """One submitted run and the world it meets."""

    places: Sequence[Option]
    submit: RunSubmitted
    clock: SimClock
    ledger: MemoryLedger
    backend: FakeBackend
    journal: FakeJournal
    rules: Rules
    folders: FakeFolders
    appears: Mapping[str, float] = field(default_factory=dict)  # by an offer's key: the second at which it is there

    def options(self, _state: RunState, now: datetime) -> tuple[Option, ...]:
        """The places at the market's prices of `now`."""
        seconds = (now - T0).total_seconds()
        there = [place for place in self.places if self.appears.get(place.placement.offer.key, 0.0) <= seconds]
        return tuple(replace(place, placement=self._priced(place.placement, now)) for place in there)

    def request(self, state: RunState, attempt: Attempt) -> LaunchRequest:
        relieves = {} if attempt.relieves is None else {"LAUNCH_RELIEVES": str(attempt.relieves)}
        return LaunchRequest(
            job=job_name(state.run_id, attempt.number),
            placement=attempt.placement,
            setup=None,
            run=state.spec.run,
            workdir="/home/ada",
            env={"LAUNCH_RUN_URI": attempt.run_uri or state.submitted.run_uri} | relieves,
        )

    def supervisor(
        self,
        wrap: Callable[[str, object], object] = lambda _name, port: port,
        *,
        kind: type[Supervisor] = Supervisor,
    ) -> Supervisor:
        """A supervisor as a fresh process would make it; `wrap(name, port)` may put something before each port."""
        return kind(
            run_id=RUN,
            ledger=wrap("ledger", self.ledger),  # type: ignore[arg-type]  # wrapped ports keep their protocol
            backend=wrap("backend", self.backend),  # type: ignore[arg-type]
            journal=lambda _uri: wrap("journal", self.journal),  # type: ignore[return-value]
            replicate=wrap("folders", self.folders).replicate,  # type: ignore[attr-defined]
            run_uri=self.folders.beside,
            clock=wrap("clock", self.clock),  # type: ignore[arg-type]
            rules=self.rules,
            options=self.options,
            request=self.request,
        )

    def ask_to_stop(self) -> None:
        """What `launch stop` does."""
        self.ledger.append(RUN, [StopRequested(by="ada")], after_seq=self.state().seq, at=self.clock.now())

    def state(self) -> RunState:
        state = fold(None, self.ledger.read(RUN))
        assert state is not None
        return state

    def events(self, kind: type[Event]) -> list[Event]:
        return [entry.event for entry in self.ledger.read(RUN) if isinstance(entry.event, kind)]

    def _priced(self, placement: Placement, now: datetime) -> Placement:
        usd_per_hour = self.backend.price_usd_per_hour(placement, now) / placement.nodes
        return replace(placement, price=replace(placement.price, usd_per_hour=usd_per_hour))


def a_sim(
    *,
    places: Sequence[Option],
    submit: RunSubmitted,
    fate: Callable[[LaunchRequest], Fate] | Mapping[int, Fate],
    rules: Rules | None = None,
    work: Work | None = None,
    prices: PriceBook | None = None,
    deaf: Sequence[tuple[float, float]] = (),
    stop_seconds: float = 0.0,
) -> Sim:
    """A submitted run at T0; `fate` by request, or by the number of the attempt (others live for ever)."""
    clock, ledger = SimClock(), MemoryLedger()
    spec_steps = submit.spec["workload"]["steps"]
    work = work or Work(steps=spec_steps, step_seconds=10, setup_seconds=60, save_seconds=5, every_steps=20)
    scripted = fate if callable(fate) else lambda request: fate.get(attempt_of(request.job), Fate())
    backend = FakeBackend(
        clock=clock, work=work, fate=scripted, prices=prices or {}, deaf=deaf, stop_seconds=stop_seconds
    )
    ledger.append(RUN, [submit], after_seq=0, at=clock.now())
    return Sim(
        places=places,
        submit=submit,
        clock=clock,
        ledger=ledger,
        backend=backend,
        journal=FakeJournal(backend=backend),
        folders=FakeFolders(backend=backend),
        rules=rules or Rules(),
    )
