"""One price book out of all that is known about prices.

embedded snapshot  ┐ per cloud the younger of the two as a whole: two days' prices of one cloud are not mixed,
SkyPilot catalogue ┘ and a machine that is in one of them only is gone, or not sold yet
reservations       ┐
clusters           │ pricing.yaml
own machines       ┘
live feeds           lay what a provider says now over what is listed, where the user has switched them on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.adapters.skypilot_catalog import SkypilotCatalog
from launcher.adapters.skypilot_clouds import read_clouds
from launcher.adapters.snapshot_prices import SnapshotPrices
from launcher.core.gpus import GpuCatalog
from launcher.core.offers import Offer
from launcher.core.prices.doubts import without_doubted_references
from launcher.core.prices.inventory import cluster_offers, own_offers, reserved_offers
from launcher.core.prices.pricing import Terms

if TYPE_CHECKING:
    from launcher.adapters.feeds import LiveFeeds


@dataclass(frozen=True, kw_only=True)
class PriceBook:
    """`PriceSource` over everything; without `catalogues` over what the package and the user bring along."""

    terms: Terms
    gpus: GpuCatalog
    catalogues: SkypilotCatalog | None = None
    clouds: Path | None = None  # record of the clouds that are enabled here
    live: LiveFeeds | None = None

    def offers(self, now: datetime) -> tuple[Offer, ...]:
        """Raises: InputError: pricing.yaml, a catalogue or the record of clouds is wrong."""
        today = now.date()
        known = tuple(self._listed(now))
        listed = without_doubted_references(self.live.over(known, now) if self.live else known)
        reserved = reserved_offers(self.terms, listed, catalog=self.gpus, today=today)
        clusters = cluster_offers(self.terms, catalog=self.gpus, today=today)
        own = own_offers(self.terms, catalog=self.gpus, today=today)
        return (*self._with_bars((*listed, *reserved, *clusters)), *own)

    def left_out(self) -> dict[str, Mapping[str, int]]:
        """Rows of SkyPilot's catalogues whose GPU is not known here: how many, by provider and GPU."""
        catalogues = self.catalogues.catalogues() if self.catalogues else ()
        return {c.provider: c.unknown_gpus for c in catalogues if c.unknown_gpus}

    def _listed(self, now: datetime) -> Iterator[Offer]:
        catalogues = {c.provider: c for c in (self.catalogues.catalogues() if self.catalogues else ())}
        embedded = SnapshotPrices().offers(now)
        dates = {offer.provider: offer.as_of for offer in embedded}
        younger = {p: c for p, c in catalogues.items() if p not in dates or c.as_of >= dates[p]}
        yield from (offer for offer in embedded if offer.provider not in younger)
        for catalogue in younger.values():
            yield from catalogue.offers

    def _with_bars(self, offers: Iterable[Offer]) -> Iterator[Offer]:
        clouds = read_clouds(self.clouds) if self.clouds else None
        if clouds is None:
            yield from offers
            return
        for offer in offers:
            barred = clouds.barred(offer.provider)
            yield replace(offer, barred=barred) if barred else offer
