"""What `launch doctor` found, one `Check` per question, and the rules that make a verdict of a finding. Asks nobody."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

State = Literal["ok", "warning", "failed", "skipped"]

CREDENTIALS = 4  # exit code

_CLOCK_WARNS_SECONDS, _CLOCK_FAILS_SECONDS = 5.0, 60.0
_SPACE_WARNS_BYTES, _SPACE_FAILS_BYTES = 5_000_000_000, 100_000_000
_PRICES_GROW_OLD = timedelta(days=3)
_SKYPILOT_KNOWN = (0, 14, 1)
_NEEDS_CREDENTIALS = re.compile(
    r"credential|password|api.?key|token|\bnot (authenticated|logged)|permission denied", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`found` is one line; `fix` says what to do, or, of what was skipped, what it would take."""

    name: str
    state: State
    found: str
    fix: str = ""
    is_credentials: bool = False  # it failed because somebody has to log in, or to be allowed something


def exit_code(checks: Iterable[Check]) -> int:
    """0: nothing failed. 4: nothing but credentials is missing. 1: anything else failed."""
    failed = [check for check in checks if check.state == "failed"]
    if not failed:
        return 0
    return CREDENTIALS if all(check.is_credentials for check in failed) else 1


def wants_credentials(reason: str) -> bool:
    """Whether somebody's words mean that this user is not let in."""
    return bool(_NEEDS_CREDENTIALS.search(reason))


def clock(offset_seconds: float, *, within_seconds: float, server: str) -> Check:
    """Of this machine's clock: `offset_seconds` ahead of `server`'s, give or take `within_seconds`."""
    side = "ahead of" if offset_seconds > 0 else "behind"
    found = f"{abs(offset_seconds):.1f} s {side} {server}, ± {within_seconds:.1f} s"
    surely = abs(offset_seconds) - within_seconds
    if surely <= _CLOCK_WARNS_SECONDS:
        return Check(name="clock", state="ok", found=found)
    fix = "deadlines and bills go by this clock: let NTP set it, e.g. `sudo timedatectl set-ntp true`"
    return Check(name="clock", state="failed" if surely > _CLOCK_FAILS_SECONDS else "warning", found=found, fix=fix)


def free_space(folder: str, free_bytes: int, *, holds_runs: bool) -> Check:
    """Of the state folder; with `holds_runs`, checkpoints go there as well."""
    found = f"{folder} is writable, {free_bytes / 1e9:,.1f} GB free"
    fix = "free some, or set state_folder elsewhere"
    if free_bytes < _SPACE_FAILS_BYTES:
        return Check(name="state folder", state="failed", found=found, fix=f"the ledger could not be written: {fix}")
    if holds_runs and free_bytes < _SPACE_WARNS_BYTES:
        fix = f"checkpoints go there too: {fix}, or runs_uri to a bucket"
        return Check(name="state folder", state="warning", found=found, fix=fix)
    return Check(name="state folder", state="ok", found=found)


def catalogue(cloud: str, fetched_at: datetime | None, *, now: datetime) -> Check:
    """Of one cloud's prices as SkyPilot has downloaded them; `None`: it has not."""
    name, fix = f"{cloud} prices", "`launch offers --refresh`"
    if fetched_at is None:
        return Check(name=name, state="warning", found="no catalogue on disk: the embedded snapshot is used", fix=fix)
    age = now - fetched_at
    found = f"catalogue of {fetched_at:%Y-%m-%d %H:%M} UTC, {max(0.0, age / timedelta(hours=1)):,.0f} h old"
    if age > _PRICES_GROW_OLD:
        return Check(name=name, state="warning", found=found, fix=f"spot prices have moved since: {fix}")
    return Check(name=name, state="ok", found=found)


def skypilot_version(version: str) -> Check:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    oldest = ".".join(map(str, _SKYPILOT_KNOWN))
    if numbers < _SKYPILOT_KNOWN:
        fix = f'pip install "skypilot>={oldest}"'
        return Check(name="SkyPilot", state="failed", found=f"version {version}, {oldest} is needed", fix=fix)
    if numbers[:2] > _SKYPILOT_KNOWN[:2]:
        fix = f"if something is odd, try {oldest}, which spotlaunch was tested with"
        return Check(name="SkyPilot", state="warning", found=f"version {version} is newer than what is known", fix=fix)
    return Check(name="SkyPilot", state="ok", found=f"version {version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudState:
    """What SkyPilot says of one cloud; `reason` and `commands` of one that it cannot use, `warning` of one it can."""

    name: str
    is_enabled: bool
    reason: str = ""
    commands: tuple[str, ...] = ()
    warning: str = ""


def clouds(states: Sequence[CloudState], wanted: Collection[str]) -> tuple[Check, ...]:
    """One check for each cloud that is enabled or `wanted`; the others are named together, without blame."""
    checks = [_cloud(state) for state in states if state.is_enabled or state.name.lower() in wanted]
    others = len(states) - len(checks)
    if checks and others:
        fix = "`sky check NAME` says what it takes"
        found = f"{others} more that SkyPilot knows are not enabled"
        checks.append(Check(name="other clouds", state="skipped", found=found, fix=fix))
    if not checks:
        fix = "set one up (docs/clouds.md), then `launch doctor --cloud NAME`; your own machine needs none"
        found = f"none of the {others} that SkyPilot knows is enabled"
        checks.append(Check(name="clouds", state="failed", found=found, fix=fix, is_credentials=True))
    return tuple(checks)


def _cloud(state: CloudState) -> Check:
    name = state.name.lower()
    if state.is_enabled:
        return Check(name=name, state="warning" if state.warning else "ok", found="enabled", fix=state.warning)
    return Check(
        name=name,
        state="failed",
        found=f"not enabled: {state.reason or 'SkyPilot does not say why'}",
        fix="; ".join(state.commands) or f"`sky check {name}` says more",
        is_credentials=wants_credentials(state.reason),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """vCPUs of spot instances that an AWS account may run in a region at once, over a group of instance families.

    Groups, and that most begin at 0: "Spot Instance quotas", Amazon EC2 User Guide, docs.aws.amazon.com/AWSEC2/latest/
    UserGuide/using-spot-limits.html, read 2026-11-21; none of them has P6. vCPUs: EC2 instance types, same guide.
    """

    code: str
    families: str
    vcpus_per_gpu: Mapping[str, int]  # of the machines that have the fewest


SPOT_QUOTAS = (
    Quota(code="L-C4BD4855", families="P5", vcpus_per_gpu={"H100": 24, "H200": 24}),
    Quota(
        code="L-7212CCBC",
        families="P4, P3 and P2",
        vcpus_per_gpu={"A100-40GB": 12, "A100-80GB": 12, "V100-16GB": 8, "V100-32GB": 12},
    ),
    Quota(code="L-3819A6DF", families="G and VT", vcpus_per_gpu={"T4": 4, "A10G": 4, "L4": 4, "L40S": 4}),
)


def spot_quotas(region: str, vcpus: Mapping[str, float], gpus: Mapping[str, int]) -> Check:
    """`vcpus` by quota code; `gpus` that a run wants in all, by type, none where no run is known."""
    known = [quota for quota in SPOT_QUOTAS if quota.code in vcpus]
    found = ", ".join(f"{quota.families} {vcpus[quota.code]:,.0f}" for quota in known)
    check = Check(name=f"aws spot quota {region}", state="ok", found=f"vCPUs: {found}")
    if not gpus and known and not any(vcpus[quota.code] for quota in known):
        return replace(check, state="warning", fix=_increase(region, known[0], "VCPUS"))
    for quota in known:
        for gpu, count in gpus.items():
            wanted = quota.vcpus_per_gpu.get(gpu, 0) * count
            if vcpus[quota.code] < wanted:
                fix = f"{count} {gpu} take {wanted}: {_increase(region, quota, str(wanted))}"
                return replace(check, state="warning", fix=fix)
    return check


def _increase(region: str, quota: Quota, vcpus: str) -> str:
    return (
        f"aws service-quotas request-service-quota-increase --service-code ec2 --region {region} "
        f"--quota-code {quota.code} --desired-value {vcpus}"
    )
