"""The price book as people and programs read it."""

from __future__ import annotations

import io
from datetime import date
from decimal import Decimal

from rich.console import Console

from launcher.core.offers import Offer, Price, Refusal
from launcher.render.offers import offers_json, show_offers
from launcher.render.words import Money
from tests.builders import an_offer

TODAY = date(2026, 10, 18)


def priced(offer: Offer) -> tuple[Offer, Price | Refusal]:
    usd = offer.list_usd_per_hour
    if usd is None:
        return offer, Refusal(offer=offer, reason="its price is unknown")
    return offer, Price(list_usd_per_hour=usd, usd_per_hour=usd, marginal_usd_per_hour=usd, basis="list")


BOOK = [
    priced(an_offer(as_of=date(2026, 10, 18), source="SkyPilot catalogue")),
    priced(an_offer(as_of=date(2026, 10, 18), source="SkyPilot catalogue", zone="b", list_usd_per_hour=None)),
    priced(an_offer(provider="gcp", as_of=date(2026, 10, 17), source="pricing.yaml")),
    priced(an_offer(provider="gcp", as_of=date(2025, 10, 18), source="vms.csv", list_usd_per_hour=Decimal(7))),
]


def test_below_the_offers_stands_how_old_each_providers_prices_are_and_whose() -> None:
    console = Console(file=io.StringIO(), width=160)

    show_offers(console, BOOK, Money(), today=TODAY, left_out={"aws": {"Trainium": 12}})

    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]  # StringIO
    assert "aws 2, 1 refused 2026-10-18, today SkyPilot catalogue" in lines
    assert "gcp 2 2025-10-18 to 2026-10-17, 365 days old pricing.yaml; vms.csv" in lines
    assert "aws: left out, not known here: Trainium (12 rows)" in lines


def test_programs_read_the_same() -> None:
    written = offers_json(BOOK, left_out={"aws": {"Trainium": 12}})

    assert written["sources"] == [
        {
            "provider": "aws",
            "offers": 2,
            "refused": 1,
            "oldest_as_of": "2026-10-18",
            "newest_as_of": "2026-10-18",
            "sources": ["SkyPilot catalogue"],
            "left_out": {"Trainium": 12},
        },
        {
            "provider": "gcp",
            "offers": 2,
            "refused": 0,
            "oldest_as_of": "2025-10-18",
            "newest_as_of": "2026-10-17",
            "sources": ["pricing.yaml", "vms.csv"],
            "left_out": {},
        },
    ]
    assert len(written["offers"]) == 4
