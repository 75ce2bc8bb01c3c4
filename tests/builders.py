"""Values for tests: each builder has a plain default for everything, and a test names only what matters to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from launcher.core.offers import Capacity, Offer, Placement, Price
from launcher.core.prices.options import Option
from launcher.core.prices.traffic import Charge, Traffic
from launcher.core.runs.events import Entry, Event, Pace, Promise, Quantiles, RunSubmitted, UsdQuantiles
from launcher.core.runs.state import RunState, fold
from launcher.core.spec import RunSpec

T0 = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
RUN = "digits-20260105-ab12"


def after(seconds: float) -> datetime:
    """`seconds` behind the instant at which every test begins."""
    return T0 + timedelta(seconds=seconds)


def a_spec(*, steps: int = 1000, **fields: Any) -> RunSpec:
    plain: dict[str, Any] = {
        "name": "digits",
        "run": "python train.py",
        "gpus": {"H100": 8},
        "workload": {"steps": steps, "step_seconds": {"H100": 10.0}},
    }
    return RunSpec.model_validate(plain | fields)


def an_offer(*, zone: str = "a", capacity: Capacity = Capacity.SPOT, **fields: Any) -> Offer:
    plain: dict[str, Any] = {
        "provider": "aws",
        "region": "us-east-2",
        "zone": zone,
        "instance_type": "p5.48xlarge",
        "gpu": "H100",
        "count": 8,
        "capacity": capacity,
        "list_usd_per_hour": Decimal(6),
        "as_of": date(2026, 1, 5),
        "source": "tests",
        "notice_seconds": 120.0 if capacity is Capacity.SPOT else 0.0,
    }
    return Offer(**plain | fields)


def a_placement(offer: Offer | None = None, *, usd_per_hour: str | Decimal = "6", nodes: int = 1) -> Placement:
    each = Decimal(usd_per_hour)
    price = Price(list_usd_per_hour=each, usd_per_hour=each, marginal_usd_per_hour=each, basis="list")
    return Placement(offer=offer or an_offer(), nodes=nodes, price=price)


def an_option(placement: Placement | None = None, **fields: Any) -> Option:
    placement = placement or a_placement()
    plain: dict[str, Any] = {
        "step_seconds": 10.0,
        "setup_seconds": 60.0,
        "save_seconds": 5.0,
        "durable_seconds": fields.get("save_seconds", 5.0),
        "preemptions_per_hour": 0.1 if placement.offer.capacity is Capacity.SPOT else 0.0,
    }
    return Option(placement=placement, **plain | fields)


def reading(egress_usd: Decimal) -> Traffic:
    """Data whose way to the place costs so much each time."""
    return Traffic(read=Charge(egress_usd=egress_usd))


def a_submit(spec: RunSpec | None = None, *, approved_usd: str = "100", **fields: Any) -> RunSubmitted:
    plain: dict[str, Any] = {
        "spec": (spec or a_spec()).model_dump(mode="json"),
        "workdir": "/home/ada/digits",
        "run_uri": "memory://runs/digits",
        "approved_usd": Decimal(approved_usd),
        "promise": Promise(
            hours=Quantiles(p10=3, p50=4, p90=6),
            cost_usd=UsdQuantiles(p10=Decimal(20), p50=Decimal(25), p90=Decimal(40)),
            basis="declared",
        ),
        "pace": Pace(step_seconds={"H100": 10.0}, setup_seconds=60, save_seconds=5, checkpoint_gb=1, source="declared"),
        "deadline_at": after(30 * 86400),
        "deadline_assumed": True,
        "submitted_by": "ada",
        "version": "0.1.0",
    }
    return RunSubmitted(**plain | fields)


def entries(*events: Event, every_seconds: float = 60.0, first_seq: int = 1) -> tuple[Entry, ...]:
    """`events` as the ledger would hold them, one each `every_seconds`, the first at T0."""
    numbered = enumerate(events, start=first_seq)
    return tuple(Entry(run_id=RUN, seq=n, at=after((n - 1) * every_seconds), event=event) for n, event in numbered)


def a_state(*events: Event, every_seconds: float = 60.0) -> RunState:
    """A submitted run after `events`; a first event that is no submit gets the default one before it."""
    history: Sequence[Event] = events if events and isinstance(events[0], RunSubmitted) else (a_submit(), *events)
    state = fold(None, entries(*history, every_seconds=every_seconds))
    assert state is not None
    return state
