"""Clients of AWS that give up in time: botocore's own patience is five tries of a minute each."""

from __future__ import annotations

from typing import Any


def aws_client(session: Any, service: str, region: str | None) -> Any:
    """Of a boto3 session; without `region` in the session's own, else us-east-1. Raises: BotoCoreError."""
    from botocore.config import Config  # type: ignore[import-untyped]  # it ships no types

    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    return session.client(service, region_name=region or session.region_name or "us-east-1", config=config)
