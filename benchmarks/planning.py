"""How long an estimate and a plan take: futures on one core, and markets of 50,000 offers beside SkyPilot's optimizer.

Both read the same catalogue in SkyPilot's own format. Reading it is not counted, nor a first call that warms up. CPU
time, for machines are shared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

from launcher.adapters.skypilot_catalog import SkypilotCatalog
from launcher.adapters.snapshot_prices import load_catalog, load_tariffs
from launcher.core.estimates.estimate import estimate
from launcher.core.estimates.planner import market_for, outlook_for, plan
from launcher.core.estimates.survey import Book, survey
from launcher.core.estimates.workload import Measured
from launcher.core.offers import Capacity, Offer
from launcher.core.prices.options import Rules
from launcher.core.prices.pricing import Terms
from launcher.core.spec import RunSpec
from tests.adapters.catalogues import AWS, GCP, INFO, LAMBDA, ask_skypilot, folder, write

NUM_FUTURES, NUM_ZONES, WORK_HOURS = 1000, 9, 48
NUM_OFFERS = 50_000
REPEATS = 3
GPUS = ("H100", "A100", "A100-80GB", "L4", "T4")
COUNTS = (1, 2, 4, 8)
SPEC = RunSpec.model_validate(
    {
        "name": "benchmark",
        "run": "python train.py",
        "gpus": {"H100": 8},
        "mode": ["spot", "on_demand"],
        "workload": {"steps": WORK_HOURS * 360, "step_seconds": {"H100": 10.0}, "setup_seconds": 720},
        "deadline": f"{WORK_HOURS * 1.25} h",
    }
)


def main() -> None:
    print("| what | CPU seconds, least of 3 |\n|---|---|")
    with tempfile.TemporaryDirectory() as home:
        zones = _written(Path(home), num_types=1, num_zones=NUM_ZONES)
        label = f"{NUM_FUTURES:,} futures of {WORK_HOURS} h over {NUM_ZONES} places"
        print(f"| {label} | {_least(_futures(zones)):.2f} |", flush=True)
    with tempfile.TemporaryDirectory() as home:
        _print_plan(_written(Path(home), num_types=1, num_zones=NUM_OFFERS // 2), "all of the kind asked for")
    with tempfile.TemporaryDirectory() as home:
        num_types = len(GPUS) * len(COUNTS)
        offers = _written(Path(home), num_types=num_types, num_zones=NUM_OFFERS // 2 // num_types)
        _print_plan(offers, f"of {num_types} kinds of machine")
        if find_spec("sky") is not None:
            asked = {"gpus": ["H100"], "count": 8, "nodes": 1, "use_spot": True, "regions": ["aws"]}
            seconds = ask_skypilot(Path(home), "seconds", [asked] * REPEATS)
            print(f"| SkyPilot's optimizer on the same | {min(seconds):.2f} |", flush=True)


def _print_plan(offers: Sequence[Offer], told: str) -> None:
    print(f"| `plan()` on {len(offers):,} offers, {told} | {_least(lambda: _plan(offers)):.2f} |", flush=True)


def _least(ask: Callable[[], object]) -> float:
    ask()
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        ask()
        found.append(time.process_time() - began)
    return min(found)


def _futures(offers: Sequence[Offer]) -> Callable[[], object]:
    book, now, rules = _book(offers), datetime.now(UTC), Rules()
    candidates, _ = survey(SPEC, book, Measured(), now=now)
    deadline_at = now + timedelta(hours=WORK_HOURS * 1.25)
    market = market_for(SPEC, book, Measured(), candidates, now=now, deadline_at=deadline_at, rules=rules)
    place = market.tiers[0][0]
    candidate = next(one for one in candidates if one.option is place.option)
    outlook = outlook_for(SPEC, book, Measured(), candidate, rules)
    return lambda: estimate(place, market, outlook, (), count=NUM_FUTURES)


def _plan(offers: Sequence[Offer]) -> object:
    made = plan(SPEC, _book(offers), Measured(), now=datetime.now(UTC), rules=Rules())
    assert made.best.placement.offer.capacity is Capacity.SPOT
    return made


def _book(offers: Sequence[Offer]) -> Book:
    return Book(offers=tuple(offers), terms=Terms(), tariffs=load_tariffs(), catalog=load_catalog())


def _written(home: Path, *, num_types: int, num_zones: int) -> tuple[Offer, ...]:
    """Machines of so many types in each zone, three zones in a region; each with a price for spot and on-demand."""
    types = [(f"m{count}.{gpu.lower()}", gpu, count) for gpu in GPUS for count in reversed(COUNTS)][:num_types]
    rows = [
        [name, gpu, float(count), 8.0, 32.0, INFO, 2.5 * count + n % 97 / 50, 0.8 * count + n % 89 / 50,
         f"region-{n // 3}", f"region-{n // 3}-az{n % 3}", "x86_64"]
        for n in range(num_zones)
        for name, gpu, count in types
    ]  # fmt: skip
    write(home, "aws", AWS, rows)
    write(home, "gcp", GCP, [])
    write(home, "lambda", LAMBDA, [])
    catalogues = SkypilotCatalog(folder=folder(home), gpus=load_catalog()).catalogues()
    return tuple(offer for catalogue in catalogues for offer in catalogue.offers)


if __name__ == "__main__":
    main()
