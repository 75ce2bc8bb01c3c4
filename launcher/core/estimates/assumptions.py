"""Every number that an estimate rests on, in words, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

from launcher.core.estimates.estimate import Assumption
from launcher.core.estimates.saving import interval_basis, save_seconds, storage_usd_per_gb_month, unkept_loss_usd
from launcher.core.estimates.sightings import LATELY
from launcher.core.estimates.weather import Habits
from launcher.core.estimates.workload import Measured, StepTime, setup_seconds
from launcher.core.gravity import Tariffs, requests_of
from launcher.core.offers import Capacity
from launcher.core.prices.options import Option
from launcher.core.prices.supervision import Host
from launcher.core.prices.traffic import Traffic, size
from launcher.core.spec import Data, RunSpec


def assumptions(
    spec: RunSpec,
    measured: Measured,
    option: Option,
    *,
    step: StepTime,
    interval_seconds: float,
    tariffs: Tariffs,
    host: Host | None = None,
) -> tuple[Assumption, ...]:
    """What the estimate at `option` takes for granted."""
    offer, traffic = option.placement.offer, option.traffic
    setup, setup_source = setup_seconds(spec, measured)
    save, save_source = save_seconds(spec, measured)
    interval, interval_source = interval_basis(spec, option)
    storage, storage_source, _ = storage_usd_per_gb_month(offer, tariffs, uri=traffic.home)
    hourly = option.placement.usd_per_hour.quantize(Decimal("0.01"))
    of_what = "cost beside the market " if step.correction else ""  # finished runs are judged by what they cost
    times = f"{step.seconds:.4g} s, {of_what}80 % within ×/÷ {step.factor80:.2f}"
    saves = f"{save:.3g} s for a save every {interval_seconds / 60:.1f} min"
    if (unkept_usd := unkept_loss_usd(spec, option)) is not None:
        saves += f"; an interruption may cost ${unkept_usd:,.2f}, more than checkpoint.max_loss"
    return (
        Assumption(name="step time", value=times, source=step.source),
        Assumption(name="price", value=f"${hourly}/h", source=f"{option.placement.price.basis}; {offer.source}"),
        Assumption(name="set-up", value=f"{setup:.0f} s a start", source=setup_source),
        Assumption(name="save", value=saves, source=save_source),
        Assumption(name="save interval", value=interval, source=interval_source),
        Assumption(name="storage", value=f"${storage} per GB and month", source=storage_source),
        *_of_data(spec.data, traffic, tariffs),
        *_of_checkpoints(traffic),
        *_of_preemptions(option, measured.places.get(offer.key)),
        *_of_supervisor(host),
    )


def _of_supervisor(host: Host | None) -> Iterator[Assumption]:
    if host is not None:
        where = f"{host.instance_type or 'a small machine'} at {host.infra}"
        yield Assumption(name="supervisor", value=f"${host.usd_per_hour:f}/h, {where}", source=host.basis)


def _of_data(data: Data | None, traffic: Traffic, tariffs: Tariffs) -> Iterator[Assumption]:
    read = traffic.read
    if data is not None and data.gb is not None:
        amount = size(data.gb) if data.is_whole else f"at least {size(data.gb)}"
        reads = "read once" if data.reads == 1 else f"read {data.reads:g} times"
        said = "declared" if data.found is None else f"{data.found.basis}, {data.found.at:%Y-%m-%d %H:%M} UTC"
        yield Assumption(name="data", value=f"{amount} at {data.source or 'no bucket'}, {reads}", source=said)
    yield Assumption(name="egress", value=f"${read.egress_usd:,.2f} a read", source=read.basis)
    if data is None or data.source is None:
        return
    _, source = requests_of(tariffs, data.source.partition("/")[0])
    yield Assumption(name="requests", value=f"${read.requests_usd:,.4f} a read", source=source)
    if not data.nat:
        yield Assumption(name="NAT gateway", value="none", source="assumed; data.nat names providers that have one")


def _of_checkpoints(traffic: Traffic) -> Iterable[Assumption]:
    save, restore = traffic.save, traffic.restore
    if save.usd or restore.usd:
        value = f"${save.usd:,.4f} a save, ${restore.usd:,.4f} a restore, to {traffic.home}"
        yield Assumption(name="checkpoint traffic", value=value, source=save.basis)


def _of_preemptions(option: Option, seen: Habits | None) -> Iterable[Assumption]:
    offer = option.placement.offer
    if offer.capacity is Capacity.SPOT:
        known = offer.preemptions_per_hour is not None
        basis = offer.source if known else "assumed: AWS V100 traces of 2023-02 (Wu et al., NSDI 2024)"
        if seen:
            taken, expected = seen.lost
            basis += f"; in runs of the last {LATELY.days} days {taken}, where {expected:.1f} were to be expected"
        yield Assumption(
            name="preemptions",
            value=f"{option.preemptions_per_hour:.2g} per hour of a fresh machine, fewer of an old one",
            source=basis,
        )
