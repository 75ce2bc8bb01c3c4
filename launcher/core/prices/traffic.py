"""What a run's bytes cost beside its machines: data that is read, checkpoints that are saved, restored and moved along.

    read      egress from the data's bucket to the GPU, a NAT gateway's share where there is one, GET requests
    save      egress from the GPU to the checkpoints' home, the same share, PUT requests; restore: the way back
    move      egress from one home to another, once, when the run goes on elsewhere; GET and PUT requests

A home is the folder where a place's run folders are made. One that is no bucket costs nothing here: it is a disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from launcher.core.gravity import Egress, Tariffs, egress, nat_usd, requests_of, store_of
from launcher.core.offers import Offer
from launcher.core.spec import RunSpec
from launcher.core.unknown import Unknown

OWN = frozenset({"local", "slurm", "kubernetes"})  # the user's own line: what leaves there is on no cloud's bill
CHUNK_BYTES = 16 << 20  # one request of a save or a restore; a test holds it to the hooks' own
_EXABYTE = 1e9  # in gigabytes: more than any tariff's last tranche begins at
READ_BYTES = 8 << 20  # of a request to a large object: what boto3 and its like ask for at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What moving something once costs, not rounded; `egress_usd` with a NAT gateway's share.

    Checkpoints are moved again and again: each GB pays its tariff's dearest tranche.
    """

    egress_usd: Decimal = Decimal(0)
    requests_usd: Decimal = Decimal(0)
    basis: str = ""

    @property
    def usd(self) -> Decimal:
        return self.egress_usd + self.requests_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """At one place: one read of the data, one save, one restore; and what the run's saves together cost an hour."""

    home: str | None = None
    read: Charge = Charge()
    save: Charge = Charge()
    restore: Charge = Charge()
    checkpoint_gb: float = 0.0  # of the one that is saved and restored
    saves_usd_per_hour: Decimal = Decimal(0)

    @property
    def save_usd_per_gb(self) -> Decimal:
        return usd_per_gb(self.save.usd, self.checkpoint_gb)

    @property
    def restore_usd_per_gb(self) -> Decimal:
        return usd_per_gb(self.restore.usd, self.checkpoint_gb)


def checkpoint_home(spec: RunSpec, offer: Offer) -> str | None:
    """Where run folders of a place are made: its region's, its provider's, else the run's. `None`: the default."""
    buckets = spec.checkpoint.buckets
    uri = buckets.get(_place(offer)) or buckets.get(offer.provider) or spec.checkpoint.uri
    return uri and uri.rstrip("/")


def homes(spec: RunSpec) -> tuple[str, ...]:
    """Every home that the run may have, but the default one."""
    uris = (*spec.checkpoint.buckets.values(), spec.checkpoint.uri)
    return tuple(dict.fromkeys(uri.rstrip("/") for uri in uris if uri))


def home_region(spec: RunSpec, home: str | None) -> str | Unknown | None:
    """`provider/region` of a home, as declared or as its bucket said; `None`: it is no bucket."""
    store = store_of(home)
    if store is None or home is None:
        return None
    if spec.checkpoint.region and home == (spec.checkpoint.uri or "").rstrip("/"):
        return spec.checkpoint.region
    places = (place for place, uri in spec.checkpoint.buckets.items() if uri.rstrip("/") == home)
    beside = next((place for place in places if place.startswith(f"{store}/")), None)
    known = beside or spec.checkpoint.regions.get(home)
    return known or Unknown(f"nobody said where the bucket of {home} is; write checkpoint.region, e.g. aws/us-east-2")


def read_charge(spec: RunSpec, offer: Offer, tariffs: Tariffs) -> Charge | Unknown:
    """Reading the data once. A size that is only a lower bound is enough where a GB costs nothing."""
    data = spec.data
    if data is None or data.gb is None or data.source is None:
        return Charge(basis="no data to move" if data is None else "no bucket: nothing leaves a cloud")
    times = max(1.0, data.reads)
    in_all = _to(tariffs, data.source, offer, data.gb * times)
    if isinstance(in_all, Unknown):
        return in_all
    carried = replace(in_all, usd=in_all.usd / Decimal(str(times)))
    gateway = _gateway(spec, offer, tariffs, data.gb)
    if isinstance(gateway, Unknown):
        return gateway
    usd = carried.usd + gateway.usd
    if not data.is_whole and not _is_free(spec, offer, tariffs, data.source):
        return Unknown(
            f"the data has at least {size(data.gb)} (its listing was not finished): a read costs at least ${usd:,.2f}; "
            "write data.size to plan for it"
        )
    prices, _ = requests_of(tariffs, data.source.partition("/")[0])
    gets = max(data.found.num_objects if data.found else 0, math.ceil(data.gb * 1e9 / READ_BYTES))
    return Charge(egress_usd=usd, requests_usd=gets * prices.get_usd, basis=carried.basis + gateway.basis)


def checkpoint_charges(spec: RunSpec, offer: Offer, tariffs: Tariffs, gb: float) -> tuple[Charge, Charge] | Unknown:
    """One save of `gb` gigabytes to the place's home, and one restore from it."""
    home = checkpoint_home(spec, offer)
    region = home_region(spec, home)
    if region is None:
        return Charge(basis="no bucket"), Charge(basis="no bucket")
    if isinstance(region, Unknown):
        return region
    gateway = _gateway(spec, offer, tariffs, gb)
    if isinstance(gateway, Unknown):
        return gateway
    saved = _from(tariffs, offer, region, gb)
    if isinstance(saved, Unknown):
        return saved
    restored = _to(tariffs, region, offer, gb, is_repeated=True)
    if isinstance(restored, Unknown):
        return restored
    prices, _ = requests_of(tariffs, region.partition("/")[0])
    requests = _chunks(gb) + 1  # and the manifest
    return (
        Charge(egress_usd=saved.usd + gateway.usd, requests_usd=requests * prices.put_usd, basis=saved.basis),
        Charge(egress_usd=restored.usd + gateway.usd, requests_usd=requests * prices.get_usd, basis=restored.basis),
    )


def traffic_at(spec: RunSpec, offer: Offer, tariffs: Tariffs, gb: float) -> Traffic | Unknown:
    """All of it at one place, with checkpoints of `gb` gigabytes; how often they are saved is not known here."""
    read = read_charge(spec, offer, tariffs)
    if isinstance(read, Unknown):
        return read
    charges = checkpoint_charges(spec, offer, tariffs, gb)
    if isinstance(charges, Unknown):
        return charges
    save, restore = charges
    home = checkpoint_home(spec, offer)
    return Traffic(home=home, read=read, save=save, restore=restore, checkpoint_gb=gb)


def cheapest_move(
    spec: RunSpec, tariffs: Tariffs, lying: Sequence[str], to_home: str | None, gb: float
) -> tuple[str, Charge] | Unknown:
    """From which of the homes where the newest checkpoint lies it is brought to another; at like cost, the first."""
    found = {home: move_charge(spec, tariffs, from_home=home, to_home=to_home, gb=gb) for home in lying}
    known = [(home, charge) for home, charge in found.items() if isinstance(charge, Charge)]
    unknown = (charge for charge in found.values() if isinstance(charge, Unknown))
    return min(known, key=lambda one: one[1].usd) if known else next(unknown)


def move_charge(
    spec: RunSpec, tariffs: Tariffs, *, from_home: str | None, to_home: str | None, gb: float
) -> Charge | Unknown:
    """Taking one checkpoint of `gb` gigabytes from one home to another."""
    if from_home == to_home:
        return Charge(basis="the same bucket")
    old = home_region(spec, from_home)
    if isinstance(old, Unknown):
        return old
    new = home_region(spec, to_home)
    if isinstance(new, Unknown):
        return new
    requests = _chunks(gb) + 1
    getting = requests_of(tariffs, old.partition("/")[0])[0].get_usd if old else Decimal(0)
    putting = requests_of(tariffs, new.partition("/")[0])[0].put_usd if new else Decimal(0)
    usd, basis = Decimal(0), "from a disk of your own"
    if old is not None:
        provider, _, region = (new or "local/here").partition("/")
        carried = egress(tariffs, source=old, provider=provider, region=region, gb=gb, is_repeated=True)
        if isinstance(carried, Unknown):
            return carried
        usd, basis = carried.usd, carried.basis
    return Charge(egress_usd=usd, requests_usd=requests * (getting + putting), basis=basis)


def size(gb: float) -> str:
    """As people write it: 1.2 TB, 500 GB, 80 MB."""
    for unit, scale in (("PB", 1e6), ("TB", 1e3), ("GB", 1.0)):
        if gb >= scale:
            return f"{gb / scale:.3g} {unit}"
    return f"{gb * 1e3:.3g} MB"


def usd_per_gb(usd: Decimal, gb: float) -> Decimal:
    return usd / Decimal(str(gb)) if gb else Decimal(0)


def _to(tariffs: Tariffs, source: str, offer: Offer, gb: float, *, is_repeated: bool = False) -> Egress | Unknown:
    if source.partition("/")[0] in OWN:
        return Egress(usd=Decimal(0), basis="over your own line")
    return egress(
        tariffs,
        source=source,
        provider=offer.provider,
        region=offer.region,
        zone=offer.zone,
        gb=gb,
        is_repeated=is_repeated,
    )


def _from(tariffs: Tariffs, offer: Offer, region: str, gb: float) -> Egress | Unknown:
    if offer.provider in OWN:
        return Egress(usd=Decimal(0), basis="over your own line")
    provider, _, there = region.partition("/")
    return egress(tariffs, source=_place(offer), provider=provider, region=there, gb=gb, is_repeated=True)


def _is_free(spec: RunSpec, offer: Offer, tariffs: Tariffs, source: str) -> bool:
    """However much it is: a tariff's free first gigabytes do not count."""
    carried, gateway = _to(tariffs, source, offer, _EXABYTE), _gateway(spec, offer, tariffs, _EXABYTE)
    return isinstance(carried, Egress) and isinstance(gateway, Egress) and not carried.usd + gateway.usd


def _gateway(spec: RunSpec, offer: Offer, tariffs: Tariffs, gb: float) -> Egress | Unknown:
    if spec.data is None or offer.provider not in spec.data.nat:
        return Egress(usd=Decimal(0), basis="")
    usd = nat_usd(tariffs, offer.provider, gb)
    return usd if isinstance(usd, Unknown) else Egress(usd=usd, basis=f", through a NAT gateway: ${usd:,.2f} of it")


def _chunks(gb: float) -> int:
    return math.ceil(gb * 1e9 / CHUNK_BYTES)


def _place(offer: Offer) -> str:
    return f"{offer.provider}/{offer.region}"
