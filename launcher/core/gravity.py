"""What it costs to move data away from where it lies, and to keep it there.

    egress = Σ tranches: GB in the tranche · the tranche's own price        (a graduated tariff, as clouds bill it)

A tariff that nobody published is `Unknown`, never free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from launcher.core.unknown import Unknown

HOURS_PER_MONTH = 730  # 8,760 / 12: how storage priced by the month is billed by the hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Tranche:
    """From `from_gb` on, until the next tranche begins, every GB costs this."""

    from_gb: Decimal
    usd_per_gb: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Tranches of one month, ascending from 0."""

    tranches: tuple[Tranche, ...]
    note: str = ""  # what the figures leave out

    def __post_init__(self) -> None:
        """Raises: ValueError: the first tranche does not begin at 0, or they do not ascend."""
        bounds = [tranche.from_gb for tranche in self.tranches]
        if not bounds or bounds[0] != 0 or bounds != sorted(set(bounds)):
            raise ValueError(f"tranches begin at {', '.join(map(str, bounds)) or 'nothing'}; want 0, then ascending")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariffs:
    """Every known tariff; what is missing here is unknown."""

    internet: Mapping[str, Tariff] = field(default_factory=dict)  # provider → to any other provider
    inter_region: Mapping[str, Tariff] = field(default_factory=dict)  # provider → between its regions
    pairs: Mapping[str, Mapping[tuple[str, str], Decimal]] = field(default_factory=dict)  # provider → (from, to) → $/GB
    storage_usd_per_gb_month: Mapping[str, Decimal] = field(default_factory=dict)  # provider → its standard class


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What moving the data once costs, not rounded, and by which tariff."""

    usd: Decimal
    basis: str


def egress(tariffs: Tariffs, *, source: str, provider: str, region: str, gb: float) -> Egress | Unknown:
    """Reading `gb` gigabytes once from `source` (`aws/us-east-2`) at `provider`, `region`.

    The month's free tranche is counted in full: nothing is known of what else leaves in that month.
    """
    home, _, home_region = source.partition("/")
    if not home or not home_region:
        return Unknown(f"data lies in {source or 'no region'!r}; write provider/region, e.g. aws/us-east-2")
    if (home, home_region) == (provider, region):
        return Egress(usd=Decimal(0), basis="same region")
    if home == provider:
        return _within(tariffs, home, home_region, region, Decimal(str(gb)))
    return _over_internet(tariffs, home, Decimal(str(gb)), f"{home} to another provider")


def flat(usd_per_gb: Decimal) -> Tariff:
    """One price from the first GB on."""
    return Tariff(tranches=(Tranche(from_gb=Decimal(0), usd_per_gb=usd_per_gb),))


def graduated_usd(tariff: Tariff, gb: Decimal) -> Decimal:
    """Each tranche at its own price. Raises: ValueError: `gb` is negative."""
    if gb < 0:
        raise ValueError(f"{gb} GB cannot be moved; give 0 or more")
    bounds = [tranche.from_gb for tranche in tariff.tranches[1:]] + [gb]
    parts = (
        max(Decimal(0), min(gb, until) - tranche.from_gb) * tranche.usd_per_gb
        for tranche, until in zip(tariff.tranches, bounds, strict=True)
    )
    return sum(parts, Decimal(0))


def storage_usd_per_gb_hour(tariffs: Tariffs, provider: str) -> Decimal | Unknown:
    """Keeping a GB in the provider's standard class of object storage."""
    price = tariffs.storage_usd_per_gb_month.get(provider)
    if price is None:
        return Unknown(f"no storage price is known for {provider}")
    return price / HOURS_PER_MONTH


def storage_usd(tariffs: Tariffs, *, provider: str, gb: float, hours: float) -> Decimal | Unknown:
    """Keeping `gb` gigabytes for `hours`, not rounded."""
    price = tariffs.storage_usd_per_gb_month.get(provider)
    if price is None:
        return Unknown(f"no storage price is known for {provider}")
    # one division, at the end: $0.023 a GB for 730 h is $0.023 to the last digit
    return price * Decimal(str(gb)) * Decimal(str(hours)) / HOURS_PER_MONTH


def _within(tariffs: Tariffs, provider: str, from_region: str, to_region: str, gb: Decimal) -> Egress | Unknown:
    pairs = tariffs.pairs.get(provider)
    if pairs is not None:
        price = pairs.get((from_region, to_region))
        if price is None:
            return Unknown(f"no {provider} tariff is known from {from_region} to {to_region}")
        return Egress(usd=price * gb, basis=f"{provider} {from_region} to {to_region}, ${price} per GB")
    tariff = tariffs.inter_region.get(provider)
    if tariff is None:
        # two regions can always talk over the internet, so that tariff is what is known
        return _over_internet(tariffs, provider, gb, f"{provider} between regions, at its internet tariff")
    return _billed(tariff, gb, f"{provider} between regions")


def _over_internet(tariffs: Tariffs, provider: str, gb: Decimal, what: str) -> Egress | Unknown:
    tariff = tariffs.internet.get(provider)
    if tariff is None:
        return Unknown(f"no egress tariff is known for {provider}")
    return _billed(tariff, gb, what)


def _billed(tariff: Tariff, gb: Decimal, what: str) -> Egress:
    usd = graduated_usd(tariff, gb)
    reached = [tranche for tranche in tariff.tranches if tranche.from_gb < gb] or [tariff.tranches[0]]
    last = f"${reached[-1].usd_per_gb} per GB"
    tiers = last if len(reached) == 1 else f"graduated, the last at {last}"
    return Egress(usd=usd, basis=f"{what}, {tiers}" + (f" ({tariff.note})" if tariff.note else ""))
