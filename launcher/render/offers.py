"""The price book as a table, refused offers with their reasons; and where each provider's prices come from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from rich.console import Console

from launcher.core.offers import Offer, Price, Refusal
from launcher.render.tables import Column, Row, table
from launcher.render.words import Money

SCHEMA = "launch/offers/v1"
Priced = tuple[Offer, Price | Refusal]
RENEWALS = {
    "fetched": "prices are of now",
    "kept": "not reachable; the prices on disk stay",
    "yours": "its file was changed by hand, so SkyPilot leaves it alone; delete it to have it fetched",
    "missing": "SkyPilot has no prices of it, or they were not reachable",
}
LeftOut = Mapping[str, Mapping[str, int]]  # rows of catalogues with a GPU that is not known here, by provider and GPU


def show_offers(
    console: Console, offers: Sequence[Priced], money: Money, *, today: date, left_out: LeftOut | None = None
) -> None:
    """Cheapest first by GPU type, the refused ones last; below, how old each provider's prices are."""
    columns = (
        Column("where"),
        Column("instance", drop=3),
        Column("GPUs"),
        Column("mode"),
        Column(f"{money.sign.strip()}/GPU-h", "right", drop=1),
        Column(f"{money.sign.strip()}/h", "right"),
        Column("basis", drop=2, folds=True),
    )
    console.print(table(console, columns, [_row(offer, price, money) for offer, price in sorted(offers, key=_rank)]))
    sources = (Column("provider"), Column("offers", "right"), Column("prices of"), Column("from", folds=True))
    console.print()
    console.print(table(console, sources, [_source_row(each, today) for each in _sources(offers)]))
    for provider, gpus in sorted((left_out or {}).items()):
        met = ", ".join(f"{gpu} ({count} rows)" for gpu, count in sorted(gpus.items()))
        console.print(f" {provider}: left out, not known here: {met}", style="dim", soft_wrap=True)


def _sources(offers: Iterable[Priced]) -> list[dict[str, Any]]:
    """By provider: where its prices come from and of which days they are."""
    of: dict[str, list[Priced]] = defaultdict(list)
    for offer, price in offers:
        of[offer.provider].append((offer, price))
    return [
        {
            "provider": provider,
            "offers": len(priced),
            "refused": sum(isinstance(price, Refusal) for _, price in priced),
            "oldest_as_of": min(offer.as_of for offer, _ in priced),
            "newest_as_of": max(offer.as_of for offer, _ in priced),
            "sources": sorted({offer.source for offer, _ in priced}),
        }
        for provider, priced in sorted(of.items())
    ]


def _source_row(source: Mapping[str, Any], today: date) -> Row:
    oldest, newest = source["oldest_as_of"], source["newest_as_of"]
    age_days = (today - oldest).days
    days = f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
    age = "today" if age_days == 0 else f"{age_days} day{'s' if age_days > 1 else ''} old"
    refused = f", {source['refused']} refused" if source["refused"] else ""
    return (source["provider"], f"{source['offers']}{refused}", f"{days}, {age}", "; ".join(source["sources"])), ""


def _row(offer: Offer, price: Price | Refusal, money: Money) -> Row:
    known = price if isinstance(price, Price) else None
    cells = (
        offer.where,
        offer.instance_type,
        f"{offer.count}×{offer.gpu}",
        offer.capacity.value.replace("_", "-"),
        money.exact(known.usd_per_hour / offer.count) if known else "–",
        money.exact(known.usd_per_hour) if known else "–",
        price.basis if isinstance(price, Price) else f"refused: {price.reason}",
    )
    return cells, "" if known else "dim"


def offers_json(offers: Sequence[Priced], *, left_out: LeftOut | None = None) -> dict[str, Any]:
    """`launch/offers/v1`."""
    return {
        "schema": SCHEMA,
        "currency": "USD",
        "sources": [
            source
            | {key: source[key].isoformat() for key in ("oldest_as_of", "newest_as_of")}
            | {"left_out": dict((left_out or {}).get(source["provider"], {}))}
            for source in _sources(offers)
        ],
        "offers": [_entry(offer, price) for offer, price in sorted(offers, key=_rank)],
    }


def _rank(priced: Priced) -> tuple[bool, str, float, str]:
    offer, price = priced
    per_gpu = float(price.usd_per_hour) / offer.count if isinstance(price, Price) else 0.0
    return isinstance(price, Refusal), offer.gpu, per_gpu, offer.key


def _entry(offer: Offer, price: Price | Refusal) -> dict[str, Any]:
    known = isinstance(price, Price)
    return {
        "provider": offer.provider,
        "region": offer.region,
        "zone": offer.zone,
        "instance_type": offer.instance_type,
        "gpu": offer.gpu,
        "count": offer.count,
        "capacity": offer.capacity.value,
        "usd_per_hour": str(price.usd_per_hour) if isinstance(price, Price) else None,
        "marginal_usd_per_hour": str(price.marginal_usd_per_hour) if isinstance(price, Price) else None,
        "refused": None if known else price.reason if isinstance(price, Refusal) else None,
        "as_of": offer.as_of.isoformat(),
        "source": offer.source,
    }
