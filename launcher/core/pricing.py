"""From a list price to what an hour costs this user: list → discount → commitment.

    list        what the price book says
    discount    the most specific of the user's own, never two of them
    commitment  reserved capacity: amortised = the committed price, marginal = 0, since the hour is paid for anyway
                own machine: marginal = its electricity, where the user said what it draws

`Terms` is `pricing.yaml`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, model_validator

from launcher.core.gpus import GpuCatalog
from launcher.core.offers import Capacity, Offer, Price, Refusal
from launcher.core.spec import Model, Usd
from launcher.errors import InputError, Problem

LOCAL = "local"  # provider of machines that the user owns

PositiveUsd = Annotated[Usd, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


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
    """Capacity that is paid for whether it is used or not."""

    id: str = Field(min_length=1, description="e.g. cr-0a1b")
    provider: str
    region: str
    zone: str | None = None
    instance_type: str
    gpu: str | None = Field(default=None, description="only where the price book does not know the instance type")
    gpus: Count | None = Field(
        default=None, description="GPUs in one instance, only where the price book does not know"
    )
    count: Count = Field(description="instances")
    usd_per_hour: PositiveUsd = Field(description="committed price of one instance")
    until: date = Field(description="last day of the reservation")


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
        _no_twins("discounts", (f"{d.provider} {d.family or '*'} {d.capacity or '*'}" for d in self.discounts))
        return self


def price(offer: Offer, terms: Terms, *, now: datetime) -> Price | Refusal:
    """What an hour of one instance costs under `terms`, or why the offer's price is not believed."""
    listed, problem = offer.list_usd_per_hour, _problem(offer, terms, now.date())
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
    basis = f"list of {offer.as_of}" + (f" − {discount.percent.normalize():f} %" if discount else "")
    return Price(list_usd_per_hour=listed, usd_per_hour=net, marginal_usd_per_hour=net, basis=basis)


def reserved_offers(
    terms: Terms, book_offers: Sequence[Offer], *, catalog: GpuCatalog, today: date
) -> tuple[Offer, ...]:
    """The user's reservations; GPUs and on-demand price come from the book where it knows the instance type.

    Raises: InputError: a type that the book does not know has no `gpu` and `gpus`, or they contradict the book.
    """
    known = {(o.provider, o.instance_type): (o.gpu, o.count) for o in book_offers}
    listed = {_place(o): o.list_usd_per_hour for o in book_offers if o.capacity is Capacity.ON_DEMAND}
    machines = [_machine(r, known.get((r.provider, r.instance_type)), catalog) for r in terms.reserved]
    problems = [machine for machine in machines if isinstance(machine, Problem)]
    if problems:
        raise InputError(problems)
    return tuple(
        Offer(
            provider=reserved.provider,
            region=reserved.region,
            zone=reserved.zone,
            instance_type=reserved.instance_type,
            gpu=machine[0],
            count=machine[1],
            capacity=Capacity.RESERVED,
            list_usd_per_hour=reserved.usd_per_hour,
            as_of=today,
            source="pricing.yaml",
            on_demand_usd_per_hour=_on_demand(reserved, listed),
            reservation=reserved.id,
            available_count=reserved.count,
            until=reserved.until,
        )
        for reserved, machine in zip(terms.reserved, machines, strict=True)
        if not isinstance(machine, Problem)
    )


def own_offers(terms: Terms, *, catalog: GpuCatalog, today: date) -> tuple[Offer, ...]:
    """The user's own machines, one instance of each. Raises: InputError: a GPU type is not known."""
    names = [(own, catalog.canonical(own.gpu)) for own in terms.own]
    problems = [_no_such_gpu(f"own {own.name}", own.gpu, catalog) for own, name in names if name is None]
    if problems:
        raise InputError(problems)
    return tuple(
        Offer(
            provider=LOCAL,
            region=own.name,
            zone=None,
            instance_type=own.name,
            gpu=name or own.gpu,
            count=own.gpus,
            capacity=Capacity.ON_DEMAND,
            list_usd_per_hour=own.total_usd_per_hour,
            as_of=today,
            source="pricing.yaml",
            available_count=1,
        )
        for own, name in names
    )


def credit_usd(terms: Terms, provider: str, today: date) -> Decimal:
    """What is left to spend at `provider` before it costs cash."""
    live = (c for c in terms.credits if c.provider == provider and (c.until is None or c.until >= today))
    return sum((credit.usd for credit in live), Decimal(0))


def cash(cost_usd: Decimal, credit_usd: Decimal) -> Decimal:
    """What remains to be paid once the credit is used up."""
    return max(Decimal(0), cost_usd - credit_usd)


def _problem(offer: Offer, terms: Terms, today: date) -> str | None:
    listed, on_demand = offer.list_usd_per_hour, offer.on_demand_usd_per_hour
    if listed is None:
        return "its price is unknown"
    if not listed.is_finite() or listed <= 0:
        return f"its price is ${listed} an hour; nobody rents out for that"
    if offer.until is not None and offer.until < today:
        return f"the reservation ended on {offer.until}"
    age_days = (today - offer.as_of).days
    if age_days > terms.max_price_age_days:
        return f"its price is of {offer.as_of}, {age_days} days old; at most {terms.max_price_age_days} (pricing.yaml)"
    if offer.capacity is not Capacity.SPOT or on_demand is None:
        return None
    if listed > on_demand * (100 + terms.max_spot_above_on_demand_percent) / 100:
        return f"spot at ${listed} is dearer than on-demand at ${on_demand}: one of the two is wrong"
    return None


def _own_price(offer: Offer, listed: Decimal, terms: Terms) -> Price:
    own = next((own for own in terms.own if own.name == offer.instance_type), None)
    power = own.power_usd_per_hour if own else None
    return Price(
        list_usd_per_hour=listed,
        usd_per_hour=listed,
        marginal_usd_per_hour=listed if power is None else power,
        basis=f"own machine {offer.instance_type}" + ("" if power is None else f", ${power.normalize():f} of it power"),
    )


def _machine(reserved: Reserved, known: tuple[str, int] | None, catalog: GpuCatalog) -> tuple[str, int] | Problem:
    gpu = None if reserved.gpu is None else catalog.canonical(reserved.gpu)
    if reserved.gpu is not None and gpu is None:
        return _no_such_gpu(f"reserved {reserved.id}", reserved.gpu, catalog)
    if known is None and (gpu is None or reserved.gpus is None):
        message = f"reserved {reserved.id}: {reserved.provider} {reserved.instance_type} is not in the price book"
        return Problem("L210", message, "pricing.yaml", "add gpu: and gpus: (GPUs in one instance)")
    machine = known or (gpu or "", reserved.gpus or 0)
    if (gpu or machine[0], reserved.gpus or machine[1]) != machine:
        message = f"reserved {reserved.id}: {reserved.instance_type} has {machine[1]}×{machine[0]} in the price book"
        return Problem("L211", message, "pricing.yaml", "leave out gpu: and gpus:")
    return machine


def _on_demand(reserved: Reserved, listed: dict[tuple[str, str, str | None, str], Decimal | None]) -> Decimal | None:
    """In the reservation's zone, or the one price that its whole region has."""
    place = (reserved.provider, reserved.region, reserved.zone, reserved.instance_type)
    if place in listed:
        return listed[place]
    region = (reserved.provider, reserved.region, reserved.instance_type)
    prices = {usd for (p, r, _, t), usd in listed.items() if (p, r, t) == region}
    return prices.pop() if len(prices) == 1 else None


def _place(offer: Offer) -> tuple[str, str, str | None, str]:
    return offer.provider, offer.region, offer.zone, offer.instance_type


def _no_such_gpu(what: str, name: str, catalog: GpuCatalog) -> Problem:
    near = ", ".join(catalog.nearest(name))
    return Problem("L212", f"{what}: no GPU type {name!r}", "pricing.yaml", f"known: {near}" if near else "")


def _no_twins(key: str, names: Iterable[str]) -> None:
    twins = sorted(name for name, times in Counter(names).items() if times > 1)
    if twins:
        raise ValueError(f"{key} has {', '.join(twins)} more than once")
