"""Enabled clouds and renewed prices, with SkyPilot's own API server, its own downloads, and a pretend AWS."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from launcher.adapters.skypilot_catalog import read_catalogue
from launcher.adapters.skypilot_clouds import read_clouds
from launcher.adapters.snapshot_prices import load_catalog
from tests.adapters.catalogues import AWS, INFO, ask_skypilot, folder, write

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("sky") is None, reason="SkyPilot is not installed"),
]

BIN = Path(sys.executable).parent
P5 = ["p5.48xlarge", "H100", 8.0, 192.0, 2048.0, INFO, "55.04", "16.1", "us-east-2", "use2-az1", "x86_64"]
TRN1 = ["trn1.2xlarge", "Trainium", 1.0, 8.0, 32.0, INFO, "1.34", "", "us-east-1", "use1-az1", "x86_64"]
NOBODY = "http://127.0.0.1:9"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def published(tmp_path: Path) -> Iterator[str]:
    """Address of a folder of catalogues that has AWS only."""
    write(tmp_path / "published", "aws", AWS, [P5])
    root = tmp_path / "root"
    shutil.copytree(folder(tmp_path / "published"), root / "v8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/config.yaml").write_text("allowed_clouds: [aws]\n")  # the others would only time out
    given = {
        "HOME": str(tmp_path),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
        "AWS_ENDPOINT_URL": aws,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "LAUNCH_STATE_FOLDER": str(tmp_path / "state"),
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(port),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "https_proxy": NOBODY,
    }
    yield given
    stopped = subprocess.run([BIN / "sky", "api", "stop"], env=given, capture_output=True, check=False, timeout=60)
    assert stopped.returncode == 0, stopped.stderr


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
