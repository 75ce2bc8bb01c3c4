"""What it costs to move data away from where it lies, and to keep it there.

    egress = Σ tranches: GB in the tranche · the tranche's own price        (a graduated tariff, as clouds bill it)

Between two regions of one provider the first that is known counts: the tariff of the pair, that of their continents,
that of the internet. A tariff that nobody published is `Unknown`, never free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from launcher.core.unknown import Unknown

HOURS_PER_MONTH = 730  # 8,760 / 12: how storage priced by the month is billed by the hour
STORES: Mapping[str, str] = {
    **dict.fromkeys(("s3", "s3a"), "aws"),
    **dict.fromkeys(("gs", "gcs"), "gcp"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
}  # whose buckets a URI's scheme names
ANY = "*"


def store_of(uri: str | None) -> str | None:
    """The provider whose bucket `uri` names; `None`: it is no bucket."""
    scheme, separator, _ = (uri or "").partition("://")
    return STORES.get(scheme) if separator else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a store said of the objects below a URI, when asked."""

    region: str | None  # provider/region; None: it does not say
    gb: float  # at least so much, where the listing is not complete
    is_complete: bool
    num_objects: int
    basis: str  # who said so
    at: datetime


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
class Requests:
    """US dollars for one request to a store."""

    put_usd: Decimal
    get_usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Continents:
    """One provider's prices by continent: `(from, to) → $/GB`, where either may be `ANY`; of several, the dearest."""

    begins: Mapping[str, str]  # how a region's name begins → its continent
    usd_per_gb: Mapping[tuple[str, str], Decimal]

    def of(self, region: str) -> str | None:
        fitting = [begin for begin in self.begins if region.startswith(begin)]
        return self.begins[max(fitting, key=len)] if fitting else None

    def price(self, from_: str, to: str) -> Decimal | None:
        if (from_, to) in self.usd_per_gb:
            return self.usd_per_gb[from_, to]
        fitting = ((from_, ANY), (ANY, to), (ANY, ANY))
        return max((self.usd_per_gb[pair] for pair in fitting if pair in self.usd_per_gb), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariffs:
    """Every known tariff, by provider; what is missing here is unknown."""

    internet: Mapping[str, Tariff] = field(default_factory=dict)  # to any other provider
    inter_zone: Mapping[str, Tariff] = field(default_factory=dict)  # between zones of a region, both directions
    pairs: Mapping[str, Mapping[tuple[str, str], Decimal]] = field(default_factory=dict)  # (from, to) → $/GB
    continents: Mapping[str, Continents] = field(default_factory=dict)
    nat: Mapping[str, Tariff] = field(default_factory=dict)  # a NAT gateway's, for each GB in either direction
    requests: Mapping[str, Requests] = field(default_factory=dict)
    storage_usd_per_gb_month: Mapping[str, Decimal] = field(default_factory=dict)  # its standard class


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What moving the data once costs, not rounded, and by which tariff."""

    usd: Decimal
    basis: str


def egress(
    tariffs: Tariffs,
    *,
    source: str,
    provider: str,
    region: str,
    gb: float,
    zone: str | None = None,
    is_repeated: bool = False,
) -> Egress | Unknown:
    """Reading `gb` gigabytes once from `source` (`aws/us-east-2`, or a zone's: `aws/us-east-2/use2-az1`) at a place.

    The month's free tranche is counted in full: nothing is known of what else leaves in that month. What `is_repeated`
    pays the dearest tranche for every GB: a free one is used up once.
    """
    if is_repeated:
        tariffs = replace(tariffs, internet={name: _dearest(tariff) for name, tariff in tariffs.internet.items()})
    home, _, rest = source.partition("/")
    home_region, _, home_zone = rest.partition("/")
    if not home or not home_region:
        return Unknown(f"data lies in {source or 'no region'!r}; write provider/region, e.g. aws/us-east-2")
    amount = Decimal(str(gb))
    if home != provider:
        return _over_internet(tariffs, home, amount, f"{home} to another provider")
    if home_region != region:
        return _within(tariffs, home, home_region, region, amount)
    if home_zone in ("", zone):
        return Egress(usd=Decimal(0), basis="same region")
    return _between_zones(tariffs, home, amount)


def flat(usd_per_gb: Decimal, *, note: str = "") -> Tariff:
    """One price from the first GB on."""
    return Tariff(tranches=(Tranche(from_gb=Decimal(0), usd_per_gb=usd_per_gb),), note=note)


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


def _dearest(tariff: Tariff) -> Tariff:
    return flat(max(tranche.usd_per_gb for tranche in tariff.tranches), note=tariff.note)


def nat_usd(tariffs: Tariffs, provider: str, gb: float) -> Decimal | Unknown:
    """What the provider's NAT gateway takes for `gb` gigabytes in either direction, not rounded."""
    tariff = tariffs.nat.get(provider)
    if tariff is None:
        return Unknown(f"no NAT gateway tariff is known for {provider}")
    return graduated_usd(tariff, Decimal(str(gb)))


def requests_of(tariffs: Tariffs, provider: str) -> tuple[Requests, str]:
    """A store's prices of requests and their source; the dearest that are known bound those that nobody published."""
    known = tariffs.requests.get(provider)
    if known is not None:
        return known, f"{provider}'s price list"
    dearest = Requests(
        put_usd=max((one.put_usd for one in tariffs.requests.values()), default=Decimal(0)),
        get_usd=max((one.get_usd for one in tariffs.requests.values()), default=Decimal(0)),
    )
    return dearest, f"{provider}'s own price is unknown: the dearest that is known"


def _between_zones(tariffs: Tariffs, provider: str, gb: Decimal) -> Egress | Unknown:
    tariff = tariffs.inter_zone.get(provider)
    if tariff is None:
        return Unknown(f"no {provider} tariff is known between zones of a region")
    return _billed(tariff, gb, f"{provider} between zones")


def _within(tariffs: Tariffs, provider: str, from_region: str, to_region: str, gb: Decimal) -> Egress | Unknown:
    pairs = tariffs.pairs.get(provider)
    if pairs is not None:
        price = pairs.get((from_region, to_region))
        if price is None:
            return Unknown(f"no {provider} tariff is known from {from_region} to {to_region}")
        return Egress(usd=price * gb, basis=f"{provider} {from_region} to {to_region}, ${price} per GB")
    continents = tariffs.continents.get(provider)
    if continents is not None:
        return _between_continents(continents, provider, from_region, to_region, gb)
    # two regions can always talk over the internet, so that tariff is what is known
    return _over_internet(tariffs, provider, gb, f"{provider} between regions, at its internet tariff")


def _between_continents(
    continents: Continents, provider: str, from_region: str, to_region: str, gb: Decimal
) -> Egress | Unknown:
    home, there = continents.of(from_region), continents.of(to_region)
    if home is None or there is None:
        return Unknown(f"nobody knows on which continent {provider}'s {to_region if home else from_region} is")
    price = continents.price(home, there)
    if price is None:
        return Unknown(f"no {provider} tariff is known from {home} to {there}")
    way = f"between regions of {home}" if home == there else f"{home} to {there}"
    return Egress(usd=price * gb, basis=f"{provider} {way}, ${price} per GB")


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
