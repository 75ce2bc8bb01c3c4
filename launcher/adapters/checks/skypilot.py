"""SkyPilot: is it there, does its API server answer, which clouds may it use, how old are its prices.

The clouds that it can use are what its check returns; why it cannot use another is only printed, as

      AWS: disabled
        Reason [compute, storage]: AWS credentials are not set. Run the following commands:
          $ aws configure
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher.adapters.checks.clock import clock
from launcher.adapters.skypilot_catalog import fetched_at
from launcher.adapters.skypilot_client import sky
from launcher.adapters.skypilot_clouds import UNPRICED
from launcher.adapters.system_clock import SystemClock
from launcher.core.doctor.checkup import Check, CloudState, catalogue, clouds, skypilot_version

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SUMMARY = re.compile(r"^.*Enabled infra\b", re.MULTILINE)
_MISSING = re.compile(r"not installed|failed to import|no module|importerror|dependencies", re.IGNORECASE)
_CLOUD = re.compile(r"^  (?P<name>\w+): (?:enabled|disabled)\b.*$", re.MULTILINE)
_STRANGE = "SkyPilot knows no cloud of that name"


def skypilot(wanted: Collection[str], catalogues: Path) -> list[Check]:
    """The package, the server, each cloud and its prices; only `wanted` clouds are asked, where any are named."""
    if find_spec("sky") is None:
        fix = f'pip install "spotlaunch[sky]" "skypilot[{",".join(sorted(wanted)) or "aws"}]"'
        found = "is not installed: runs go to this machine only"
        return [Check(name="SkyPilot", state="failed" if wanted else "skipped", found=found, fix=fix)]
    package = sky()
    version = skypilot_version(package.__version__)
    if version.state == "failed":
        return [version]
    states = _cloud_states(package, sorted(wanted))
    enabled = [state.name.lower() for state in states if state.is_enabled]
    return [
        version,
        *_server(package),
        *clouds(states, wanted),
        *_prices([cloud for cloud in enabled if cloud not in UNPRICED], catalogues),
    ]


def parse_states(text: str, enabled: Collection[str]) -> tuple[CloudState, ...]:
    """What SkyPilot prints, a block for each cloud; `enabled` in lower case."""
    plain = _SUMMARY.split(_COLOUR.sub("", text))[0]
    heads = list(_CLOUD.finditer(plain))
    ends = [head.start() for head in heads[1:]] + [len(plain)]
    return tuple(
        _state(head["name"], plain[head.end() : end], is_enabled=head["name"].lower() in enabled)
        for head, end in zip(heads, ends, strict=True)
    )


def _state(name: str, block: str, *, is_enabled: bool) -> CloudState:
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    if is_enabled:
        warnings = [line.partition("Warning: ")[2] for line in lines if "Warning: " in line]
        return CloudState(name=name, is_enabled=True, warning=" ".join(warnings))
    reasons = [
        re.sub(r"^.*?Reason \[.*?\]: ", "", line) for line in lines if not line.startswith(("$", "For more info"))
    ]
    reason = " ".join(reasons).replace("Run the following commands:", "").strip()
    commands = tuple(line.removeprefix("$ ").partition("  #")[0] for line in lines if line.startswith("$ "))
    if _MISSING.search(reason) and not commands:
        commands = (f'pip install "skypilot[{name.lower()}]"',)
    return CloudState(name=name, is_enabled=False, reason=" ".join(reason.split())[:300], commands=commands)


def _cloud_states(package: Any, wanted: Sequence[str]) -> tuple[CloudState, ...]:
    """A fresh check of the credentials of `wanted`, or of every cloud; it starts a local API server."""
    sdk, said = package.client.sdk, io.StringIO()
    known = {str(cloud).lower() for cloud in package.utils.registry.CLOUD_REGISTRY}
    strange = [CloudState(name=name, is_enabled=False, reason=_STRANGE) for name in wanted if name not in known]
    asked = tuple(name for name in wanted if name in known)
    if wanted and not asked:
        return tuple(strange)
    request = sdk.check(asked or None, True)
    answer = sdk.stream_and_get(request, output_stream=said)
    enabled = {cloud.lower() for by_workspace in answer.values() for cloud in by_workspace}
    return (*parse_states(said.getvalue(), enabled), *strange)


def _server(package: Any) -> list[Check]:
    """It has answered before; a remote one's clock is compared, too."""
    url, health = package.server.common.get_server_url(), package.client.sdk.api_info()
    checks = [Check(name="SkyPilot API server", state="ok", found=f"{url}, version {health.version}")]
    if health.version and health.version != package.__version__:
        fix = "install the same version on both sides, then `sky api stop; sky api start`"
        found = f"{url} has version {health.version}, this machine {package.__version__}"
        checks = [Check(name="SkyPilot API server", state="warning", found=found, fix=fix)]
    return checks if package.server.common.is_api_server_local() else [*checks, *clock(f"{url}/api/health")]


def _prices(enabled: Sequence[str], catalogues: Path) -> list[Check]:
    now = SystemClock().now()
    paths = {cloud: catalogues / cloud / "vms.csv" for cloud in enabled}
    return [catalogue(cloud, fetched_at(path) if path.exists() else None, now=now) for cloud, path in paths.items()]
