"""The user's own inventory as offers: reservations at clouds, machines of one's own, pools of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal

from launcher.core.gpus import GpuCatalog
from launcher.core.offers import Capacity, Offer
from launcher.core.prices.pricing import LOCAL, Cluster, Pool, Reserved, Terms
from launcher.errors import InputError, Problem

SOURCE = "pricing.yaml"


def reserved_offers(
    terms: Terms, book_offers: Sequence[Offer], *, catalog: GpuCatalog, today: date
) -> tuple[Offer, ...]:
    """The user's reservations; GPUs and on-demand price come from the book where it knows the instance type.

    Raises: InputError: a type that the book does not know has no `gpu` and `gpus`, or they contradict the book.
    """
    known = {(o.provider, o.instance_type): (o.gpu, o.count) for o in book_offers}
    listed = {_place(o): o.list_usd_per_hour for o in book_offers if o.capacity is Capacity.ON_DEMAND}
    machines = [_machine(r, known.get((r.provider, r.instance_type)), catalog) for r in terms.reserved]
    problems = [machine for machine in machines if isinstance(machine, Problem)]
    if problems:
        raise InputError(problems)
    return tuple(
        Offer(
            provider=reserved.provider,
            region=reserved.region,
            zone=reserved.zone,
            instance_type=reserved.instance_type,
            gpu=machine[0],
            count=machine[1],
            capacity=Capacity.RESERVED,
            list_usd_per_hour=reserved.usd_per_hour,
            as_of=today,
            source=SOURCE,
            on_demand_usd_per_hour=_on_demand(reserved, listed),
            reservation=reserved.id,
            available_count=reserved.count,
            opens_at=reserved.start,
            closes_at=reserved.closes_at,
        )
        for reserved, machine in zip(terms.reserved, machines, strict=True)
        if not isinstance(machine, Problem)
    )


def own_offers(terms: Terms, *, catalog: GpuCatalog, today: date) -> tuple[Offer, ...]:
    """The user's own machines, one instance of each. Raises: InputError: a GPU type is not known."""
    names = [(own, catalog.canonical(own.gpu)) for own in terms.own]
    problems = [_no_such_gpu(f"own {own.name}", own.gpu, catalog) for own, name in names if name is None]
    if problems:
        raise InputError(problems)
    return tuple(
        Offer(
            provider=LOCAL,
            region=own.name,
            zone=None,
            instance_type=own.name,
            gpu=name or own.gpu,
            count=own.gpus,
            capacity=Capacity.ON_DEMAND,
            list_usd_per_hour=own.total_usd_per_hour,
            as_of=today,
            source=SOURCE,
            available_count=1,
        )
        for own, name in names
    )


def cluster_offers(terms: Terms, *, catalog: GpuCatalog, today: date) -> tuple[Offer, ...]:
    """Every pool of the user's clusters, once for each number of GPUs that a job may ask of a node.

    Raises: InputError: a GPU type is not known.
    """
    pools = [(cluster, pool, catalog.canonical(pool.gpu)) for cluster in terms.clusters for pool in cluster.pools]
    problems = [
        _no_such_gpu(f"cluster {cluster.name}, pool {pool.name}", pool.gpu, catalog)
        for cluster, pool, gpu in pools
        if gpu is None
    ]
    if problems:
        raise InputError(problems)
    return tuple(
        _slice(cluster, pool, count, gpu=gpu, today=today)
        for cluster, pool, gpu in pools
        if gpu is not None
        for count in _counts(pool.gpus)
    )


def pool_of(terms: Terms, offer: Offer) -> Pool | None:
    """The pool of the inventory that `offer` is a part of."""
    pools = (
        pool
        for cluster in terms.clusters
        if (cluster.provider, cluster.name) == (offer.provider, offer.region)
        for pool in cluster.pools
    )
    wanted = (offer.zone, offer.capacity, offer.instance_type)
    return next((pool for pool in pools if (pool.name, pool.capacity, _type(pool, offer.count)) == wanted), None)


def reservation_config(terms: Terms, offer: Offer) -> Mapping[str, object]:
    """SkyPilot's configuration under which a launch takes `offer` out of its reservation; empty for all other offers.

    EC2 reservations that are open to every instance need none and bear it. Capacity blocks need nothing more: SkyPilot
    asks EC2 for a reservation's type (sky/provision/aws/instance.py, 0.14.1). GCP wants the name with its project.
    """
    named = (r for r in terms.reserved if r.id == offer.reservation and r.provider == offer.provider)
    reserved = next(named, None)
    if reserved is None or offer.provider not in ("aws", "gcp"):
        return {}
    name = reserved.id if reserved.project is None else f"projects/{reserved.project}/reservations/{reserved.id}"
    return {offer.provider: {"specific_reservations": [name]}}


def _slice(cluster: Cluster, pool: Pool, count: int, *, gpu: str, today: date) -> Offer:
    """`count` GPUs of a node. Slurm gives a job's nodes on as many machines, Kubernetes several pods on one."""
    each = 1 if cluster.provider == "slurm" else pool.gpus // count
    on_demand = _on_demand_per_gpu(cluster, pool)
    return Offer(
        provider=cluster.provider,
        region=cluster.name,
        zone=pool.name,
        instance_type=_type(pool, count),
        gpu=gpu,
        count=count,
        capacity=pool.capacity,
        list_usd_per_hour=pool.usd_per_gpu_hour * count,
        as_of=today,
        source=SOURCE,
        on_demand_usd_per_hour=None if on_demand is None else on_demand * count,
        preemptions_per_hour=pool.preemptions_per_hour,
        notice_seconds=pool.notice or 0.0,
        reservation=f"{cluster.name}/{pool.name}" if pool.capacity is Capacity.RESERVED else None,
        available_count=pool.nodes * each,
        lease_seconds=pool.time_limit,
    )


def _type(pool: Pool, count: int) -> str:
    """As SkyPilot writes a request for accelerators."""
    return f"{pool.gpu}:{count}"


def _counts(gpus: int) -> list[int]:
    """Powers of two below, and the whole node."""
    return [2**k for k in range(gpus.bit_length()) if 2**k < gpus] + [gpus]


def _on_demand_per_gpu(cluster: Cluster, pool: Pool) -> Decimal | None:
    """What the same GPU costs in the cluster without preemption or commitment, if it has one such price."""
    same = {p.usd_per_gpu_hour for p in cluster.pools if p.capacity is Capacity.ON_DEMAND and p.gpu == pool.gpu}
    return same.pop() if len(same) == 1 else None


def _machine(reserved: Reserved, known: tuple[str, int] | None, catalog: GpuCatalog) -> tuple[str, int] | Problem:
    gpu = None if reserved.gpu is None else catalog.canonical(reserved.gpu)
    if reserved.gpu is not None and gpu is None:
        return _no_such_gpu(f"reserved {reserved.id}", reserved.gpu, catalog)
    if known is None and (gpu is None or reserved.gpus is None):
        message = f"reserved {reserved.id}: {reserved.provider} {reserved.instance_type} is not in the price book"
        return Problem("L210", message, SOURCE, "add gpu: and gpus: (GPUs in one instance)")
    machine = known or (gpu or "", reserved.gpus or 0)
    if (gpu or machine[0], reserved.gpus or machine[1]) != machine:
        message = f"reserved {reserved.id}: {reserved.instance_type} has {machine[1]}×{machine[0]} in the price book"
        return Problem("L211", message, SOURCE, "leave out gpu: and gpus:")
    return machine


def _on_demand(reserved: Reserved, listed: dict[tuple[str, str, str | None, str], Decimal | None]) -> Decimal | None:
    """In the reservation's zone, or the one price that its whole region has."""
    place = (reserved.provider, reserved.region, reserved.zone, reserved.instance_type)
    if place in listed:
        return listed[place]
    region = (reserved.provider, reserved.region, reserved.instance_type)
    prices = {usd for (p, r, _, t), usd in listed.items() if (p, r, t) == region}
    return prices.pop() if len(prices) == 1 else None


def _place(offer: Offer) -> tuple[str, str, str | None, str]:
    return offer.provider, offer.region, offer.zone, offer.instance_type


def _no_such_gpu(what: str, name: str, catalog: GpuCatalog) -> Problem:
    near = ", ".join(catalog.nearest(name))
    return Problem("L212", f"{what}: no GPU type {name!r}", SOURCE, f"known: {near}" if near else "")
