"""The price book as a table, refused offers with their reasons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console

from launcher.core.offers import Offer, Price, Refusal
from launcher.render.tables import Column, Row, table
from launcher.render.words import Money

SCHEMA = "launch/offers/v1"
Priced = tuple[Offer, Price | Refusal]


def show_offers(console: Console, offers: Iterable[Priced], money: Money) -> None:
    """Cheapest first by GPU type, the refused ones last."""
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


def offers_json(offers: Iterable[Priced]) -> dict[str, Any]:
    """`launch/offers/v1`."""
    return {
        "schema": SCHEMA,
        "currency": "USD",
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
