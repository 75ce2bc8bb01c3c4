"""A home on this machine for a real SkyPilot, and for the launcher beside it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
NOBODY = "http://127.0.0.1:9"


@contextmanager
def a_sky_home(home: Path, *, clouds: str, **environ: str) -> Iterator[dict[str, str]]:
    """The environment that leads to it, and `environ`; an API server that was started there ends with the block.

    SkyPilot looks at these `clouds`, divided by commas, and not at the others: they would only time out.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / ".sky").mkdir()
    (home / ".sky/config.yaml").write_text(f"allowed_clouds: [{clouds}]\n")
    given = {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
        "AWS_EC2_METADATA_DISABLED": "true",
        "LAUNCH_STATE_FOLDER": str(home / "state"),
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(port),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "https_proxy": NOBODY,
        **environ,
    }
    try:
        yield given
    finally:
        stopped = subprocess.run([BIN / "sky", "api", "stop"], env=given, capture_output=True, check=False, timeout=60)
        assert stopped.returncode == 0, stopped.stderr
