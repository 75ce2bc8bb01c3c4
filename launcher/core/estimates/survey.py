"""Which offers a run could use at all, and what keeps it from the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from launcher.core.estimates.saving import checkpoint_gb, durable_seconds, save_interval_seconds, save_seconds
from launcher.core.estimates.workload import Measured, StepTime, corrected, setup_seconds, step_time
from launcher.core.gpus import GpuCatalog
from launcher.core.gravity import Tariffs
from launcher.core.hazards import fresh_preemptions_per_hour
from launcher.core.offers import SINGLE_HOSTS, Offer, Placement, Refusal
from launcher.core.prices.options import Option
from launcher.core.prices.pricing import Terms, price
from launcher.core.prices.supervision import Host
from launcher.core.prices.traffic import Traffic, cheapest_move, traffic_at
from launcher.core.spec import RunSpec
from launcher.core.unknown import Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """Everything that prices and speeds are known from."""

    offers: tuple[Offer, ...]
    terms: Terms
    tariffs: Tariffs
    catalog: GpuCatalog
    host: Callable[[Offer], Host | Unknown | None] = lambda _: None  # the supervisor's own machine for a run there


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An option, and where its numbers come from."""

    option: Option
    step: StepTime
    host: Host | None = None  # of the supervisor, where that is hired


def survey(
    spec: RunSpec, book: Book, measured: Measured, *, now: datetime, lying: Sequence[str] = ()
) -> tuple[list[Candidate], list[Refusal]]:
    """Offers of the GPU types asked for, as options or refusals; other types were not asked for and are left out.

    `lying`: homes where the run's newest checkpoint is, from which it would be moved; the newest copy first.
    """
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    search = _search(spec, book, measured, now)
    for offer in book.offers:
        if offer.gpu not in spec.gpus:
            continue
        if unwished := _unwished(offer, spec):
            refused.append(Refusal(offer=offer, reason=unwished, is_wish=True))
            continue
        found = _unfit(offer, spec) or search.candidate(offer)
        if isinstance(found, Candidate) and lying:
            found = _moved(found, spec, book, measured, lying)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            refused.append(Refusal(offer=offer, reason=found))
    return candidates, refused


def limit_in_words(spec: RunSpec) -> str:
    """The lowest limit of egress, with its name."""
    name, usd = spec.egress_limit or ("", Decimal(0))
    return f"{name} ${usd:,.2f}"


def _unwished(offer: Offer, spec: RunSpec) -> str | None:
    if spec.providers is not None and offer.provider not in spec.providers:
        return f"provider {offer.provider} is not in providers"
    if spec.regions is not None and offer.region not in spec.regions:
        return f"region {offer.region} is not in regions"
    if offer.capacity not in spec.mode:
        return f"{offer.capacity.value} is not in mode"
    return None


def _unfit(offer: Offer, spec: RunSpec) -> str | None:
    if offer.count != spec.gpus[offer.gpu]:
        return f"has {offer.count} GPUs a node; gpus asks for {spec.gpus[offer.gpu]}"
    if offer.provider in SINGLE_HOSTS and spec.nodes > 1:
        return f"{offer.provider} rents single machines; nodes asks for {spec.nodes} together"
    if offer.available_count is not None and offer.available_count < spec.nodes:
        return f"only {offer.available_count} of {spec.nodes} nodes are there"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """What is the same for many offers: tens of thousands are looked at in a second."""

    spec: RunSpec
    book: Book
    now: datetime
    speeds: Mapping[str, StepTime | Unknown]
    checkpoint_gb: float
    setup_seconds: float
    save_seconds: float
    durable_seconds: float
    intervals: dict[Hashable, float] = field(default_factory=dict)
    traffics: dict[Hashable, Traffic | Unknown] = field(default_factory=dict)
    saving: dict[Hashable, Traffic] = field(default_factory=dict)

    def candidate(self, offer: Offer) -> Candidate | str:
        paid = price(offer, self.book.terms, now=max(self.now, offer.opens_at or self.now))  # it may be the fallback
        if isinstance(paid, Refusal):
            return paid.reason
        speed = self.speeds[offer.gpu]
        if isinstance(speed, Unknown):
            return speed.reason
        host = self.book.host(offer)
        if isinstance(host, Unknown):
            return host.reason
        traffic = self._traffic(offer)
        if isinstance(traffic, Unknown):
            return traffic.reason
        if self.spec.egress_limit is not None and _least_egress_usd(self.spec, traffic) > self.spec.egress_limit[1]:
            return f"egress of ${traffic.read.egress_usd:,.2f} per read is above {limit_in_words(self.spec)}"
        placement = Placement(offer=offer, nodes=self.spec.nodes, price=paid)
        interval = self._interval_seconds(placement, speed)
        traffic = self._saving(traffic, _place(offer), interval)
        return Candidate(option=self._option(placement, speed, interval, traffic), step=speed, host=host)

    def _traffic(self, offer: Offer) -> Traffic | Unknown:
        place, data = _place(offer), self.spec.data
        key = (*place, offer.zone) if data is not None and (data.source or "").count("/") > 1 else place
        if key not in self.traffics:
            self.traffics[key] = traffic_at(self.spec, offer, self.book.tariffs, self.checkpoint_gb)
        return self.traffics[key]

    def _interval_seconds(self, placement: Placement, speed: StepTime) -> float:
        usd = placement.usd_per_hour if self.spec.checkpoint.max_loss is not None else None
        key = speed.seconds, fresh_preemptions_per_hour(placement.offer), usd
        if key not in self.intervals:
            option = self._option(placement, speed, math.inf, Traffic())
            self.intervals[key] = save_interval_seconds(self.spec, option)
        return self.intervals[key]

    def _saving(self, traffic: Traffic, place: tuple[str, str], interval_seconds: float) -> Traffic:
        """With what its saves cost."""
        key = *place, traffic.home, interval_seconds
        if not traffic.save.usd:
            return traffic
        if key not in self.saving:
            hourly = traffic.save.usd * 3600 / Decimal(str(max(1.0, interval_seconds)))
            self.saving[key] = replace(traffic, saves_usd_per_hour=hourly)
        return self.saving[key]

    def _option(self, placement: Placement, speed: StepTime, interval_seconds: float, traffic: Traffic) -> Option:
        return Option(
            placement=placement,
            step_seconds=speed.seconds,
            setup_seconds=self.setup_seconds,
            save_seconds=self.save_seconds,
            durable_seconds=self.durable_seconds,
            preemptions_per_hour=fresh_preemptions_per_hour(placement.offer),
            interval_seconds=interval_seconds,
            traffic=traffic,
        )


def _search(spec: RunSpec, book: Book, measured: Measured, now: datetime) -> _Search:
    return _Search(
        spec=spec,
        book=book,
        now=now,
        speeds={gpu: _speed(gpu, spec, book, measured) for gpu in spec.gpus},
        checkpoint_gb=checkpoint_gb(spec, measured)[0],
        setup_seconds=setup_seconds(spec, measured)[0],
        save_seconds=save_seconds(spec, measured)[0],
        durable_seconds=durable_seconds(spec, measured),
    )


def _place(offer: Offer) -> tuple[str, str]:
    return offer.provider, offer.region


def _moved(found: Candidate, spec: RunSpec, book: Book, measured: Measured, lying: Sequence[str]) -> Candidate | str:
    gb, _ = checkpoint_gb(spec, measured)
    move = cheapest_move(spec, book.tariffs, lying, found.option.traffic.home, gb)
    if isinstance(move, Unknown):
        return move.reason
    home, charge = move
    return replace(found, option=replace(found.option, move_from=home, move_usd=charge.usd))


def _least_egress_usd(spec: RunSpec, traffic: Traffic) -> Decimal:
    """Of a machine that lives until the end."""
    return traffic.read.egress_usd * Decimal(str(max(1.0, spec.data.reads if spec.data else 0.0)))


def _speed(gpu: str, spec: RunSpec, book: Book, measured: Measured) -> StepTime | Unknown:
    known = step_time(
        gpu,
        workload=spec.workload,
        gpus=spec.gpus,
        nodes=spec.nodes,
        history=measured.history,
        catalog=book.catalog,
    )
    return known if isinstance(known, Unknown) else corrected(known, measured.corrections.get(known.kind))
