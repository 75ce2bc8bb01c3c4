"""A pretend spot market: places whose prices and capacity vary over market time.

Market time is seconds since the market's epoch, the submit of the run that meets it. Everything here is a
function of place and time: the same market replays the same way, however often and in whatever order it is asked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from launcher.adapters import yaml_input
from launcher.adapters.attempt_env import notice_sources
from launcher.adapters.system_clock import SystemClock
from launcher.core.offers import Capacity, Offer
from launcher.core.spec import Model, Seconds, Usd

NoticeForm = Literal["ec2", "gce", "azure", "signal", "none"]

# Ends per hour of a spell of capacity, and of a spell without, by the spell's age: (until this age in hours, rate).
# Pooled from the AWS V100 2023 availability traces of Wu et al., Can't Be Late, NSDI'24.
_UP_ENDS = ((0.2, 1.33), (0.5, 1.14), (1, 0.67), (2, 0.38), (4, 0.21), (8, 0.14), (16, 0.10), (math.inf, 0.04))
_DOWN_ENDS = ((0.2, 1.36), (0.5, 1.42), (1, 0.63), (2, 0.42), (4, 0.32), (8, 0.26), (math.inf, 0.13))

_WARM_UP_HOURS = 14 * 24  # drawn before the epoch, so that the market's first hour is like any other


class Notice(Model):
    """How a place warns of a preemption, and how long before."""

    via: NoticeForm = Field(description="ec2, gce, azure, signal or none")
    seconds: Seconds = Field(default=0.0, description="between the warning and the end, e.g. 120 s")

    @property
    def lead_seconds(self) -> float:
        return 0.0 if self.via == "none" else self.seconds


class PricePoint(Model):
    at: Seconds = Field(description="market time, e.g. 15 min")
    usd_per_hour: Usd = Field(description="of the whole instance, from then on")


class Interval(Model):
    """Spot capacity is there from `start` to `end`; whoever still runs at `end` is preempted."""

    start: Seconds
    end: Seconds | None = Field(default=None, description="left out: for ever")
    notice: Notice | None = Field(default=None, description="where this end is announced unlike the place's others")

    @model_validator(mode="after")
    def _forward(self) -> Interval:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"capacity ends at {self.end:g} s, before it starts at {self.start:g} s")
        return self


def _as_points(value: Any) -> Any:
    return [{"at": 0, "usd_per_hour": value}] if isinstance(value, int | float | str | Decimal) else value


def _as_intervals(value: Any) -> Any:
    return [_as_interval(item) for item in value] if isinstance(value, list | tuple) else value


def _as_interval(item: Any) -> Any:
    if not isinstance(item, list | tuple):
        return item
    if not 1 <= len(item) <= 2:
        raise ValueError(f"{item!r} is not an interval; write [from, to], or [from] where it never ends")
    return {"start": item[0], "end": item[1] if len(item) == 2 else None}


class Place(Model):
    """One instance type in one zone."""

    provider: str
    region: str
    zone: str | None = None
    instance_type: str
    gpu: str
    count: int = Field(gt=0, description="GPUs in the instance")
    spot_usd_per_hour: Annotated[tuple[PricePoint, ...], BeforeValidator(_as_points)] = Field(
        default=(), description="a number, or a list of {at, usd_per_hour}"
    )
    on_demand_usd_per_hour: Usd | None = Field(default=None, description="on demand there is always capacity")
    available: Annotated[tuple[Interval, ...], BeforeValidator(_as_intervals)] = Field(
        default=(Interval(start=0.0),), description="spot capacity: a list of [from, to]; default: always"
    )
    seed: int | None = Field(default=None, description="draw the spot capacity instead of listing it")
    notice: Notice = Field(default=Notice(via="none"), description="e.g. {via: ec2, seconds: 120}")
    rebalance_seconds: Seconds | None = Field(
        default=None, description="EC2's rebalance recommendation, before the preemption"
    )
    start_seconds: Seconds = Field(default=0.0, description="from the grant until the machine is up")
    on_demand_start_seconds: Seconds | None = Field(default=None, description="default: start_seconds")
    preemptions_per_hour: float | None = Field(default=None, ge=0)

    @property
    def key(self) -> tuple[str, str, str | None, str]:
        return self.provider, self.region, self.zone, self.instance_type

    @model_validator(mode="after")
    def _priced(self) -> Place:
        if not self.spot_usd_per_hour and self.on_demand_usd_per_hour is None:
            raise ValueError(f"{self.instance_type} has no price; give spot_usd_per_hour or on_demand_usd_per_hour")
        times = [point.at for point in self.spot_usd_per_hour]
        if times and (times[0] != 0 or times != sorted(set(times))):
            raise ValueError("spot_usd_per_hour starts at 0 s and goes forward in time")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Place:
        for before, after in zip(self.available, self.available[1:], strict=False):
            if before.end is None or after.start <= before.end:
                raise ValueError("available lists intervals in order of time, with an outage between them")
        return self

    @model_validator(mode="after")
    def _audible(self) -> Place:
        heard = notice_sources(self.provider)
        for notice in (self.notice, *(i.notice for i in self.available if i.notice)):
            if notice.via not in (*heard, "none"):
                raise ValueError(f"notice via {notice.via}: a trainer on {self.provider} hears {', '.join(heard)}")
        return self


class Market(Model):
    """The places of one market. As a file: see configs/local-demo-market.yaml."""

    name: str | None = Field(default=None, description="shown as the source of its prices; default: the file's name")
    places: tuple[Place, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Market:
        keys = [place.key for place in self.places]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"place {'/'.join(part or '-' for part in key)} is there twice")
        return self

    def place(self, offer: Offer) -> Place | None:
        key = (offer.provider, offer.region, offer.zone, offer.instance_type)
        return next((place for place in self.places if place.key == key), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The end of a spell of spot capacity, in market seconds."""

    at_seconds: float
    notice: Notice
    rebalance_seconds: float | None


def load_market(path: Path) -> Market:
    """Raises: InputError: the file is not a market."""
    market = yaml_input.load(path, Market)
    return market if market.name else market.model_copy(update={"name": path.name})


def draw_market(offers: Iterable[Offer], *, seed: int, start_seconds: float = 0.0) -> Market:
    """The places of `offers` at their list prices, with spot capacity that comes and goes as it did on AWS in 2023.

    Prices stand still. Offers without a price, and reserved ones, are left out.
    Raises: ValueError: no offer is left.
    """
    priced = [offer for offer in offers if offer.list_usd_per_hour is not None]
    spot = {_key(offer): offer for offer in priced if offer.capacity is Capacity.SPOT}
    fixed = {_key(offer): offer for offer in priced if offer.capacity is Capacity.ON_DEMAND}
    drawn = {"seed": seed, "start_seconds": start_seconds}
    places = tuple(Place.model_validate(_terms(spot.get(key), fixed.get(key)) | drawn) for key in {**spot, **fixed})
    return Market(name=f"seed {seed}", places=places)


def spot_usd_per_hour(place: Place, at_seconds: float) -> Decimal | None:
    """Spot price of the whole instance, whether or not there is capacity; `None`: not sold as spot."""
    known = [point for point in place.spot_usd_per_hour if point.at <= max(0.0, at_seconds)]
    return known[-1].usd_per_hour if known else None


def capacity(place: Place) -> Iterator[Interval]:
    """When there is spot capacity, from the epoch on; drawn capacity comes and goes for ever."""
    return iter(place.available) if place.seed is None else _drawn(place, place.seed)


def is_available(place: Place, at_seconds: float) -> bool:
    """Whether a spot machine is granted at that time."""
    return bool(place.spot_usd_per_hour) and _interval_at(place, at_seconds) is not None


def next_outage(place: Place, at_seconds: float) -> Outage | None:
    """The preemption that awaits a spot machine granted at that time; `None`: it is never preempted.

    Raises: ValueError: nothing is granted at that time.
    """
    interval = _interval_at(place, at_seconds)
    if interval is None:
        raise ValueError(f"{place.instance_type} has no spot capacity at {at_seconds:g} s")
    if interval.end is None:
        return None
    return Outage(
        at_seconds=interval.end,
        notice=interval.notice or place.notice,
        rebalance_seconds=place.rebalance_seconds,
    )


class MarketPrices:
    """A market as a `PriceSource`. Every offer is marked as simulated."""

    def __init__(self, market: Market, clock: SystemClock) -> None:
        self._market = market
        self._epoch = clock.epoch

    def offers(self, now: datetime) -> tuple[Offer, ...]:
        at_seconds = (now - self._epoch).total_seconds()
        return tuple(offer for place in self._market.places for offer in self._of(place, at_seconds, now))

    def _of(self, place: Place, at_seconds: float, now: datetime) -> Iterator[Offer]:
        price = spot_usd_per_hour(place, at_seconds)
        if price is not None:
            yield self._offer(place, Capacity.SPOT, price, now)
        if place.on_demand_usd_per_hour is not None:
            yield self._offer(place, Capacity.ON_DEMAND, place.on_demand_usd_per_hour, now)

    def _offer(self, place: Place, capacity: Capacity, price: Decimal, now: datetime) -> Offer:
        is_spot = capacity is Capacity.SPOT
        return Offer(
            provider=place.provider,
            region=place.region,
            zone=place.zone,
            instance_type=place.instance_type,
            gpu=place.gpu,
            count=place.count,
            capacity=capacity,
            list_usd_per_hour=price,
            as_of=now.date(),
            source=f"simulated market {self._market.name or ''}".rstrip(),
            on_demand_usd_per_hour=place.on_demand_usd_per_hour,
            preemptions_per_hour=place.preemptions_per_hour if is_spot else 0.0,
            notice_seconds=place.notice.lead_seconds if is_spot else 0.0,
            simulated=True,
        )


def _interval_at(place: Place, at_seconds: float) -> Interval | None:
    for interval in capacity(place):
        if interval.end is None or interval.end > at_seconds:
            return interval if interval.start <= at_seconds else None
    return None


def _drawn(place: Place, seed: int) -> Iterator[Interval]:
    source = random.Random(f"{seed}/{place.key}")  # noqa: S311  # a market, not a secret
    hours = -float(_WARM_UP_HOURS)
    while True:
        end_hours = hours + _spell_hours(source, _UP_ENDS)
        if end_hours > 0:
            yield Interval.model_construct(start=max(0.0, hours * 3600), end=end_hours * 3600)
        hours = end_hours + _spell_hours(source, _DOWN_ENDS)


def _spell_hours(source: random.Random, ends: tuple[tuple[float, float], ...]) -> float:
    """Length of a spell whose rate of ending depends on its age: the age at which the summed rate reaches Exp(1)."""
    left, age = -math.log(1.0 - source.random()), 0.0
    for until, rate in ends:
        if left < (until - age) * rate:
            return age + left / rate
        left -= (until - age) * rate
        age = until
    raise AssertionError("the last bucket has no end")


def _key(offer: Offer) -> tuple[str, str, str | None, str]:
    return offer.provider, offer.region, offer.zone, offer.instance_type


def _terms(spot: Offer | None, on_demand: Offer | None) -> dict[str, object]:
    """A place's fields, as far as its offers tell them."""
    offer = spot or on_demand
    assert offer is not None
    form = notice_sources(offer.provider)[0] if offer.notice_seconds else "none"
    return {
        "provider": offer.provider,
        "region": offer.region,
        "zone": offer.zone,
        "instance_type": offer.instance_type,
        "gpu": offer.gpu,
        "count": offer.count,
        "spot_usd_per_hour": spot.list_usd_per_hour if spot else (),
        "on_demand_usd_per_hour": on_demand.list_usd_per_hour if on_demand else offer.on_demand_usd_per_hour,
        "notice": {"via": form, "seconds": offer.notice_seconds},
        "preemptions_per_hour": spot.preemptions_per_hour if spot else None,
    }
