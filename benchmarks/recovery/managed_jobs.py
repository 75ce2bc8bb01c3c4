"""What SkyPilot's managed jobs want of a lab beyond what a plain launch does, and a record of what they did."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.recovery import netprobe

# The controller inside the API server: a cloud machine for it would cost more time, and Slurm cannot carry one
# (sky/clouds/slurm.py, 0.14.1: HOST_CONTROLLERS). https://docs.skypilot.co/en/latest/reference/config.html
CONSOLIDATED = "jobs:\n  controller:\n    consolidation_mode: true\n"
AsRoot = Callable[[Sequence[str]], "subprocess.Popen[str]"]


def prepare(home: Path, *, as_root: AsRoot) -> Mapping[str, str]:
    """To be called before the API server is started, with the variables that are returned."""
    with (home / ".sky/config.yaml").open("a") as config:
        config.write(CONSOLIDATED)
    certificate, key = home / ".sky/netprobe.pem", home / ".sky/netprobe.key"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=netprobe", "-addext", f"subjectAltName=IP:{netprobe.ADDRESS}", "-days", "30"]
    subprocess.run([*request, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    if as_root(["ip", "addr", "add", f"{netprobe.ADDRESS}/32", "dev", "lo"]).wait():
        raise RuntimeError(f"the lab cannot have the address {netprobe.ADDRESS}")
    as_root(["python3", netprobe.__file__, str(certificate), str(key)])
    return {"SSL_CERT_FILE": str(certificate), "REQUESTS_CA_BUNDLE": str(certificate)}


def events(home: Path, job: int) -> list[tuple[datetime, str]]:
    """The states of a managed job, each with the instant at which the controller wrote it down."""
    query = "SELECT timestamp, new_status FROM job_events WHERE spot_job_id = ? ORDER BY id"
    database = sqlite3.connect(f"file:{home}/.sky/spot_jobs.db?mode=ro", uri=True)
    try:
        rows = database.execute(query, [job]).fetchall()
    finally:
        database.close()
    return [(datetime.fromisoformat(at).replace(tzinfo=UTC), str(status)) for at, status in rows]  # labs are in UTC
