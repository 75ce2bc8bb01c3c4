"""From a list price to what an hour costs this user: list → discount → commitment.

    list        what the price book says, or what the user says that a cluster's hour costs
    discount    the most specific of the user's own, never two of them
    commitment  reserved capacity: amortised = the committed price, marginal = 0, since the hour is paid for anyway
                own machine: marginal = its electricity, where the user said what it draws

`Terms` is `pricing.yaml`; what its inventory offers stands in `inventory`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from launcher.core.offers import CLUSTERS, Capacity, Offer, Price, Refusal
from launcher.core.prices.doubts import doubt
from launcher.core.spec import Model, Seconds, Usd

LOCAL = "local"  # provider of machines that the user owns

PositiveUsd = Annotated[Usd, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]

# EC2 begins to end a block's instances then: docs.aws.amazon.com/AWSEC2/latest/UserGuide/capacity-blocks-using.html,
# read 2026-11-21
_BLOCK_CLOSES_BEFORE = timedelta(minutes=30)


def _instant(value: object) -> datetime:
    try:
        instant = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is no instant; write 2026-12-01T11:30Z") from None
    if instant.tzinfo is None:
        raise ValueError(f"{value!s} has no time zone; write {instant.isoformat()}Z for UTC")
    return instant.astimezone(UTC)


def _end(value: object) -> datetime:
    """A day ends at the midnight behind it."""
    try:
        day = date.fromisoformat(str(value))
    except ValueError:
        return _instant(value)
    return datetime.combine(day + timedelta(days=1), time.min, UTC)


Instant = Annotated[
    datetime, BeforeValidator(_instant), WithJsonSchema({"type": "string", "examples": ["2026-12-01T11:30Z"]})
]
End = Annotated[
    datetime, BeforeValidator(_end), WithJsonSchema({"type": "string", "examples": ["2027-03-01", "2026-12-03T11:30Z"]})
]


class Discount(Model):
    """A percentage off the list price of spot or on-demand capacity."""

    provider: str
    family: str | None = Field(default=None, description="beginning of the instance type, e.g. p5; default: all")
    capacity: Literal[Capacity.SPOT, Capacity.ON_DEMAND] | None = Field(
        default=None, description="spot or on_demand; default: both. Reserved capacity has its own price"
    )
    percent: Decimal = Field(gt=0, lt=100, description="off the list price, e.g. 12")

    def covers(self, offer: Offer) -> bool:
        return (
            self.provider == offer.provider
            and offer.instance_type.startswith(self.family or "")
            and self.capacity in {None, offer.capacity}
        )

    @property
    def specificity(self) -> tuple[int, int]:
        """Conditions met, then length of the family."""
        return (self.family is not None) + (self.capacity is not None), len(self.family or "")


class Credit(Model):
    """Money at a provider that is spent before the user's own."""

    provider: str
    usd: Usd
    until: date | None = Field(default=None, description="last day on which it counts; default: no end")


class Reserved(Model):
    """Capacity at a cloud that is paid for whether it is used or not."""

    id: str = Field(min_length=1, description="the cloud's own: cr-0a1b at AWS, the reservation's name at GCP")
    provider: str
    kind: Literal["reservation", "capacity_block"] = Field(
        default="reservation", description="capacity_block: AWS takes its machines back half an hour before the end"
    )
    project: str | None = Field(default=None, description="GCP: the project that owns the reservation")
    region: str
    zone: str | None = Field(default=None, description="a reservation has one; without it all of the region are tried")
    instance_type: str
    gpu: str | None = Field(default=None, description="only where the price book does not know the instance type")
    gpus: Count | None = Field(
        default=None, description="GPUs in one instance, only where the price book does not know"
    )
    count: Count = Field(description="instances")
    usd_per_hour: PositiveUsd = Field(description="committed price of one instance")
    start: Instant | None = Field(default=None, description="when it begins; default: it has begun")
    until: End = Field(description="its last day (UTC), or the instant at which it ends")

    @model_validator(mode="after")
    def _real(self) -> Reserved:
        if (self.provider == "gcp") != (self.project is not None):
            raise ValueError(f"{self.id}: project is wanted for provider gcp, and for no other")
        if self.kind == "capacity_block" and self.provider != "aws":
            raise ValueError(f"{self.id} is a capacity_block at {self.provider}; only aws has them")
        if self.start is not None and self.start >= self.until:
            raise ValueError(f"{self.id} ends before it starts")
        return self

    @property
    def closes_at(self) -> datetime:
        return self.until - (_BLOCK_CLOSES_BEFORE if self.kind == "capacity_block" else timedelta(0))


class Pool(Model):
    """Nodes of one kind in a cluster, under one tier of capacity."""

    name: str = Field(min_length=1, description="Slurm: the partition. Kubernetes: a name for these nodes")
    capacity: Capacity = Field(description="spot: jobs are preempted; reserved: paid for anyway; on_demand: neither")
    gpu: str
    gpus: Count = Field(description="GPUs in one node")
    nodes: Count
    usd_per_gpu_hour: PositiveUsd = Field(description="what an hour of one GPU costs, reserved or not")
    preemptions_per_hour: float | None = Field(default=None, ge=0, description="of a fresh job; default: assumed")
    notice: Seconds | None = Field(default=None, description="from the signal to the end of a preempted job")
    cpus_per_gpu: float | None = Field(default=None, gt=0, description="that a job asks for; default: SkyPilot's")
    memory_gb_per_gpu: float | None = Field(default=None, gt=0, description="that a job asks for; default: SkyPilot's")
    time_limit: Seconds | None = Field(default=None, description="Slurm: the longest that a job may run, e.g. 24 h")
    account: str | None = Field(default=None, description="Slurm: sbatch --account")
    qos: str | None = Field(default=None, description="Slurm: sbatch --qos; one partition may be two pools by it")
    labels: dict[str, str] = Field(default_factory=dict, description="Kubernetes: labels that choose the nodes")

    @model_validator(mode="after")
    def _preemptible(self) -> Pool:
        given = [key for key in ("preemptions_per_hour", "notice") if getattr(self, key) is not None]
        if given and self.capacity is not Capacity.SPOT:
            raise ValueError(f"{self.name} is {self.capacity.value}; {' and '.join(given)} belong to spot")
        return self


class Cluster(Model):
    """A cluster of the user's, reached through SkyPilot."""

    name: str = Field(min_length=1, description="Slurm: the Host in ~/.slurm/config. Kubernetes: the context")
    provider: Literal["slurm", "kubernetes"]
    pools: list[Pool] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_one_kind(self) -> Cluster:
        _no_twins(f"cluster {self.name}", (f"{pool.name} {pool.capacity} {pool.gpu}" for pool in self.pools))
        foreign = ("labels",) if self.provider == "slurm" else ("time_limit", "account", "qos")
        for pool in self.pools:
            if given := [key for key in foreign if getattr(pool, key)]:
                raise ValueError(f"{pool.name}: {self.provider} knows no {' and no '.join(given)}")
        return self


class Own(Model):
    """A machine of the user's own."""

    name: str = Field(min_length=1)
    gpu: str
    gpus: Count
    usd_per_hour: PositiveUsd | None = Field(
        default=None, description="all in; or give the three parts power_watts, usd_per_kwh, depreciation_usd_per_hour"
    )
    power_watts: float | None = Field(default=None, gt=0, description="of the whole machine while it trains")
    usd_per_kwh: PositiveUsd | None = None
    depreciation_usd_per_hour: Usd | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Own:
        given = [part is not None for part in (self.power_watts, self.usd_per_kwh, self.depreciation_usd_per_hour)]
        if self.usd_per_hour is not None and any(given):
            raise ValueError(f"{self.name} has usd_per_hour and its parts; give one or the other")
        if self.usd_per_hour is None and not all(given):
            raise ValueError(
                f"{self.name} wants usd_per_hour, or power_watts, usd_per_kwh and depreciation_usd_per_hour"
            )
        return self

    @property
    def power_usd_per_hour(self) -> Decimal | None:
        if self.power_watts is None or self.usd_per_kwh is None:
            return None
        return Decimal(str(self.power_watts)) / 1000 * self.usd_per_kwh

    @property
    def total_usd_per_hour(self) -> Decimal:
        return self.usd_per_hour or (self.power_usd_per_hour or Decimal(0)) + (
            self.depreciation_usd_per_hour or Decimal(0)
        )


class Currency(Model):
    """An exchange rate, for display only: every amount is kept in US dollars."""

    usd_per_unit: Decimal = Field(gt=0)
    as_of: date


class Terms(Model):
    """What this user pays other than list prices, and how far list prices are believed."""

    discounts: list[Discount] = Field(default_factory=list, description="the most specific one counts, never two")
    credits: list[Credit] = Field(default_factory=list)
    reserved: list[Reserved] = Field(default_factory=list)
    own: list[Own] = Field(default_factory=list)
    clusters: list[Cluster] = Field(default_factory=list, description="Slurm and Kubernetes")
    max_price_age_days: int = Field(default=540, gt=0, description="an older list price is refused")
    max_spot_above_on_demand_percent: Decimal = Field(
        default=Decimal("0.1"), ge=0, description="spot dearer than this above on-demand is taken for an error"
    )
    rank_reserved_by: Literal["amortised", "marginal"] = Field(
        default="amortised", description="what reserved capacity competes with: its committed price, or nothing"
    )
    currencies: dict[Annotated[str, Field(pattern=r"^[A-Z]{3}$")], Currency] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct(self) -> Terms:
        _no_twins("reserved", (reserved.id for reserved in self.reserved))
        _no_twins("own", (own.name for own in self.own))
        _no_twins("clusters", (f"{cluster.provider} {cluster.name}" for cluster in self.clusters))
        _no_twins("discounts", (f"{d.provider} {d.family or '*'} {d.capacity or '*'}" for d in self.discounts))
        return self


def price(offer: Offer, terms: Terms, *, now: datetime) -> Price | Refusal:
    """What an hour of one instance costs under `terms`, or why the offer's price is not believed."""
    listed, problem = offer.list_usd_per_hour, _shut(offer, now) or _doubt(offer, terms, now.date())
    if listed is None or problem:
        return Refusal(offer=offer, reason=problem or "its price is unknown")
    if offer.capacity is Capacity.RESERVED:
        return Price(
            list_usd_per_hour=offer.on_demand_usd_per_hour or listed,
            usd_per_hour=listed,
            marginal_usd_per_hour=Decimal(0),
            basis=f"amortised {offer.reservation or offer.instance_type}",
        )
    if offer.provider == LOCAL:
        return _own_price(offer, listed, terms)
    discount = max((d for d in terms.discounts if d.covers(offer)), key=lambda d: d.specificity, default=None)
    net = listed if discount is None else listed * (100 - discount.percent) / 100
    stated = "pricing.yaml" if offer.provider in CLUSTERS else f"list of {offer.as_of}"
    basis = stated + (f" − {discount.percent.normalize():f} %" if discount else "")
    return Price(list_usd_per_hour=listed, usd_per_hour=net, marginal_usd_per_hour=net, basis=basis)


def credit_usd(terms: Terms, provider: str, today: date) -> Decimal:
    """What is left to spend at `provider` before it costs cash."""
    live = (c for c in terms.credits if c.provider == provider and (c.until is None or c.until >= today))
    return sum((credit.usd for credit in live), Decimal(0))


def cash(cost_usd: Decimal, credit_usd: Decimal) -> Decimal:
    """What remains to be paid once the credit is used up."""
    return max(Decimal(0), cost_usd - credit_usd)


def _shut(offer: Offer, now: datetime) -> str | None:
    if offer.opens_at is not None and now < offer.opens_at:
        return f"it begins on {offer.opens_at:%Y-%m-%d %H:%M} UTC"
    if offer.closes_at is not None and now >= offer.closes_at:
        return f"it closed on {offer.closes_at:%Y-%m-%d %H:%M} UTC"
    return None


def _doubt(offer: Offer, terms: Terms, today: date) -> str | None:
    return doubt(
        offer,
        today=today,
        max_age_days=terms.max_price_age_days,
        max_spot_above_on_demand_percent=terms.max_spot_above_on_demand_percent,
    )


def _own_price(offer: Offer, listed: Decimal, terms: Terms) -> Price:
    own = next((own for own in terms.own if own.name == offer.instance_type), None)
    power = own.power_usd_per_hour if own else None
    return Price(
        list_usd_per_hour=listed,
        usd_per_hour=listed,
        marginal_usd_per_hour=listed if power is None else power,
        basis=f"own machine {offer.instance_type}" + ("" if power is None else f", ${power.normalize():f} of it power"),
    )


def _no_twins(key: str, names: Iterable[str]) -> None:
    twins = sorted(name for name, times in Counter(names).items() if times > 1)
    if twins:
        raise ValueError(f"{key} has {', '.join(twins)} more than once")
