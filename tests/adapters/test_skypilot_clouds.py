"""Enabled clouds and renewed prices, with SkyPilot's own API server, its own downloads, and a pretend AWS."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from launcher.adapters.skypilot_catalog import read_catalogue
from launcher.adapters.skypilot_clouds import read_clouds
from launcher.adapters.snapshot_prices import load_catalog
from tests import web
from tests.adapters.catalogues import AWS, INFO, ask_skypilot, folder, write
from tests.adapters.sky_home import BIN, NOBODY, a_sky_home

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("sky") is None, reason="SkyPilot is not installed"),
]

P5 = ["p5.48xlarge", "H100", 8.0, 192.0, 2048.0, INFO, "55.04", "16.1", "us-east-2", "use2-az1", "x86_64"]
TRN1 = ["trn1.2xlarge", "Trainium", 1.0, 8.0, 32.0, INFO, "1.34", "", "us-east-1", "use1-az1", "x86_64"]


@pytest.fixture
def published(tmp_path: Path) -> Iterator[str]:
    """Address of a folder of catalogues that has AWS only."""
    write(tmp_path / "published", "aws", AWS, [P5])
    root = tmp_path / "root"
    shutil.copytree(folder(tmp_path / "published"), root / "v8")

    class Handler(web.Handler, SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

    with web.serving(Handler) as url:
        yield url


def test_a_download_is_told_from_prices_that_only_stayed(tmp_path: Path, published: str) -> None:
    home = tmp_path / "home"
    path = folder(home) / "aws/vms.csv"

    became = ask_skypilot(
        home, "renew", [(published, "aws"), (published, "aws"), (published, "gcp"), (NOBODY, "aws"), (NOBODY, "lambda")]
    )
    assert became == ["fetched", "fetched", "missing", "kept", "missing"]
    assert len(read_catalogue(path, load_catalog()).offers) == 2

    path.write_text(path.read_text().replace("16.1", "14.9"))
    assert ask_skypilot(home, "renew", [(published, "aws")]) == ["yours"]
    assert "14.9" in path.read_text()


@pytest.fixture
def aws() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def environ(tmp_path: Path, aws: str) -> Iterator[dict[str, str]]:
    """A home with an AWS account, and an API server of its own that ends with the test."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    with a_sky_home(tmp_path, clouds="aws", AWS_ENDPOINT_URL=aws, AWS_DEFAULT_REGION="us-east-1") as given:
        yield given


@pytest.mark.timeout(300)
def test_a_refresh_finds_the_enabled_clouds_and_bars_the_others(tmp_path: Path, environ: dict[str, str]) -> None:
    write(tmp_path, "aws", AWS, [P5, TRN1])

    done = subprocess.run(
        [BIN / "launch", "offers", "H100", "--refresh", "-o", "json"],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "enabled here: aws" in done.stderr
    assert "aws: its file was changed by hand" in done.stderr
    listed = json.loads(done.stdout)  # whatever SkyPilot prints, stdout is the answer
    assert {offer["provider"] for offer in listed["offers"] if not offer["refused"]} == {"aws"}
    assert "gcp is not enabled here; `sky check gcp` says why" in {
        str(offer["refused"]).partition(",")[0] for offer in listed["offers"]
    }
    (source,) = (each for each in listed["sources"] if each["provider"] == "aws")
    assert (source["sources"], source["left_out"]) == (["SkyPilot catalogue"], {"Trainium": 1})
    record = read_clouds(tmp_path / "state/clouds.json")
    assert record is not None
    assert record.enabled == ("aws",)
