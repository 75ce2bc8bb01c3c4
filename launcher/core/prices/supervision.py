"""Where a run's supervisor lives when that is not the user's machine, what that costs, and its sign of life.

    cost = Σ hired machines (until − since + closing) · price stored with the hire

`closing` is what passes from the run's end until the machine has ended itself; it counts from the first moment on, so
that the cap keeps it in hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from launcher.core.offers import CLUSTERS, Offer
from launcher.core.prices.pricing import LOCAL
from launcher.core.unknown import Unknown

VCPUS, MEMORY_GIB = 2, 4  # a supervisor and SkyPilot's API server (0.7 GiB when it idles) fit in
BEAT_SECONDS = 30.0  # between two signs of life
FRESH_SECONDS = 150.0  # four missed beats, and clocks that differ by some seconds
AROUND_SECONDS = 300.0  # of its machine before the first attempt is asked for, and behind the run's end
PAY = "supervisor_usd_per_hour in launch.toml says what an hour of it costs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The cheapest small machine without a GPU in a region."""

    instance_type: str
    usd_per_hour: Decimal
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What would be asked for a supervisor. `infra` as SkyPilot writes it: aws/us-east-1, slurm/lab/cpu."""

    infra: str
    instance_type: str | None  # None: SkyPilot chooses one of that size
    usd_per_hour: Decimal
    basis: str

    @property
    def provider(self) -> str:
        return self.infra.partition("/")[0]

    @property
    def closing_seconds(self) -> float:
        """A Slurm job ends itself at once; elsewhere an idle minute, a look for it each minute, and the release."""
        return 60.0 if self.provider == "slurm" else 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hired:
    """A machine that was hired for the run's supervisor; `until` is `None` while nobody knows its end."""

    number: int
    where: str
    instance_type: str | None
    usd_per_hour: Decimal
    basis: str
    closing_seconds: float
    since: datetime
    until: datetime | None = None
    detail: str = ""  # why it ended before the run did


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A supervisor's sign of life, in wall time. `place` tells two machines apart, `by` is for people."""

    place: str
    by: str
    since: datetime
    at: datetime
    has_ended: bool = False

    def is_fresh(self, now: datetime) -> bool:
        return not self.has_ended and now - self.at < timedelta(seconds=FRESH_SECONDS)


def supervisor_name(run_id: str) -> str:
    """Of its cluster; no job of the run is ever called so: those end in a number."""
    return f"{run_id}-supervisor"


def host_beside(
    offer: Offer,
    *,
    infra: str | None,
    declared_usd_per_hour: Decimal | None,
    machines: Mapping[tuple[str, str], Machine],
) -> Host | Unknown:
    """The supervisor's machine for a run at `offer`: at `infra`, else in the same region of the same cloud.

    `machines` by provider and region. A declared price goes before a listed one.
    """
    if offer.provider == LOCAL:
        return Unknown("it runs on this machine, and its supervisor would be elsewhere; --supervise here")
    if infra is None and offer.provider in CLUSTERS:
        example = f"{offer.provider}/{offer.region}" + ("/cpu" if offer.provider == "slurm" else "")
        return Unknown(
            f'its supervisor needs a place without preemption: supervisor_infra = "{example}" in launch.toml'
        )
    place = infra or f"{offer.provider}/{offer.region}"
    provider, region = place.split("/")[:2]
    machine = machines.get((provider, region))
    if declared_usd_per_hour is not None:
        kind = machine.instance_type if machine else None
        return Host(infra=place, instance_type=kind, usd_per_hour=declared_usd_per_hour, basis="declared")
    if machine is None:
        return Unknown(f"nobody knows the price of a supervisor's machine at {place}; {PAY}")
    return Host(
        infra=place, instance_type=machine.instance_type, usd_per_hour=machine.usd_per_hour, basis=machine.source
    )


def cheapest(rows: Iterator[tuple[str, str, str, Decimal]], *, source: str) -> dict[tuple[str, str], Machine]:
    """Of `(provider, region, instance type, USD per hour)`, the cheapest of each region."""
    found: dict[tuple[str, str], Machine] = {}
    for provider, region, kind, usd in rows:
        known = found.get((provider, region))
        if known is None or (usd, kind) < (known.usd_per_hour, known.instance_type):
            found[provider, region] = Machine(instance_type=kind, usd_per_hour=usd, source=source)
    return found
