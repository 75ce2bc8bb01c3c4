"""Which adapter stands behind which port, for everything but the start of machines (`engines`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.adapters.settings import Settings
from launcher.adapters.system_clock import SystemClock
from launcher.core.prices.pricing import LOCAL
from launcher.core.runs.state import RunState, fold
from launcher.errors import InputError, LedgerConflict, NoSuchRun, Problem

if TYPE_CHECKING:
    from launcher.adapters.feeds import LiveFeeds
    from launcher.adapters.local_market import Market
    from launcher.adapters.outpost import Outpost
    from launcher.adapters.price_book import PriceBook
    from launcher.adapters.skypilot_clouds import Clouds
    from launcher.core.estimates.survey import Book
    from launcher.core.estimates.workload import Measured
    from launcher.core.gpus import GpuCatalog
    from launcher.core.gravity import Tariffs
    from launcher.core.offers import Offer, Price, Refusal
    from launcher.core.prices.options import Rules
    from launcher.core.prices.pricing import Terms
    from launcher.core.prices.supervision import Host
    from launcher.core.runs.events import Event
    from launcher.core.spec import RunSpec
    from launcher.core.unknown import Unknown
    from launcher.ports import DataProbe, Journal, Ledger, PriceSource, Progress

_PRICING = Path("pricing.yaml")


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Where things lie on a machine that is not the submitter's; the ledger has their paths there."""

    workdir: Path
    pricing: Path | None


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Everything one command needs, made when it is first asked for."""

    settings: Settings
    moved: Moved | None = None

    @cached_property
    def ledger(self) -> Ledger:
        from launcher.adapters.object_ledger import ObjectLedger, is_object_store
        from launcher.adapters.sql_ledger import SqlLedger

        url = self.settings.ledger_url
        return ObjectLedger(url) if is_object_store(url) else SqlLedger(url)

    @cached_property
    def catalog(self) -> GpuCatalog:
        from launcher.adapters.snapshot_prices import load_catalog

        return load_catalog()

    @cached_property
    def tariffs(self) -> Tariffs:
        from launcher.adapters.snapshot_prices import load_tariffs

        return load_tariffs()

    @cached_property
    def terms(self) -> Terms:
        """pricing.yaml: the one that the settings name, else the one in this folder, else no terms at all."""
        from launcher.adapters.yaml_input import load
        from launcher.core.prices.pricing import Terms

        return load(self.pricing, Terms) if self.pricing else Terms()

    @cached_property
    def pricing(self) -> Path | None:
        return self.settings.pricing or (_PRICING.absolute() if _PRICING.exists() else None)

    def of(self, state: RunState) -> Wiring:
        """As this, with the pricing.yaml under which the run was submitted."""
        path = state.submitted.pricing
        pricing = self.moved.pricing if self.moved else Path(path) if path else None
        return replace(self, settings=self.settings.model_copy(update={"pricing": pricing}))

    def clock(self, spec: RunSpec) -> SystemClock:
        """The time of a run that would begin now: the wall clock, or a simulated market's."""
        return SystemClock(scale=spec.market.time_scale if spec.market else 1.0)

    def run_clock(self, state: RunState) -> SystemClock:
        """The run's own time, which began with its submit and never falls behind its newest entry."""
        return SystemClock(epoch=state.submitted_at, scale=state.submitted.time_scale, not_before=state.at)

    def book(self, spec: RunSpec, clock: SystemClock) -> Book:
        """Offers and terms as of now; of a simulated market alone, where the run has one."""
        from launcher.core.estimates.survey import Book

        return Book(
            offers=self.prices(spec, clock).offers(clock.now()),
            terms=self.terms,
            tariffs=self.tariffs,
            catalog=self.catalog,
            host=self.host,
        )

    def host(self, offer: Offer) -> Host | Unknown | None:
        """The machine of a run's supervisor where it is hired; `None`: it lives here."""
        return self.outpost.host(offer) if self.settings.supervise == "remote" else None

    @cached_property
    def outpost(self) -> Outpost:
        from launcher.adapters.outpost import Outpost

        folder = self.settings.state_folder / "outposts"
        return Outpost(settings=self.settings, pricing=self.pricing, clouds=self.settings.clouds_record, folder=folder)

    @cached_property
    def price_book(self) -> PriceBook:
        from launcher.adapters.price_book import PriceBook
        from launcher.adapters.skypilot_catalog import SkypilotCatalog

        return PriceBook(
            terms=self.terms,
            gpus=self.catalog,
            catalogues=SkypilotCatalog(folder=self.settings.catalogs, gpus=self.catalog),
            clouds=self.settings.clouds_record,
            live=self._live,
        )

    @property
    def _live(self) -> LiveFeeds | None:
        if not self.settings.feeds:
            return None
        from launcher.adapters.feeds import open_feeds

        return open_feeds(self.settings.feeds, self.settings.state_folder / "feeds")

    def check_clouds(self) -> Clouds:
        """Let SkyPilot find out which clouds it may use here, and remember it."""
        from launcher.adapters.skypilot_clouds import check_clouds

        return check_clouds(self.settings.clouds_record, now=SystemClock().now())

    def prices(self, spec: RunSpec, clock: SystemClock) -> PriceSource:
        market = self.market(spec)
        if market is None:
            return self.price_book
        from launcher.adapters.local_market import MarketPrices

        return MarketPrices(market, clock)

    def market(self, spec: RunSpec) -> Market | None:
        """The simulated market that the run asks for."""
        if spec.market is None:
            return None
        from launcher.adapters.local_market import draw_market, load_market
        from launcher.adapters.price_book import PriceBook

        if spec.market.file is not None:
            return load_market(Path(spec.market.file))
        assert spec.market.seed is not None
        # without SkyPilot's catalogues: they change under a run, and a market is drawn anew by each of its processes
        offers = PriceBook(terms=self.terms, gpus=self.catalog).offers(SystemClock().now())
        return draw_market((o for o in offers if o.gpu in spec.gpus), seed=spec.market.seed)

    @cached_property
    def probe(self) -> DataProbe:
        from launcher.adapters.fsspec_probe import FsspecProbe

        return FsspecProbe(self.settings.state_folder / "probes", clock=SystemClock())

    def ask_buckets(self, spec: RunSpec, progress: Progress) -> RunSpec:
        """`spec` with its run folders' parent named, and with what its buckets say where the user says nothing."""
        from launcher.adapters.fsspec_probe import ask_buckets

        uri = spec.checkpoint.uri or self.settings.runs_uri
        if uri is not None and "://" not in uri:
            uri = str(Path(uri).expanduser().absolute())
        named = spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"uri": uri})})
        return ask_buckets(named, self.probe, seconds=self.settings.probe_seconds, progress=progress)

    def measured(self, spec: RunSpec) -> Measured:
        """What the ledger's earlier runs of the same workload showed; of all runs, how good their estimates were, and
        what they saw of spot lately."""
        from launcher.core.estimates.calibration import corrections
        from launcher.core.estimates.history import measured
        from launcher.core.estimates.sightings import lately

        states = self.states()
        places = {} if spec.market else lately(states, self.clock(spec).now())
        return replace(measured(spec, states), corrections=corrections(spec, states), places=places)

    def rules(self, spec: RunSpec) -> Rules:
        """Waiting times; where time is scaled, none is shorter than this machine needs to act.

        Looking at one's own machine costs nothing, so that is done more often.
        """
        from launcher.core.prices.options import Rules

        scale = spec.market.time_scale if spec.market else 1.0
        is_local = spec.market is not None or spec.providers == [LOCAL]
        return Rules(
            rank_reserved_by=self.terms.rank_reserved_by,
            poll_seconds=max(min(self.settings.poll_seconds, 2.0 if is_local else math.inf), 0.5 * scale),
            release_seconds=max(30.0, 0.5 * scale),
            grace_seconds=max(300.0, 30.0 * scale),
            silence_seconds=max(600.0, 60.0 * scale),
            cut_off_seconds=max(120.0, 30.0 * scale),
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

    def record(self, run_id: str, event: Event) -> RunState:
        """Append behind whatever the run's supervisor writes at the same time. Raises: NoSuchRun."""
        while True:
            state = self.state(run_id)
            try:
                entries = self.ledger.append(run_id, [event], after_seq=state.seq, at=self.run_clock(state).now())
            except LedgerConflict:
                continue
            after = fold(state, entries)
            assert after is not None
            return after

    @property
    def has_skypilot(self) -> bool:
        return find_spec("sky") is not None

    def journal(self, state: RunState, run_uri: str) -> Journal:
        """The launcher's side of one of the run's folders."""
        from launcher.adapters.fsspec_journal import FsspecJournal

        return FsspecJournal(run_uri, clock=self.run_clock(state))

    def run_uri(self, spec: RunSpec, run_id: str, offer: Offer) -> str:
        """The run's folder for a machine of `offer`: under its bucket, `checkpoint.uri`, or the state folder."""
        from launcher.core.prices.traffic import checkpoint_home

        parent = checkpoint_home(spec, offer) or str(self.settings.state_folder / "runs")
        return f"{parent.rstrip('/')}/{run_id}"

    def offers(self, gpu: str | None) -> tuple[tuple[Offer, Price | Refusal], ...]:
        """The price book, each offer with its price or why it is refused. Raises: InputError: no such GPU type."""
        from launcher.core.prices.pricing import price

        name = None
        if gpu is not None:
            name = self.catalog.canonical(gpu)
            if name is None:
                near = " or ".join(self.catalog.nearest(gpu))
                raise InputError(
                    [Problem("L105", f"{gpu} is not a known GPU type", fix=f"write {near}" if near else "")]
                )
        now = SystemClock().now()
        known = self.price_book.offers(now)
        return tuple((o, price(o, self.terms, now=now)) for o in known if name in (None, o.gpu))

    @property
    def today(self) -> date:
        return SystemClock().now().date()
