"""Which offers a run could use at all, and what keeps it from the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from launcher.core.gpus import GpuCatalog
from launcher.core.gravity import Tariffs
from launcher.core.hazards import fresh_preemptions_per_hour
from launcher.core.offers import SINGLE_HOSTS, Offer, Placement, Refusal
from launcher.core.options import Option
from launcher.core.pricing import Terms, price
from launcher.core.saving import checkpoint_gb, durable_seconds, save_interval_seconds, save_seconds
from launcher.core.spec import RunSpec
from launcher.core.supervision import Host
from launcher.core.traffic import Traffic, cheapest_move, traffic_at
from launcher.core.unknown import Unknown
from launcher.core.workload import Measured, StepTime, corrected, setup_seconds, step_time


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
    speeds: dict[str, StepTime | Unknown] = {}
    for offer in book.offers:
        if offer.gpu not in spec.gpus:
            continue
        if offer.gpu not in speeds:
            speeds[offer.gpu] = _speed(offer.gpu, spec, book, measured)
        if unwished := _unwished(offer, spec):
            refused.append(Refusal(offer=offer, reason=unwished, is_wish=True))
            continue
        found = _unfit(offer, spec) or _candidate(offer, spec, book, measured, speeds[offer.gpu], now)
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


def _candidate(
    offer: Offer, spec: RunSpec, book: Book, measured: Measured, speed: StepTime | Unknown, now: datetime
) -> Candidate | str:
    paid = price(offer, book.terms, now=max(now, offer.opens_at or now))  # a later one may be the fallback
    if isinstance(paid, Refusal):
        return paid.reason
    if isinstance(speed, Unknown):
        return speed.reason
    host = book.host(offer)
    if isinstance(host, Unknown):
        return host.reason
    traffic = traffic_at(spec, offer, book.tariffs, checkpoint_gb(spec, measured)[0])
    if isinstance(traffic, Unknown):
        return traffic.reason
    if spec.egress_limit is not None and _least_egress_usd(spec, traffic) > spec.egress_limit[1]:
        return f"egress of ${traffic.read.egress_usd:,.2f} per read is above {limit_in_words(spec)}"
    option = Option(
        placement=Placement(offer=offer, nodes=spec.nodes, price=paid),
        step_seconds=speed.seconds,
        setup_seconds=setup_seconds(spec, measured)[0],
        save_seconds=save_seconds(spec, measured)[0],
        durable_seconds=durable_seconds(spec, measured),
        preemptions_per_hour=fresh_preemptions_per_hour(offer),
    )
    interval = save_interval_seconds(spec, option)
    hourly = traffic.save.usd * 3600 / Decimal(str(max(1.0, interval)))
    option = replace(option, interval_seconds=interval, traffic=replace(traffic, saves_usd_per_hour=hourly))
    return Candidate(option=option, step=speed, host=host)


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
