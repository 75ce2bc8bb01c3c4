"""What can be rented, at which price, and where a run can be placed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum


class Capacity(StrEnum):
    SPOT = "spot"
    RESERVED = "reserved"
    ON_DEMAND = "on_demand"


@dataclass(frozen=True, slots=True, kw_only=True)
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
    notice_seconds: float = 0.0  # warning before a preemption
    reservation: str | None = None  # id in the inventory, for reserved capacity
    available_count: int | None = None  # instances left, for reserved capacity
    until: date | None = None  # end of the reservation
    simulated: bool = False

    @property
    def where(self) -> str:
        """Provider and the finest place known: `aws use2-az1`."""
        return f"{self.provider} {self.zone or self.region}"

    @property
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

    @property
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
