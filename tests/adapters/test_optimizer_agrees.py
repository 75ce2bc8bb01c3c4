"""The plan's cheapest choice beside that of SkyPilot's optimizer: the same prices, read by two programs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from launcher.adapters.skypilot_catalog import SkypilotCatalog
from launcher.adapters.snapshot_prices import load_catalog, load_tariffs
from launcher.adapters.system_clock import SystemClock
from launcher.core.estimates.estimate import Estimate
from launcher.core.estimates.planner import Plan, plan
from launcher.core.estimates.survey import Book
from launcher.core.estimates.workload import Measured
from launcher.core.offers import Offer
from launcher.core.prices.options import Rules
from launcher.core.prices.pricing import Terms
from tests.adapters.catalogues import AWS, GCP, INFO, ask_skypilot, draw, folder, write
from tests.builders import a_spec

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("sky") is None, reason="SkyPilot is not installed"),
]

CLOUDS = ("aws", "gcp", "lambda")
REGIONS = ("aws/us-east-1", "aws/us-west-2", "aws/eu-west-1", "gcp/us-central1", "gcp/europe-west4")
NAMES = {"A100-40GB": "A100", "V100-16GB": "V100"}  # ours → SkyPilot's, where they differ
COUNTS = {
    "H100": (1, 8),
    "A100-40GB": (1, 2, 4, 8),
    "A100-80GB": (1, 4, 8),
    "L4": (1, 2, 4, 8),
    "T4": (1, 2, 4),
    "V100-16GB": (1, 8),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    gpu: str
    count: int
    nodes: int
    use_spot: bool = False
    places: Sequence[str]  # clouds or cloud/region
    data: tuple[str, str, float] | None = None  # bucket, its region, GB

    def to_skypilot(self) -> dict[str, Any]:
        return {
            "gpus": [NAMES.get(self.gpu, self.gpu)],
            "count": self.count,
            "nodes": self.nodes,
            "use_spot": self.use_spot,
            "regions": list(self.places),
            "inputs": [self.data[0], self.data[2]] if self.data else None,
        }

    def planned(self, offers: tuple[Offer, ...]) -> Plan:
        spec = a_spec(
            gpus={self.gpu: self.count},
            nodes=self.nodes,
            mode=["spot" if self.use_spot else "on_demand"],
            providers=sorted({place.partition("/")[0] for place in self.places}),
            regions=[place.partition("/")[2] for place in self.places if "/" in place] or None,
            workload={"steps": 360, "step_seconds": {self.gpu: 10.0}},  # an hour, as SkyPilot assumes
            data={"uri": self.data[0], "region": self.data[1], "size": f"{self.data[2]} GB"} if self.data else None,
        )
        book = Book(offers=offers, terms=Terms(), tariffs=load_tariffs(), catalog=load_catalog())
        return plan(spec, book, Measured(), now=SystemClock().now(), rules=Rules())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    draw(path, seed=20261018)
    return path


@pytest.fixture(scope="module")
def offers(home: Path) -> tuple[Offer, ...]:
    return offers_in(home)


def offers_in(home: Path) -> tuple[Offer, ...]:
    catalogues = SkypilotCatalog(folder=folder(home), gpus=load_catalog()).catalogues()
    return tuple(offer for catalogue in catalogues for offer in catalogue.offers)


def requests(*, seed: int, number: int) -> list[Request]:
    rng = random.Random(seed)
    drawn = []
    for _ in range(number):
        gpu = rng.choice(sorted(COUNTS))
        whole = rng.random() < 0.5
        drawn.append(
            Request(
                gpu=gpu,
                count=rng.choice(COUNTS[gpu]),
                nodes=rng.choice((1, 1, 2, 4)),
                use_spot=rng.random() < 0.5,
                places=rng.sample(CLOUDS if whole else REGIONS, k=rng.choice((2, 3))),
            )
        )
    return drawn


def choice(found: Estimate) -> dict[str, Any]:
    offer = found.placement.offer
    return {
        "provider": offer.provider,
        "region": offer.region,
        "instance_type": offer.instance_type.partition("+")[0],
        "usd_per_hour": pytest.approx(float(found.placement.usd_per_hour)),
    }


def best(made: Plan) -> dict[str, Any] | None:
    return choice(made.best) if made.ranked else None


def test_without_egress_both_choose_the_same_in_50_requests(home: Path, offers: tuple[Offer, ...]) -> None:
    asked = requests(seed=7, number=50)

    theirs = ask_skypilot(home, "optimize", [request.to_skypilot() for request in asked])

    ours = [best(request.planned(offers)) for request in asked]
    assert ours == theirs
    assert sum(one is not None for one in ours) >= 40
    assert {one["provider"] for one in ours if one} == set(CLOUDS)


@pytest.fixture(scope="module")
def three_places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 A100 for $24 an hour in us-east-1, where the data lies, for $23 in us-west-2 and for $22.50 at Google."""
    home = tmp_path_factory.mktemp("home")
    at_aws = [
        ["p4d.24xlarge", "A100", 8.0, 96.0, 1152.0, INFO, usd, "", region, f"{region}-az1", "x86_64"]
        for region, usd in (("us-east-1", 24.0), ("us-west-2", 23.0))
    ]
    google = ["us-central1", "us-central1-a"]
    at_google = [
        ["a2-highgpu-8g", 96.0, 680.0, "", "", "", *google, 6.5, ""],
        ["", "", "", "A100", 8, INFO, *google, 16.0, ""],
    ]
    write(home, "aws", AWS, at_aws)
    write(home, "gcp", GCP, at_google)
    write(home, "lambda", AWS, [])
    return home


MOVES = [
    (None, "us-central1", "us-central1", "no data to move"),
    # SkyPilot takes traffic between two regions of a cloud for free: sky/optimizer.py, 0.14.1
    (200.0, "us-west-2", "us-east-1", "us-east-1 to us-west-2, $0.02 per GB"),
    # and loses the lower tiers where an amount reaches the next: 10,240 GB leave AWS for $0, sky/clouds/aws.py
    (10_240.0, "us-central1", "us-east-1", "aws to another provider, graduated"),
]


def test_where_data_has_to_move_the_choice_differs_for_its_stated_price(three_places: Path) -> None:
    bucket = ("s3://corpus", "aws/us-east-1")
    asked = [
        Request(gpu="A100-40GB", count=8, nodes=1, places=("aws", "gcp"), data=(*bucket, gb) if gb else None)
        for gb, *_ in MOVES
    ]
    offers = offers_in(three_places)

    chosen = ask_skypilot(three_places, "optimize", [request.to_skypilot() for request in asked])

    for request, their_choice, (_, theirs, ours, stated) in zip(asked, chosen, MOVES, strict=True):
        made = request.planned(offers)
        assert (their_choice["region"], made.best.placement.offer.region) == (theirs, ours)
        (rejected,) = (e for e in made.ranked if e.placement.offer.region == theirs)
        assert stated in {a.name: a for a in rejected.assumptions}["egress"].source
        assert rejected.cost_usd.p50 - rejected.parts["egress"] <= made.best.cost_usd.p50
