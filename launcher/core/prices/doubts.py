"""Why the price of an offer is not believed.

Catalogues are made by programs that read other people's price lists. What went wrong there before is looked for here,
one offer at a time, so that the same offer is refused wherever it turns up: in a plan, in `launch offers`, in a resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from decimal import Decimal

from launcher.core.offers import Capacity, Offer

# Google Cloud, US dollars per GPU and hour, host included: (reserved ahead, by the hour), each where it is lowest.
# SkyPilot's catalogue took the one for the other in some regions until May 2026 (skypilot-org/skypilot PR 9634,
# "DWS Defined Duration"); both stand side by side in skypilot-org/skypilot-catalog gcp/vms.csv @ 006059e.
_GCP_RATES = {
    "A100-40GB": (Decimal("2.22"), Decimal("3.48")),
    "A100-80GB": (Decimal("2.95"), Decimal("5.52")),
    "H100": (Decimal("5.38"), Decimal("10.98")),
    "H200": (Decimal("6.19"), Decimal("10.84")),
    "B200": (Decimal("8.05"), Decimal("11.28")),
}

# GPUs in a machine whose catalogue row says otherwise. Microsoft Learn, ND-H100-v5 series: eight.
_GPUS_IN = {("azure", "Standard_ND96isr_H100_v5"): 8}

# Compute Engine docs, accelerator-optimized machines: A3 High with fewer than eight GPUs is spot or flex-start only.
_GCP_WITHOUT_ON_DEMAND = ("a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g")

# EC2 and Azure advertise spot at up to 90 % off, Google at 60 to 91 % (cloud.google.com/spot-vms). The lowest that the
# embedded price book has is 10 %.
_LEAST_SPOT_PERCENT = 5


def doubt(offer: Offer, *, today: date, max_age_days: int, max_spot_above_on_demand_percent: Decimal) -> str | None:
    """What speaks against renting at the listed price, as a half-sentence; `None`: nothing that is known here."""
    listed = offer.list_usd_per_hour
    if offer.barred is not None:
        return offer.barred
    if listed is None:
        return "its price is unknown"
    if not _is_price(listed):
        return f"its price is ${listed} an hour; nobody rents out for that"
    age_days = (today - offer.as_of).days
    if age_days > max_age_days:
        return f"its price is of {offer.as_of}, {age_days} days old; at most {max_age_days} (pricing.yaml)"
    match offer.capacity:
        case Capacity.RESERVED:
            return None
        case Capacity.ON_DEMAND:
            return _miscounted(offer) or _unsold(offer) or _reserved_ahead(offer, listed)
        case Capacity.SPOT:
            on_demand = offer.on_demand_usd_per_hour
            return _miscounted(offer) or _odd_spot(listed, on_demand, max_spot_above_on_demand_percent)


def without_doubted_references(offers: Iterable[Offer]) -> tuple[Offer, ...]:
    """As given; spot whose on-demand price is doubted does not quote it: what it saves is unknown there."""
    return tuple(replace(o, on_demand_usd_per_hour=None) if _misquotes(o) else o for o in offers)


def _miscounted(offer: Offer) -> str | None:
    count = _GPUS_IN.get((offer.provider, offer.instance_type), offer.count)
    if count == offer.count:
        return None
    return f"it is listed with {offer.count} GPUs and has {count}, so its price per GPU is wrong"


def _unsold(offer: Offer) -> str | None:
    if offer.provider != "gcp" or offer.instance_type not in _GCP_WITHOUT_ON_DEMAND or offer.simulated:
        return None
    return f"Google rents {offer.instance_type} as spot or flex-start only, so its on-demand price is nobody's"


def _reserved_ahead(offer: Offer, usd_per_hour: Decimal) -> str | None:
    """Nearer, as a ratio, to what Google asks for capacity reserved ahead than to what it asks by the hour."""
    rates = _GCP_RATES.get(offer.gpu) if offer.provider == "gcp" and not offer.simulated else None
    if rates is None:
        return None
    ahead, hourly = rates
    per_gpu = usd_per_hour / offer.count
    if per_gpu * per_gpu >= ahead * hourly:
        return None
    return (
        f"${per_gpu:.2f} a GPU and hour is what Google asks for capacity reserved ahead (from ${ahead}); "
        f"by the hour it is ${hourly} or more"
    )


def _odd_spot(listed: Decimal, on_demand: Decimal | None, max_above_percent: Decimal) -> str | None:
    if on_demand is None or not _is_price(on_demand):
        return None
    if listed > on_demand * (100 + max_above_percent) / 100:
        return f"spot at ${listed} is dearer than on-demand at ${on_demand}: one of the two is wrong"
    if listed * 100 < on_demand * _LEAST_SPOT_PERCENT:
        return f"spot at ${listed} is under {_LEAST_SPOT_PERCENT} % of on-demand at ${on_demand}; no cloud goes so low"
    return None


def _misquotes(offer: Offer) -> bool:
    quoted = offer.on_demand_usd_per_hour
    if offer.capacity is not Capacity.SPOT or quoted is None:
        return False
    return not _is_price(quoted) or _unsold(offer) is not None or _reserved_ahead(offer, quoted) is not None


def _is_price(usd: Decimal) -> bool:
    return usd.is_finite() and usd > 0
