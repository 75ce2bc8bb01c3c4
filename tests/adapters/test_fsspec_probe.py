"""Buckets are asked where they are and how much is in them: a real S3 server, a bad line, and answers that are kept."""

from __future__ import annotations

import http.client
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]  # it ships no types; these tests are about it
import pytest
import s3fs

from launcher.adapters.fsspec_probe import FsspecProbe, ask_buckets
from launcher.adapters.system_clock import SystemClock
from launcher.core.gravity import Found
from launcher.core.offers import Capacity
from launcher.errors import InputError
from launcher.ports import DataProbe
from tests.builders import a_spec
from tests.hooks.slow_s3 import Line, Trouble

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
FOUND = Found(region="aws/eu-west-1", gb=2.0, is_complete=True, num_objects=3, basis="GetBucketLocation", at=AT)


def silent(uri: str, gb: float, num_objects: int) -> None:
    """Nobody looks."""


@pytest.fixture(autouse=True)
def fresh() -> None:
    """fsspec would hand out the file system of an earlier test, whose line is gone."""
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def probe(tmp_path: Path) -> FsspecProbe:
    return FsspecProbe(tmp_path / "probes", clock=SystemClock())


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty folder of a store without a network."""
    yield f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").store.clear()


def put(uri: str, *, server: str | None = None, **sizes: int) -> None:
    files, path = fsspec.core.url_to_fs(uri, **({"endpoint_url": server} if server else {}))
    files.pipe({f"{path}/{name.replace('__', '/')}": bytes(size) for name, size in sizes.items()})


def problem(error: pytest.ExceptionInfo[InputError]) -> tuple[str, str, str]:
    (one,) = error.value.problems
    return one.code, one.message, one.fix


@dataclass
class Said:
    """A probe that gives the same answer to every question, and remembers them."""

    found: Found = FOUND
    asked: list[str] = field(default_factory=list)

    def probe(self, uri: str, *, seconds: float, progress: Any) -> Found:
        self.asked.append(f"probe {uri}")
        return self.found

    def region(self, uri: str, *, seconds: float) -> Found:
        self.asked.append(f"region {uri}")
        return replace(self.found, gb=0.0, is_complete=False, num_objects=0)


def asked(said: DataProbe, **spec: Any) -> Any:
    return ask_buckets(a_spec(**spec), said, seconds=1, progress=silent)


def test_what_is_declared_is_not_asked_for() -> None:
    said = Said()

    spec = asked(said, data={"uri": "s3://b/x", "region": "aws/us-east-2", "size": "5 GB"})

    assert said.asked == []
    assert (spec.data.source, spec.data.gb, spec.data.is_whole) == ("aws/us-east-2", 5.0, True)


def test_a_declared_size_is_not_listed_and_a_declared_region_wins() -> None:
    sized, placed = Said(), Said()

    first = asked(sized, data={"uri": "s3://b/x", "size": "5 GB"})
    second = asked(placed, data={"uri": "s3://b/x", "region": "aws/us-east-2"})

    assert (sized.asked, first.data.source, first.data.gb) == (["region s3://b/x"], "aws/eu-west-1", 5.0)
    assert first.data.is_whole
    assert (placed.asked, second.data.source, second.data.gb) == (["probe s3://b/x"], "aws/us-east-2", 2.0)


def test_an_answer_travels_with_the_spec_and_is_not_asked_for_again() -> None:
    from launcher.core.spec import RunSpec

    spec = asked(Said(), data={"uri": "s3://b/x"})
    stored = RunSpec.model_validate(spec.model_dump(mode="json"))
    later = Said()

    again = ask_buckets(stored, later, seconds=1, progress=silent)

    assert later.asked == []
    assert again.data == spec.data


def test_paths_are_not_asked() -> None:
    said = Said()

    asked(said, data={"uri": "/data/tokens"}, checkpoint={"uri": "/runs"})

    assert said.asked == []


def test_the_buckets_of_checkpoints_are_asked_where_they_are_unless_it_was_said() -> None:
    buckets = {"aws/us-east-1": "s3://use1/runs/", "gcp": "gs://ck/runs", "lambda": "s3://other/runs"}
    said = Said()

    spec = asked(said, checkpoint={"uri": "s3://far/runs", "region": "aws/us-west-2", "buckets": buckets})

    assert said.asked == ["region gs://ck/runs", "region s3://other/runs"]
    assert spec.checkpoint.regions == {"gs://ck/runs": "aws/eu-west-1", "s3://other/runs": "aws/eu-west-1"}


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"data": {"uri": "az://box/x"}}, "data.region"),
        ({"checkpoint": {"uri": "az://box/x"}}, "checkpoint.region"),
    ],
)
def test_a_store_that_does_not_say_where_it_is_asks_the_user_back(spec: dict[str, Any], key: str) -> None:
    said = Said(replace(FOUND, region=None, basis="AzureBlobFileSystem does not say where it is"))

    with pytest.raises(InputError) as error:
        asked(said, **spec)

    code, message, fix = problem(error)
    assert (code, "does not say" in message) == ("L117", True)
    assert key in fix


def test_folders_are_listed_to_the_bottom(probe: FsspecProbe, memory: str) -> None:
    put(memory, a=1_000_000, deep__b=2_000_000, deep__deeper__c=500_000)

    found = probe.probe(memory, seconds=30, progress=silent)

    assert (found.gb, found.num_objects, found.is_complete) == (0.0035, 3, True)
    assert found.region is None


def test_an_answer_is_kept_for_a_day(tmp_path: Path, memory: str) -> None:
    put(memory, a=1_000)
    now = datetime.now(UTC)
    today, tomorrow = (FsspecProbe(tmp_path, clock=_At(now + timedelta(hours=h))) for h in (23, 25))
    first = FsspecProbe(tmp_path, clock=SystemClock()).probe(memory, seconds=30, progress=silent)
    put(memory, b=1_000)

    assert today.probe(memory, seconds=30, progress=silent) == first
    assert tomorrow.probe(memory, seconds=30, progress=silent).num_objects == 2


def test_a_broken_answer_is_asked_again(tmp_path: Path, probe: FsspecProbe, memory: str) -> None:
    put(memory, a=1_000)
    probe.probe(memory, seconds=30, progress=silent)
    for path in (tmp_path / "probes").iterdir():
        path.write_text('{"found": {"gb"')

    assert probe.probe(memory, seconds=30, progress=silent).num_objects == 1


def test_the_address_of_nothing_is_an_error_before_anything_is_planned(probe: FsspecProbe, memory: str) -> None:
    fsspec.filesystem("memory").mkdir(memory)

    with pytest.raises(InputError) as error:
        probe.probe(memory, seconds=30, progress=silent)

    assert problem(error)[:2] == ("L114", f"nothing lies below {memory}")


def test_a_store_without_a_library_names_the_extra(probe: FsspecProbe) -> None:
    gcsfs_is_here = _has("gcsfs")
    if gcsfs_is_here:
        pytest.skip("gcsfs is installed here")

    with pytest.raises(InputError) as error:
        probe.region("gs://b/x", seconds=30)

    code, _, fix = problem(error)
    assert (code, "spotlaunch[s3], [gcs]" in fix, "declare it" in fix) == ("L110", True, True)


class _At(SystemClock):
    """Stands still."""

    def __init__(self, at: datetime) -> None:
        super().__init__()
        self._at = at

    def now(self) -> datetime:
        return self._at


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def make_bucket(url: str, name: str, region: str | None) -> str:
    """A bucket of that region (`None`: of the oldest, which S3 does not name)."""
    body = f"<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("PUT", f"/{name}", body=body if region else "")
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
    return f"s3://{name}"


@pytest.mark.system
@pytest.mark.parametrize(
    ("constraint", "region"), [(None, "aws/us-east-1"), ("EU", "aws/eu-west-1"), ("us-west-2", "aws/us-west-2")]
)
def test_a_bucket_names_its_region(
    probe: FsspecProbe, s3: str, s3_server: str, constraint: str | None, region: str
) -> None:
    bucket = make_bucket(s3_server, f"in-{uuid.uuid4().hex}", constraint)

    found = probe.region(f"{bucket}/tokens", seconds=60)

    assert found.region == region
    assert found.basis == "GetBucketLocation at 127.0.0.1"


@pytest.mark.system
def test_who_may_not_ask_for_the_location_reads_it_from_the_head(
    probe: FsspecProbe, s3_line: tuple[str, Line], s3_server: str
) -> None:
    _, line = s3_line
    bucket = make_bucket(s3_server, f"in-{uuid.uuid4().hex}", "ap-south-1")
    line.troubles = [Trouble(kind="answer", times=9, path="?location", status=403, code="AccessDenied")]

    found = probe.region(bucket, seconds=60)

    assert (found.region, found.basis) == ("aws/ap-south-1", "HeadBucket at 127.0.0.1")


@pytest.mark.system
def test_only_what_lies_below_the_address_counts(probe: FsspecProbe, s3: str) -> None:
    put(s3, tokens__a=1_500_000, tokens__deep__b=500_000, tokens2__c=7_000_000)

    found = probe.probe(f"{s3}/tokens", seconds=60, progress=silent)

    assert (found.gb, found.num_objects, found.is_complete) == (0.002, 2, True)


@pytest.mark.system
def test_a_listing_whose_time_is_up_gives_a_lower_bound_and_is_not_waited_for(
    probe: FsspecProbe, s3_line: tuple[str, Line], s3_server: str
) -> None:
    """A page has 1,000 objects; the second page is never answered."""
    uri, line = s3_line
    put(uri, server=s3_server, **{f"n{number:04}": 1_000 for number in range(1_001)})
    hangs = Trouble(kind="meet", times=2, path="continuation-token")
    line.troubles = [hangs]
    told: list[int] = []

    try:
        started = time.monotonic()
        found = probe.probe(uri, seconds=3, progress=lambda uri, gb, num_objects: told.append(num_objects))
        took = time.monotonic() - started
    finally:
        hangs.meeting.abort()

    assert (found.gb, found.num_objects, found.is_complete) == (0.001, 1_000, False)
    assert took < 4.5
    assert set(told) == {1_000}
    assert probe.probe(uri, seconds=1, progress=silent) == found  # with less time, nothing more would be found
    line.troubles = []
    assert probe.probe(uri, seconds=60, progress=silent).num_objects == 1_001


@pytest.mark.system
def test_a_burst_of_errors_is_waited_out(probe: FsspecProbe, s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    put(uri, a=1_000)
    line.troubles = [Trouble(kind="answer", times=2, path="list-type=2"), Trouble(kind="answer", times=1, path="?loc")]

    found = probe.probe(uri, seconds=60, progress=silent)

    assert (found.num_objects, found.is_complete) == (1, True)


@pytest.mark.system
@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (None, "L114"),
        (Trouble(kind="answer", times=99, status=403, code="AccessDenied"), "L115"),
        (Trouble(kind="meet", times=99), "L116"),
    ],
)
def test_a_bucket_that_cannot_be_asked_is_one_clear_error(
    probe: FsspecProbe, s3_line: tuple[str, Line], trouble: Trouble | None, code: str
) -> None:
    uri, line = s3_line
    line.troubles = [trouble] if trouble else []

    try:
        with pytest.raises(InputError) as error:
            probe.probe(uri if trouble else f"s3://{uuid.uuid4().hex}/x", seconds=2 if trouble else 60, progress=silent)
    finally:
        if trouble:
            trouble.meeting.abort()

    found, _, fix = problem(error)
    assert found == code
    assert "declare it: region: aws/us-east-2, size: 500 GB" in fix


@pytest.mark.system
def test_nobody_without_credentials_is_told_to_have_some(
    probe: FsspecProbe, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(InputError) as error:
        probe.probe(s3, seconds=60, progress=silent)

    code, _, fix = problem(error)
    assert (code, fix.startswith("check the credentials")) == ("L115", True)


@pytest.mark.system
def test_a_plan_is_made_with_what_the_buckets_say_and_asks_them_once(tmp_path: Path, s3: str) -> None:
    from launcher import api
    from launcher.adapters.settings import Settings
    from launcher.wiring import Wiring

    put(f"{s3}/tokens", a=1_000_000, b=2_000_000)
    settings = Settings(state_folder=tmp_path / "state", catalogs=tmp_path / "catalogs", runs_uri=f"{s3}/runs")
    (tmp_path / "train.yaml").write_text(
        "{name: digits, run: echo, gpus: {H100: 8}, workload: {steps: 100, step_seconds: {H100: 10}}, "
        "regions: [us-east-1, us-central1, us-east4, us-east5], "
        f'data: {{uri: "{s3}/tokens"}}}}\n'
    )

    first = api.draft(Wiring(settings=settings), tmp_path / "train.yaml")
    fsspec.filesystem("s3").rm(s3, recursive=True)
    second = api.draft(Wiring(settings=settings), tmp_path / "train.yaml")

    assert second.spec == first.spec
    assert first.spec.data is not None
    assert (first.spec.data.source, first.spec.data.gb) == ("aws/us-east-1", 0.003)
    assert first.spec.checkpoint.regions == {f"{s3}/runs": "aws/us-east-1"}
    firm = [e for e in first.plan.ranked if e.placement.offer.capacity is Capacity.ON_DEMAND]
    egress = {(e.placement.offer.provider, e.placement.offer.region): e.parts["egress"] for e in firm}
    assert egress["aws", "us-east-1"] == 0
    assert {usd > 0 for (provider, _), usd in egress.items() if provider == "gcp"} == {True}  # its saves leave it
