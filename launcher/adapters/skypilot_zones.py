"""AWS zones by the names that one account has for them: price lists speak of use1-az1, requests of us-east-1b."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


def aws_zone_names(catalogs: Path) -> Mapping[str, str]:
    """Zone id → name, as SkyPilot has noted it for the account it used last; empty before it has."""
    files = sorted((catalogs / "aws").glob("az_mappings-*.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return {}
    with files[-1].open(newline="", encoding="utf-8") as file:
        return {row["AvailabilityZone"]: row["AvailabilityZoneName"] for row in csv.DictReader(file)}
