"""Which adapter stands behind which port; the only place that knows them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from launcher.adapters.settings import Settings
from launcher.adapters.system_clock import SystemClock
from launcher.core.pricing import LOCAL
from launcher.core.state import Attempt, RunState, fold, job_name, run_uri_of
from launcher.errors import InputError, NoSuchRun, NothingFeasible, Problem

if TYPE_CHECKING:
    from filelock import FileLock

    from launcher.adapters.feeds import LiveFeeds
    from launcher.adapters.fsspec_journal import FsspecJournal
    from launcher.adapters.local_backend import LocalBackend
    from launcher.adapters.local_market import Market
    from launcher.adapters.outpost import Outpost
    from launcher.adapters.price_book import PriceBook
    from launcher.adapters.shared_output import SharedOutput
    from launcher.adapters.skypilot_backend import SkyPilotBackend
    from launcher.adapters.skypilot_clouds import Clouds
    from launcher.adapters.skypilot_task import Site
    from launcher.core.gpus import GpuCatalog
    from launcher.core.offers import Offer, Price, Refusal
    from launcher.core.options import Option, Rules
    from launcher.core.planner import Book
    from launcher.core.pricing import Terms
    from launcher.core.spec import RunSpec
    from launcher.core.supervision import Host, Sign
    from launcher.core.unknown import Unknown
    from launcher.core.workload import Measured
    from launcher.ports import Backend, DataProbe, Journal, LaunchRequest, Ledger, PriceSource, Progress
    from launcher.supervisor import Supervisor

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
        from launcher.adapters.snapshot_prices import load_tariffs
        from launcher.core.planner import Book

        return Book(
            offers=self.prices(spec, clock).offers(clock.now()),
            terms=self.terms,
            tariffs=load_tariffs(),
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
        return Outpost(settings=self.settings, pricing=self.pricing, clouds=self._clouds_record, folder=folder)

    @cached_property
    def price_book(self) -> PriceBook:
        from launcher.adapters.price_book import PriceBook
        from launcher.adapters.skypilot_catalog import SkypilotCatalog

        return PriceBook(
            terms=self.terms,
            gpus=self.catalog,
            catalogues=SkypilotCatalog(folder=self.settings.catalogs, gpus=self.catalog),
            clouds=self._clouds_record,
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

        return check_clouds(self._clouds_record, now=SystemClock().now())

    @property
    def _clouds_record(self) -> Path:
        return self.settings.state_folder / "clouds.json"

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
        named = spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"uri": uri})})
        return ask_buckets(named, self.probe, seconds=self.settings.probe_seconds, progress=progress)

    def measured(self, spec: RunSpec) -> Measured:
        """What the ledger's earlier runs of the same workload showed."""
        from launcher.core.history import measured

        return measured(spec, self.states())

    def rules(self, spec: RunSpec) -> Rules:
        """Waiting times; where time is scaled, none is shorter than this machine needs to act.

        Looking at one's own machine costs nothing, so that is done more often.
        """
        from launcher.core.options import Rules

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

    def backend(self, state: RunState) -> Backend:
        """This machine, and SkyPilot beside it for a run that may go elsewhere."""
        from launcher.adapters.fleet import Fleet

        local = self._local_backend(state)
        is_local = state.spec.market is not None or not self.has_skypilot or state.spec.providers == [LOCAL]
        return local if is_local else Fleet(local, self._clusters())

    def _local_backend(self, state: RunState) -> LocalBackend:
        from launcher.adapters.local_backend import LocalBackend

        return LocalBackend(self.machines, clock=self.run_clock(state), market=self.market(state.spec))

    def _clusters(self) -> SkyPilotBackend:
        from launcher.adapters.aws_reservations import demand_room
        from launcher.adapters.skypilot_backend import SkyPilotBackend

        return SkyPilotBackend(
            self.settings.state_folder / "clusters",
            site=lambda request: self.site(request.placement.offer),
            clock=SystemClock(),
            demand_room=demand_room,
            provision_seconds=self.settings.provision_seconds,
        )

    def request(self, state: RunState, attempt: Attempt) -> dict[str, Any]:
        """What a backend is asked for, word by word: the SkyPilot task, or the orders of a machine of this computer."""
        from launcher.adapters.skypilot_task import skypilot_task

        request, offer = self._request(state, attempt, time_scale=state.submitted.time_scale), attempt.placement.offer
        if offer.provider != LOCAL and not offer.simulated:
            return skypilot_task(request, self.site(offer))
        env = dict(sorted(request.env.items()))
        asked = {"setup": request.setup, "run": request.run, "workdir": request.workdir, "envs": env}
        return {"name": request.job, "place": offer.key} | {key: value for key, value in asked.items() if value}

    @property
    def has_skypilot(self) -> bool:
        return find_spec("sky") is not None

    def site(self, offer: Offer) -> Site:
        """What this machine and the user's inventory add to a request for `offer`."""
        from launcher.adapters.skypilot_task import Site
        from launcher.adapters.skypilot_zones import aws_zone_names
        from launcher.core.inventory import pool_of, reservation_config

        hooks = find_spec("trainer_hooks")
        assert hooks is not None
        assert hooks.origin is not None  # it is in the same distribution
        return Site(
            hooks=str(Path(hooks.origin).parent),
            pool=pool_of(self.terms, offer),
            config=reservation_config(self.terms, offer),
            zones=aws_zone_names(self.settings.catalogs) if offer.provider == "aws" else {},
        )

    @property
    def machines(self) -> Path:
        return self.settings.state_folder / "machines"

    def journal(self, state: RunState, run_uri: str) -> Journal:
        """The launcher's side of one of the run's folders."""
        from launcher.adapters.fsspec_journal import FsspecJournal

        return FsspecJournal(run_uri, clock=self.run_clock(state))

    def run_uri(self, spec: RunSpec, run_id: str, offer: Offer) -> str:
        """The run's folder for a machine of `offer`: under its bucket, `checkpoint.uri`, the settings' `runs_uri`, or
        the state folder."""
        from launcher.core.traffic import checkpoint_home

        home = checkpoint_home(spec, offer) or self.settings.runs_uri
        parent = home or str(self.settings.state_folder / "runs")
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

    def sign(self, state: RunState) -> Sign | None:
        """The newest sign of life of a supervisor, wherever it lived; `None` too where the folder does not answer."""
        from launcher.adapters.sign_of_life import read_sign
        from launcher.errors import BackendError

        if not self.settings.has_shared_ledger:
            return None  # nobody else can know of the run
        try:
            return read_sign(self._run_folder(state))
        except BackendError:
            return None

    def _run_folder(self, state: RunState) -> FsspecJournal:
        from launcher.adapters.fsspec_journal import FsspecJournal

        return FsspecJournal(state.submitted.run_uri, clock=SystemClock())

    def is_supervised(self, state: RunState) -> bool:
        """By somebody on this machine, or by one elsewhere who was heard of just now."""
        return self.has_supervisor(state.run_id) or self.is_supervised_elsewhere(state)

    def is_supervised_elsewhere(self, state: RunState) -> bool:
        sign = self.sign(state)
        return sign is not None and sign.place != self.place and sign.is_fresh(SystemClock().now())

    @contextmanager
    def supervising(self, state: RunState, *, by: str) -> Iterator[None]:
        """Let those who share the ledger see that the run has a supervisor, and what its attempts print."""
        from launcher.adapters.shared_output import sharing_output
        from launcher.adapters.sign_of_life import giving_signs
        from launcher.core.supervision import Sign

        if not self.settings.has_shared_ledger:
            yield
            return
        now = SystemClock().now
        sign = Sign(place=self.place, by=by, since=now(), at=now())
        with (  # the last output is there before the last sign
            giving_signs(self._run_folder(state), sign, now=now),
            sharing_output(state.submitted.run_uri, lambda: self._outputs(self.state(state.run_id))),
        ):
            yield

    @property
    def place(self) -> str:
        """This machine, and on it whatever shares its locks."""
        return f"{gethostname()}:{self.settings.state_folder}"

    def shared_output(self, state: RunState) -> SharedOutput | None:
        """What the attempts print, where they are supervised on another machine."""
        from launcher.adapters.shared_output import SharedOutput

        sign = self.sign(state)
        return None if sign is None or sign.place == self.place else SharedOutput(state.submitted.run_uri)

    def output_paths(self, state: RunState, attempt: int | None = None) -> tuple[Path, ...]:
        """Files with what the run's attempts printed here, oldest first."""
        known = self._outputs(state)
        return tuple(known.values()) if attempt is None else tuple(known[n] for n in known if n == attempt)

    def _outputs(self, state: RunState) -> dict[int, Path]:
        mine = self.of(state)
        local, clusters = mine._local_backend(state), mine._clusters()
        sides = {
            a.number: local if a.placement.offer.provider == LOCAL or a.placement.offer.simulated else clusters
            for a in state.attempts
        }
        return {number: side.output_path(job_name(state.run_id, number)) for number, side in sides.items()}

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
        known = self.price_book.offers(now)
        return tuple((o, price(o, self.terms, now=now)) for o in known if name in (None, o.gpu))

    @property
    def today(self) -> date:
        return SystemClock().now().date()

    def runnable(self, spec: RunSpec, offer: Offer, *, checking: Callable[[], None]) -> None:
        """Let SkyPilot try the credentials for the place, unless it has; `checking` is called before that takes long.

        Raises: NothingFeasible: nobody here can start a machine there. InputError: it could not save anything.
        """
        if spec.market is not None or offer.provider == LOCAL:
            return
        if not self.has_skypilot:
            raise NothingFeasible(
                f'machines of {offer.provider} are started through SkyPilot: pip install "spotlaunch[sky]" '
                f'"skypilot[{offer.provider}]"; --simulate SEED runs it here against a drawn spot market'
            )
        if not self._reaches(spec, offer):
            message = f"machines of {offer.provider} cannot reach run folders on this computer's disk"
            fix = "write checkpoint: {uri: s3://bucket/folder} in train.yaml, or runs_uri in the settings"
            raise InputError([Problem("L141", message, "", fix)])
        from launcher.adapters.skypilot_clouds import read_clouds

        clouds = read_clouds(self._clouds_record)
        if clouds is None or clouds.barred(offer.provider):
            checking()
            clouds = self.check_clouds()
        if barred := clouds.barred(offer.provider):
            raise NothingFeasible(barred)

    def log_path(self, run_id: str) -> Path:
        """Where the run's detached supervisor writes."""
        folder = self.settings.state_folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{run_id}.log"

    def supervisor(self, run_id: str) -> Supervisor:
        from launcher.adapters.checkpoint_store import CheckpointFolder
        from launcher.supervisor import Supervisor

        state = self.state(run_id)
        clock = self.run_clock(state)
        mine = self.of(state)
        return Supervisor(
            run_id=run_id,
            ledger=self.ledger,
            backend=mine.backend(state),
            journal=cache(lambda uri: mine.journal(state, uri)),
            replicate=lambda old, new: CheckpointFolder(old).replicate(CheckpointFolder(new)),
            run_uri=lambda state, option: mine.run_uri(state.spec, run_id, option.placement.offer),
            clock=clock,
            rules=mine.rules(state.spec),
            options=lambda state, _now: mine._options(state, clock),
            request=lambda state, attempt: mine._request(state, attempt, time_scale=clock.scale),
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
        newest = state.checkpoint
        agreed_saves = Measured(
            durable_seconds=pace.closing_save_seconds,
            checkpoint_gb=newest.bytes / 1e9 if newest else pace.checkpoint_gb,
        )
        lying = [uri.removesuffix(f"/{state.run_id}") for uri in newest.run_uris] if newest else []
        candidates, _ = survey(agreed, self.book(spec, clock), agreed_saves, now=clock.now(), lying=lying)
        return [c.option for c in candidates if self._can_start(spec, c.option.placement.offer)]

    def _can_start(self, spec: RunSpec, offer: Offer) -> bool:
        if offer.provider == LOCAL and self.moved:
            return False  # this machine is not the one that the user owns
        if spec.market is not None or offer.provider == LOCAL:
            return True
        return self.has_skypilot and self._reaches(spec, offer)

    def _reaches(self, spec: RunSpec, offer: Offer) -> bool:
        """Whether the machine sees the run folder: a bucket, or a folder that a Slurm cluster's nodes share."""
        from launcher.core.traffic import checkpoint_home

        home = checkpoint_home(spec, offer) or self.settings.runs_uri
        return home is not None and (offer.provider == "slurm" or ("://" in home and not home.startswith("file:")))

    def _request(self, state: RunState, attempt: Attempt, *, time_scale: float) -> LaunchRequest:
        from launcher.adapters.attempt_env import attempt_environment
        from launcher.core.machine import LaunchRequest
        from launcher.core.state import spent_usd

        spec, spent = state.spec, spent_usd(state, attempt.requested_at)
        hourly = attempt.placement.usd_per_hour
        return LaunchRequest(
            job=job_name(state.run_id, attempt.number),
            placement=attempt.placement,
            setup=spec.setup,
            run=spec.run,
            workdir=str(self.moved.workdir) if self.moved else state.submitted.workdir,
            env=attempt_environment(
                spec,
                run_id=state.run_id,
                attempt=attempt.number,
                run_uri=run_uri_of(state, attempt.number),
                placement=attempt.placement,
                spent_usd=spent,
                cap_usd=state.approved_usd,
                time_scale=time_scale,
            ),
            tags=spec.tags,
            paid_seconds=float((state.approved_usd - spent) / hourly) * 3600 / time_scale,
        )
