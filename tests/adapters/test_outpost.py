"""What a supervisor takes along to a machine of its own, by the settings and the run."""

from __future__ import annotations

from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from launcher.adapters.outpost import Outpost
from launcher.adapters.settings import Settings
from launcher.adapters.skypilot_supervisor import Errand
from launcher.core.prices.supervision import Host
from tests.builders import T0, a_spec, a_state, a_submit

NO_SKYPILOT = "SkyPilot is not installed: pip install spotlaunch[sky]"
pytestmark = pytest.mark.skipif(find_spec("sky") is None, reason=NO_SKYPILOT)  # its version is taken along
HOST = Host(infra="aws/us-east-2", instance_type="m6i.large", usd_per_hour=Decimal("0.096"), basis="list")


def an_errand(folder: Path, *, checkpoint: dict[str, Any], **settings: Any) -> Errand:
    (folder / "clouds.json").write_text('{"checked_at": "2026-01-05T12:00:00Z", "enabled": ["aws", "gcp"]}')
    plain = {"state_folder": folder, "catalogs": folder / "catalogs"}
    outpost = Outpost(
        settings=Settings.model_validate(plain | settings),
        pricing=None,
        clouds=folder / "clouds.json",
        folder=folder / "outposts",
    )
    return outpost.errand(a_state(a_submit(a_spec(checkpoint=checkpoint))), HOST, 1, now=T0, environ={})


@pytest.mark.parametrize(
    ("ledger", "uri", "wanted"),
    [
        ("s3a://team/ledger", "gs://ckpts/runs", {"s3fs", "gcsfs"}),
        ("postgresql+psycopg://db/runs", "abfss://ckpts/runs", {"psycopg[binary]", "adlfs"}),
        ("file:///shared/ledger", "/shared/runs", set()),
    ],
)
def test_what_reads_its_ledger_and_its_run_folders_is_installed(
    tmp_path: Path, ledger: str, uri: str, wanted: set[str]
) -> None:
    errand = an_errand(tmp_path, ledger=ledger, checkpoint={"uri": uri})

    installed = {requirement.partition(">")[0] for requirement in errand.requirements}
    assert installed & {"s3fs", "gcsfs", "adlfs", "psycopg[binary]"} == wanted
    assert errand.requirements[-1].startswith("skypilot[aws,gcp]==")


def test_only_settings_that_a_supervisor_reads_travel_along(tmp_path: Path) -> None:
    settings = {"runs_uri": "s3://team/runs", "currency": "EUR", "probe_seconds": 3, "poll_seconds": 5, "feeds": "aws"}

    errand = an_errand(tmp_path, checkpoint={"uri": "s3://team/runs"}, **settings)

    assert errand.settings == {"LAUNCH_POLL_SECONDS": "5.0", "LAUNCH_FEEDS": "aws"}
