"""Which adapter stands behind which port; the only place that knows them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.adapters.settings import Settings
from launcher.adapters.system_clock import SystemClock
from launcher.core.state import Attempt, RunState, fold, job_name
from launcher.errors import InputError, NoSuchRun, NothingFeasible, Problem

if TYPE_CHECKING:
    from filelock import FileLock

    from launcher.adapters.local_backend import LocalBackend
    from launcher.adapters.local_market import Market
    from launcher.core.gpus import GpuCatalog
    from launcher.core.offers import Offer, Price, Refusal
    from launcher.core.planner import Book
    from launcher.core.policy import Option, Rules
    from launcher.core.pricing import Terms
    from launcher.core.spec import RunSpec
    from launcher.core.workload import Measured
    from launcher.ports import Journal, LaunchRequest, Ledger, PriceSource
    from launcher.supervisor import Supervisor

_PRICING = Path("pricing.yaml")


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Everything one command needs, made when it is first asked for."""

    settings: Settings

    @cached_property
    def ledger(self) -> Ledger:
        from launcher.adapters.sql_ledger import SqlLedger

        return SqlLedger(self.settings.ledger_url)

    @cached_property
    def catalog(self) -> GpuCatalog:
        from launcher.adapters.snapshot_prices import load_catalog

        return load_catalog()

    @cached_property
    def terms(self) -> Terms:
        """pricing.yaml: the one that the settings name, else the one in this folder, else no terms at all."""
        from launcher.adapters.yaml_input import load
        from launcher.core.pricing import Terms

        return load(self.pricing, Terms) if self.pricing else Terms()

    @cached_property
    def pricing(self) -> Path | None:
        return self.settings.pricing or (_PRICING.absolute() if _PRICING.exists() else None)

    def of(self, state: RunState) -> Wiring:
        """As this, with the pricing.yaml under which the run was submitted."""
        path = state.submitted.pricing
        return replace(self, settings=self.settings.model_copy(update={"pricing": Path(path) if path else None}))

    def clock(self, spec: RunSpec) -> SystemClock:
        """The time of a run that would begin now: the wall clock, or a simulated market's."""
        return SystemClock(scale=spec.market.time_scale if spec.market else 1.0)

    def run_clock(self, state: RunState) -> SystemClock:
        """The run's own time, which began with its submit and never falls behind its newest entry."""
        return SystemClock(epoch=state.submitted_at, scale=state.submitted.time_scale, not_before=state.at)

    def book(self, spec: RunSpec, clock: SystemClock) -> Book:
        """Offers and terms as of now; of a simulated market alone, where the run has one."""
        from launcher.adapters.snapshot_prices import load_tariffs
        from launcher.core.planner import Book

        return Book(
            offers=self.prices(spec, clock).offers(clock.now()),
            terms=self.terms,
            tariffs=load_tariffs(),
            catalog=self.catalog,
        )

    def prices(self, spec: RunSpec, clock: SystemClock) -> PriceSource:
        market = self.market(spec)
        if market is None:
            return _PriceBook(terms=self.terms, catalog=self.catalog)
        from launcher.adapters.local_market import MarketPrices

        return MarketPrices(market, clock)

    def market(self, spec: RunSpec) -> Market | None:
        """The simulated market that the run asks for."""
        if spec.market is None:
            return None
        from launcher.adapters.local_market import draw_market, load_market

        if spec.market.file is not None:
            return load_market(Path(spec.market.file))
        assert spec.market.seed is not None
        offers = _PriceBook(terms=self.terms, catalog=self.catalog).offers(SystemClock().now())
        return draw_market((o for o in offers if o.gpu in spec.gpus), seed=spec.market.seed)

    def measured(self, spec: RunSpec) -> Measured:
        """What the ledger's earlier runs of the same workload showed."""
        from launcher.core.history import measured

        return measured(spec, self.states())

    def rules(self, spec: RunSpec) -> Rules:
        """Waiting times; where time is scaled, none is shorter than this machine needs to act.

        Looking at one's own machine costs nothing, so that is done more often.
        """
        from launcher.core.policy import Rules
        from launcher.core.pricing import LOCAL

        scale = spec.market.time_scale if spec.market else 1.0
        is_local = spec.market is not None or spec.providers == [LOCAL]
        return Rules(
            poll_seconds=max(min(self.settings.poll_seconds, 2.0 if is_local else math.inf), 0.5 * scale),
            release_seconds=max(30.0, 0.5 * scale),
            grace_seconds=max(300.0, 30.0 * scale),
            silence_seconds=max(600.0, 60.0 * scale),
            launch_seconds=max(1200.0, 60.0 * scale),
            fallback_delay_seconds=max(60.0, 5.0 * scale) if is_local else self.settings.fallback_delay_seconds,
        )

    def states(self) -> tuple[RunState, ...]:
        """Every run, oldest first."""
        if not self.settings.has_ledger:
            return ()
        folded = (fold(None, self.ledger.read(run_id)) for run_id in self.ledger.run_ids())
        return tuple(state for state in folded if state is not None)

    def state(self, run_id: str) -> RunState:
        """Raises: NoSuchRun: the ledger does not know it."""
        state = fold(None, self.ledger.read(run_id))
        if state is None:
            raise NoSuchRun(f"no run {run_id} in the ledger; `launch status` lists them")
        return state

    def backend(self, state: RunState) -> LocalBackend:
        from launcher.adapters.local_backend import LocalBackend

        return LocalBackend(self.machines, clock=self.run_clock(state), market=self.market(state.spec))

    @property
    def machines(self) -> Path:
        return self.settings.state_folder / "machines"

    def journal(self, state: RunState) -> Journal:
        from launcher.adapters.fsspec_journal import FsspecJournal

        return FsspecJournal(state.submitted.run_uri, clock=self.run_clock(state))

    def run_uri(self, spec: RunSpec, run_id: str) -> str:
        """Where the run's folder will be: under `checkpoint.uri`, the settings' `runs_uri`, or the state folder."""
        parent = spec.checkpoint.uri or self.settings.runs_uri or str(self.settings.state_folder / "runs")
        if "://" not in parent:
            parent = str(Path(parent).expanduser().absolute())
        return f"{parent.rstrip('/')}/{run_id}"

    def lock(self, run_id: str) -> FileLock:
        """Held by the run's supervisor for as long as it lives."""
        from filelock import FileLock

        folder = self.settings.state_folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{run_id}.lock")

    def has_supervisor(self, run_id: str) -> bool:
        """Whether somebody on this machine holds the run's lock."""
        from filelock import Timeout

        try:
            with self.lock(run_id).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def output_paths(self, state: RunState, attempt: int | None = None) -> tuple[Path, ...]:
        """Files with what the run's attempts printed, oldest first."""
        numbers = [a.number for a in state.attempts] if attempt is None else [attempt]
        backend = self.of(state).backend(state)
        return tuple(backend.output_path(job_name(state.run_id, number)) for number in numbers)

    def offers(self, gpu: str | None) -> tuple[tuple[Offer, Price | Refusal], ...]:
        """The price book, each offer with its price or why it is refused. Raises: InputError: no such GPU type."""
        from launcher.core.pricing import price

        name = None
        if gpu is not None:
            name = self.catalog.canonical(gpu)
            if name is None:
                near = " or ".join(self.catalog.nearest(gpu))
                raise InputError(
                    [Problem("L105", f"{gpu} is not a known GPU type", fix=f"write {near}" if near else "")]
                )
        now = SystemClock().now()
        known = _PriceBook(terms=self.terms, catalog=self.catalog).offers(now)
        return tuple((o, price(o, self.terms, now=now)) for o in known if name in (None, o.gpu))

    def runnable(self, spec: RunSpec, offer: Offer) -> None:
        """Raises: NothingFeasible: no backend of this version can start a machine there."""
        from launcher.core.pricing import LOCAL

        if spec.market is None and offer.provider != LOCAL:
            raise NothingFeasible(
                f"this version plans {offer.provider} but runs only on this machine: --simulate SEED runs it here "
                "against a drawn spot market, and own machines in pricing.yaml are run for real"
            )

    def log_path(self, run_id: str) -> Path:
        """Where the run's detached supervisor writes."""
        folder = self.settings.state_folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{run_id}.log"

    def supervisor(self, run_id: str) -> Supervisor:
        from launcher.supervisor import Supervisor

        state = self.state(run_id)
        clock = self.run_clock(state)
        mine = self.of(state)
        return Supervisor(
            run_id=run_id,
            ledger=self.ledger,
            backend=mine.backend(state),
            journal=mine.journal(state),
            clock=clock,
            rules=mine.rules(state.spec),
            options=lambda state, _now: mine._options(state, clock),
            request=lambda state, attempt: _request(state, attempt, time_scale=clock.scale),
        )

    def _options(self, state: RunState, clock: SystemClock) -> Sequence[Option]:
        """The run's places at today's prices, and at the pace that its user agreed to."""
        from launcher.core.planner import survey
        from launcher.core.workload import Measured

        spec, pace = state.spec, state.submitted.pace
        workload = spec.workload.model_copy(
            update={"step_seconds": pace.step_seconds, "setup_seconds": pace.setup_seconds}
        )
        checkpoint = spec.checkpoint.model_copy(update={"save_seconds": pace.save_seconds})
        agreed = spec.model_copy(update={"workload": workload, "checkpoint": checkpoint})
        agreed_saves = Measured(durable_seconds=pace.closing_save_seconds)
        candidates, _ = survey(agreed, self.book(spec, clock), agreed_saves, now=clock.now())
        return [c.option for c in candidates]


@dataclass(frozen=True, kw_only=True)
class _PriceBook:
    """The embedded snapshot, the user's reservations, and the user's own machines, as one source."""

    terms: Terms
    catalog: GpuCatalog

    def offers(self, now: datetime) -> tuple[Offer, ...]:
        from launcher.adapters.snapshot_prices import SnapshotPrices
        from launcher.core.pricing import own_offers, reserved_offers

        listed = SnapshotPrices().offers(now)
        reserved = reserved_offers(self.terms, listed, catalog=self.catalog, today=now.date())
        own = own_offers(self.terms, catalog=self.catalog, today=now.date())
        return (*listed, *reserved, *own)


def _request(state: RunState, attempt: Attempt, *, time_scale: float) -> LaunchRequest:
    from launcher.adapters.attempt_env import attempt_environment
    from launcher.core.machine import LaunchRequest
    from launcher.core.state import spent_usd

    spec = state.spec
    return LaunchRequest(
        job=job_name(state.run_id, attempt.number),
        placement=attempt.placement,
        setup=spec.setup,
        run=spec.run,
        workdir=state.submitted.workdir,
        env=attempt_environment(
            spec,
            run_id=state.run_id,
            attempt=attempt.number,
            run_uri=state.submitted.run_uri,
            placement=attempt.placement,
            spent_usd=spent_usd(state, attempt.requested_at),
            cap_usd=state.approved_usd,
            time_scale=time_scale,
        ),
    )
