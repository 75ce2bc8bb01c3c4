"""A PostgreSQL server of one's own on a unix socket, where PostgreSQL is installed: a real process."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SERVICE_USER = "postgres"  # PostgreSQL refuses to run as root


@contextmanager
def a_postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty server. Skips the test where there cannot be one, and says why."""
    initdb, server = _programs()
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install spotlaunch[postgres]")
    user = _user()
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data"
        if user:
            shutil.chown(folder, user)
        _run(initdb, "-D", data, "-U", "ada", "-A", "trust", "-E", "UTF8", "--no-sync", user=user)
        with subprocess.Popen(
            [
                server,
                "-D",
                data,
                "-k",
                folder,
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "log_min_messages=log",
            ],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                said = next((line for line in process.stderr if "ready to accept" in line), None)
                assert said, "PostgreSQL did not start"
                yield f"postgresql://ada@/postgres?host={folder}"
            finally:
                process.send_signal(signal.SIGQUIT)  # at once: nobody will read what it holds
                process.communicate()


def _programs() -> tuple[str, str]:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    path = os.pathsep.join([*map(str, reversed(installed)), os.environ.get("PATH", "")])
    found = [shutil.which(name, path=path) for name in ("initdb", "postgres")]
    if found[0] is None or found[1] is None:
        pytest.skip("PostgreSQL is not installed: no initdb")
    return found[0], found[1]


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_SERVICE_USER).pw_name
    except KeyError:
        pytest.skip(f"PostgreSQL does not run as root, and there is no user {_SERVICE_USER}")


def _run(*command: object, user: str | None) -> None:
    subprocess.run([str(part) for part in command], check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)
