"""Looking into a run folder, and playing the launcher."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from trainer_hooks import protocol
from trainer_hooks.protocol import Contract, Record


def records(folder: Path, attempt: int = 1) -> list[Record]:
    """What the journal says, in order."""
    lines: list[Record] = []
    for segment in sorted((folder / protocol.journal_folder(attempt)).glob("*.jsonl")):
        for line in segment.read_text().splitlines():
            decoded = protocol.decode(line)
            assert decoded is not None, line
            lines.append(decoded[1])
    return lines


def of_kind(kind: type, folder: Path, attempt: int = 1) -> list[Any]:
    return [record for record in records(folder, attempt) if isinstance(record, kind)]


def checkpoints(folder: Path) -> list[str]:
    found = (folder / "checkpoints").glob("*/manifest.json")
    return sorted((path.parent.name for path in found), key=lambda name: protocol.parse_checkpoint_name(name) or (0, 0))


def launch(monkeypatch: pytest.MonkeyPatch, folder: Path, *, attempt: int = 1, **changes: Any) -> None:
    """Set the environment as the launcher does."""
    values: dict[str, Any] = {"run_id": "run-1", "attempt": attempt, "run_uri": str(folder), "notice": ("signal",)}
    for name, value in Contract(**values | {"spent_usd": Decimal(0)} | changes).to_environment().items():
        monkeypatch.setenv(name, value)


def control(folder: Path, name: str, content: object) -> None:
    path = folder / "control" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{name}")
    fresh.write_text(content if isinstance(content, str) else json.dumps(content))
    fresh.replace(path)
