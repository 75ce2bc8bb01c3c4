"""The price book, the GPU types and the tariffs that come with the package: `launcher/data/*.csv`.

Lines that begin with `#` say where a file's figures come from. An empty cell is unknown.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files

from launcher.core.gpus import Gpu, GpuCatalog
from launcher.core.gravity import Continents, Requests, Tariff, Tariffs, Tranche, flat
from launcher.core.offers import Capacity, Offer

# Warning before a preemption, seconds. A provider that is not here counts as giving none: Vast pauses an
# outbid machine at once; for OCI, Nebius and Verda no time was found.
NOTICE_SECONDS = {
    "aws": 120.0,  # EC2 user guide, spot-instance-termination-notices: two minutes, best effort
    "gcp": 30.0,  # Compute Engine docs, preemptible and spot: 30 s between soft-off and power-off, best effort
    "azure": 30.0,  # Scheduled Events, event type Preempt: at least 30 s, best effort
    "runpod": 5.0,  # SIGTERM, then SIGKILL after about 5 s: platform profiles of third parties, not the vendor
}


class SnapshotPrices:
    """`PriceSource` over the price book: the same offers at every instant, each with the date of its price."""

    def offers(self, now: datetime) -> tuple[Offer, ...]:
        return _offers()


@cache
def load_catalog() -> GpuCatalog:
    """All GPU types and the benchmark that compares them."""
    throughput = {
        row["name"]: {key: float(value) for key, value in row.items() if key not in {"name", "source"}}
        for row in _rows("relative_throughput.csv")
    }
    return GpuCatalog(gpus=tuple(_gpu(row) for row in _rows("gpus.csv")), throughput=throughput)


@cache
def load_tariffs() -> Tariffs:
    """Egress, storage, requests and NAT gateways, as published."""
    pairs = {(row["from_region"], row["to_region"]): Decimal(row["usd_per_gb"]) for row in _rows("interregion_aws.csv")}
    egress, storage = list(_rows("egress.csv")), list(_rows("storage.csv"))
    return Tariffs(
        internet=_tariffs(row for row in egress if row["scope"] == "internet"),
        inter_zone=_tariffs(row for row in egress if row["scope"] == "inter_zone"),
        pairs={"aws": pairs},
        continents=_continents(),
        nat={row["provider"]: flat(Decimal(row["usd_per_gb"]), note=row["note"]) for row in _rows("nat.csv")},
        requests={row["provider"]: _requests(row) for row in storage if row["put_usd_per_1000"]},
        storage_usd_per_gb_month={row["provider"]: Decimal(row["usd_per_gb_month"]) for row in storage},
    )


def _continents() -> dict[str, Continents]:
    begins: dict[str, dict[str, str]] = defaultdict(dict)
    prices: dict[str, dict[tuple[str, str], Decimal]] = defaultdict(dict)
    for row in _rows("continents.csv"):
        begins[row["provider"]][row["begins"]] = row["continent"]
    for row in _rows("intercontinental.csv"):
        prices[row["provider"]][row["from_continent"], row["to_continent"]] = Decimal(row["usd_per_gb"])
    return {provider: Continents(begins=begins[provider], usd_per_gb=prices[provider]) for provider in prices}


def _requests(row: dict[str, str]) -> Requests:
    return Requests(
        put_usd=Decimal(row["put_usd_per_1000"]) / 1000,
        get_usd=Decimal(row["get_usd_per_1000"]) / 1000,
    )


@cache
def _offers() -> tuple[Offer, ...]:
    return tuple(offer for row in _rows("offers.csv") for offer in _both(row))


def _both(row: dict[str, str]) -> Iterator[Offer]:
    """A row's on-demand and spot offer, as far as it has a price for them."""
    on_demand, spot = _usd(row["on_demand_usd_per_hour"]), _usd(row["spot_usd_per_hour"])
    if on_demand is not None:
        yield _offer(row, Capacity.ON_DEMAND, on_demand, on_demand)
    if spot is not None:
        yield _offer(row, Capacity.SPOT, spot, on_demand)


def _offer(row: dict[str, str], capacity: Capacity, listed: Decimal, on_demand: Decimal | None) -> Offer:
    return Offer(
        provider=row["provider"],
        region=row["region"],
        zone=row["zone"] or None,
        instance_type=row["instance_type"],
        gpu=row["gpu"],
        count=int(row["count"]),
        capacity=capacity,
        list_usd_per_hour=listed,
        as_of=_date(row["as_of"]),
        source=row["source"],
        on_demand_usd_per_hour=on_demand,
        notice_seconds=NOTICE_SECONDS.get(row["provider"], 0.0) if capacity is Capacity.SPOT else 0.0,
    )


def _gpu(row: dict[str, str]) -> Gpu:
    return Gpu(
        name=row["name"],
        aliases=tuple(row["aliases"].split("|")) if row["aliases"] else (),
        memory_gb=_number(row["memory_gb"]),
        bandwidth_gb_per_second=_number(row["bandwidth_gb_per_second"]),
        bf16_dense_tflops=_number(row["bf16_dense_tflops"]),
        fp16_dense_tflops=_number(row["fp16_dense_tflops"]),
        relative_throughput=row["relative_throughput"] or None,
        source=row["source"],
    )


def _tariffs(rows: Iterable[dict[str, str]]) -> dict[str, Tariff]:
    """Raises: ValueError: a tranche does not begin where the one before it ends."""
    tranches: dict[str, list[Tranche]] = defaultdict(list)
    notes: dict[str, str] = {}
    ends: dict[str, str] = {}
    for row in rows:
        provider = row["provider"]
        if row["from_gb"] != ends.get(provider, "0"):
            raise ValueError(f"egress.csv: {provider} {row['scope']} has a gap before {row['from_gb']} GB")
        ends[provider] = row["to_gb"]
        notes[provider] = notes.get(provider) or row["note"]
        tranches[provider].append(Tranche(from_gb=Decimal(row["from_gb"]), usd_per_gb=Decimal(row["usd_per_gb"])))
    return {provider: Tariff(tranches=tuple(parts), note=notes[provider]) for provider, parts in tranches.items()}


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = files("launcher").joinpath("data", name).read_text(encoding="utf-8")
    yield from csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))


def _usd(cell: str) -> Decimal | None:
    return Decimal(cell) if cell else None


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


@cache
def _date(cell: str) -> date:
    return date.fromisoformat(cell)
