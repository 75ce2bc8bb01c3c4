"""What can be rented, at which price, and where a run can be placed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cached_property

CLUSTERS = ("slurm", "kubernetes")  # providers of pools that the user's inventory names

# They rent single hosts, without a network that training could use between two of them: SkyPilot 0.14.1 takes no
# multi-node task there (MULTI_NODE in sky/clouds/<name>.py)
SINGLE_HOSTS = frozenset({"hyperbolic", "primeintellect", "runpod", "seeweb", "shadeform", "vast", "verda", "yotta"})


class Capacity(StrEnum):
    SPOT = "spot"
    RESERVED = "reserved"
    ON_DEMAND = "on_demand"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One instance type that one provider rents in one place, as one kind of capacity.

    Prices are for the whole instance. `None` means unknown: such an offer is refused, never taken as free.
    """

    provider: str
    region: str
    zone: str | None
    instance_type: str
    gpu: str  # canonical name, see `launcher/data/gpus.csv`
    count: int  # GPUs in the instance
    capacity: Capacity
    list_usd_per_hour: Decimal | None
    as_of: date
    source: str
    on_demand_usd_per_hour: Decimal | None = None  # the same instance's list price, for savings and sanity
    preemptions_per_hour: float | None = None  # None: unknown, an assumption is stated
    obtainability: float | None = None  # chance that a request succeeds now, 0 to 1, where the provider states one
    is_scarce: bool = False  # the provider says that a request would hardly succeed now
    notice_seconds: float = 0.0  # warning before a preemption
    reservation: str | None = None  # id in the user's inventory, for reserved capacity
    available_count: int | None = None  # instances there are, of the user's own inventory
    opens_at: datetime | None = None  # of reserved capacity that begins later
    closes_at: datetime | None = None  # when its machines go back: nothing may run there any more
    lease_seconds: float | None = None  # that one attempt may hold it: a Slurm partition's time limit
    simulated: bool = False
    barred: str | None = None  # why it cannot be rented from here, whatever its price

    @property
    def where(self) -> str:
        """Provider and the finest place known: `aws use2-az1`, `slurm lab/spot`."""
        if self.provider in CLUSTERS:
            return f"{self.provider} {self.region}/{self.zone}"
        return f"{self.provider} {self.zone or self.region}"

    def usable_seconds(self, now: datetime) -> float:
        """How long one attempt could last that begins now, or at the opening if that is later; 0: it is closed."""
        begin = now if self.opens_at is None else max(now, self.opens_at)
        lease = math.inf if self.lease_seconds is None else self.lease_seconds
        return lease if self.closes_at is None else max(0.0, min(lease, (self.closes_at - begin).total_seconds()))

    @cached_property
    def key(self) -> str:
        """Identity of the offer across price changes."""
        parts = (self.provider, self.region, self.zone or "-", self.instance_type, self.capacity.value)
        return "/".join((*parts, self.reservation) if self.reservation else parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one hour of one instance costs: list → discount → commitment.

    `usd_per_hour` is what a report charges (amortised, for reserved capacity); `marginal_usd_per_hour`
    is the cash that one more hour costs (nothing, where the hour is paid for anyway).
    """

    list_usd_per_hour: Decimal
    usd_per_hour: Decimal
    marginal_usd_per_hour: Decimal
    basis: str  # e.g. "list of 2026-05-01", "list − 12 %", "amortised cr-0a1b"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """An offer, taken `nodes` times, at a price that is now fixed."""

    offer: Offer
    nodes: int
    price: Price

    @cached_property
    def usd_per_hour(self) -> Decimal:
        """All nodes."""
        return self.price.usd_per_hour * self.nodes

    @property
    def marginal_usd_per_hour(self) -> Decimal:
        return self.price.marginal_usd_per_hour * self.nodes

    @property
    def on_demand_usd_per_hour(self) -> Decimal | None:
        """What all nodes would cost on demand at list price, if that is known."""
        price = self.offer.on_demand_usd_per_hour
        return None if price is None else price * self.nodes

    @property
    def num_gpus(self) -> int:
        return self.offer.count * self.nodes

    @property
    def usd_per_gpu_hour(self) -> Decimal:
        return self.usd_per_hour / self.num_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an offer is not in the plan; shown to whoever asks for all."""

    offer: Offer
    reason: str
    is_wish: bool = False  # the user's own: it is no news to them
