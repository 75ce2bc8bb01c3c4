"""The marks of tests that train in a lab."""

from __future__ import annotations

import pytest


def marks(obstacle: str | None, *, timeout_seconds: int) -> list[pytest.MarkDecorator]:
    """One lab after the other, and none where there is an `obstacle`."""
    return [
        pytest.mark.lab,
        pytest.mark.timeout(timeout_seconds),
        pytest.mark.xdist_group("labs"),
        pytest.mark.skipif(obstacle is not None, reason=str(obstacle)),
    ]
