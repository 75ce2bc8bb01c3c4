"""An S3 server for the adapters that speak to one."""

from __future__ import annotations

from tests.hooks.conftest import s3, s3_line, s3_server

__all__ = ["s3", "s3_line", "s3_server"]
