"""A process as a session finds it, and an S3 server of one's own: a real process, one per test process."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import torch

from tests.hooks.slow_s3 import Line, a_line_to

BUCKET = "runs"


@pytest.fixture(autouse=True)
def _as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launcher's environment before a test, and none of a session's handlers after it."""
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith("LAUNCH_")]:
        monkeypatch.delenv(name)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    hook = sys.excepthook
    yield
    for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), before, strict=True):
        signal.signal(number, handler)
    sys.excepthook = hook


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of moto's S3, with one empty bucket."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    environment = os.environ | {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(64 << 20)}  # keep objects in memory
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        said = (line.decode(errors="replace") for line in process.stderr)
        url = next(found[0] for line in said if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        # It logs every request, and a full pipe would stop it.
        empties = threading.Thread(target=lambda: deque(said, maxlen=0))
        empties.start()
        try:
            _make_bucket(url)
            yield url
        finally:
            process.kill()
            empties.join()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder in the server's bucket, as a URI; the environment says how to reach it."""
    _use(s3_server, monkeypatch)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def s3_line(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Line]]:
    """The same through a line that can be given trouble."""
    with a_line_to(s3_server) as line:
        _use(line.url, monkeypatch)
        yield s3, line


def _use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)


def _make_bucket(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("PUT", f"/{BUCKET}")
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
