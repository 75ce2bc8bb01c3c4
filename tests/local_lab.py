"""The local backend under test: a market to rent from, trainers to rent for, and patience with real processes."""

from __future__ import annotations

import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import psutil

from launcher.adapters.local_backend import LocalBackend
from launcher.adapters.local_job import JobFolder
from launcher.adapters.local_market import Market, MarketPrices
from launcher.adapters.system_clock import SystemClock
from launcher.core.offers import Capacity, Offer, Placement, Price
from launcher.ports import LaunchRequest, Phase

PATIENCE_SECONDS = 60.0  # for a loaded machine; nothing is asserted about time
T = TypeVar("T")


def eventually(look: Callable[[], T | None]) -> T:
    """The first true answer of `look`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer


def a_run_id() -> str:
    """Processes are found by their job's name, over the whole computer: tests must not share one."""
    return f"demo-20260101-{uuid.uuid4().hex[:8]}"


def a_place(zone: str, **terms: Any) -> dict[str, Any]:
    usual = {"provider": "aws", "region": "us-east-2", "instance_type": "p5.48xlarge", "gpu": "H100", "count": 8}
    return usual | {"zone": zone, "spot_usd_per_hour": 11.25, "on_demand_usd_per_hour": 55.04} | terms


def an_own_offer() -> Offer:
    return Offer(
        provider="local",
        region="here",
        zone=None,
        instance_type="this computer",
        gpu="H100",
        count=1,
        capacity=Capacity.ON_DEMAND,
        list_usd_per_hour=Decimal(0),
        as_of=datetime(2026, 1, 1, tzinfo=UTC).date(),
        source="declared",
    )


def placed(offer: Offer, nodes: int = 1) -> Placement:
    price = offer.list_usd_per_hour or Decimal(0)
    return Placement(
        offer=offer,
        nodes=nodes,
        price=Price(list_usd_per_hour=price, usd_per_hour=price, marginal_usd_per_hour=price, basis="list"),
    )


class LocalLab:
    """A backend on a market of `places`, or on the own machine where there are none."""

    def __init__(self, folder: Path, places: list[dict[str, Any]], *, scale: float = 1.0, **limits: float) -> None:
        self.folder = folder
        self.clock = SystemClock(epoch=datetime.now(UTC), scale=scale)
        self.market = Market.model_validate({"places": places}) if places else None
        self.limits = limits
        self.backend = self.another_backend()

    def another_backend(self) -> LocalBackend:
        return LocalBackend(self.folder / "jobs", clock=self.clock, market=self.market, **self.limits)

    def now(self) -> datetime:
        return self.clock.now()

    def offer(self, zone: str, capacity: Capacity = Capacity.SPOT) -> Offer:
        assert self.market is not None
        offers = MarketPrices(self.market, self.clock).offers(self.now())
        return next(offer for offer in offers if offer.zone == zone and offer.capacity is capacity)

    def workdir(self, job: str) -> Path:
        path = self.folder / "work" / job
        path.mkdir(parents=True, exist_ok=True)
        return path

    def request(self, job: str, offer: Offer, run: str, *, setup: str | None = None, **env: str) -> LaunchRequest:
        return LaunchRequest(
            job=job, placement=placed(offer), setup=setup, run=run, workdir=str(self.workdir(job)), env=env
        )

    def settled(self, job: str, kind: str) -> Phase:
        def look() -> Phase | None:
            phase = self.backend.phase(job)
            return phase if phase.kind == kind else None

        return eventually(look)

    def job_folder(self, job: str) -> JobFolder:
        return JobFolder(self.folder / "jobs" / job)

    def machine(self, job: str) -> psutil.Process:
        claim = self.job_folder(job).claimed()
        assert claim is not None
        return psutil.Process(claim.birth.pid)

    def crash_machine(self, job: str) -> None:
        self.machine(job).send_signal(signal.SIGKILL)

    def output(self, job: str) -> str:
        return self.backend.output_path(job).read_text()


def python(script: str, *arguments: str) -> str:
    """A shell command that runs `script`."""
    return shlex.join([sys.executable, "-c", script, *arguments])


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop_all(lab: LocalLab) -> None:
    for path in (lab.folder / "jobs").iterdir() if (lab.folder / "jobs").is_dir() else ():
        lab.backend.stop(path.name)
