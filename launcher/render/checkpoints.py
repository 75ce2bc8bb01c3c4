"""Checkpoints of one run folder, as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from launcher.core.runs.checkpoints import Inventory, StoredCheckpoint
from launcher.render.tables import Column, table
from launcher.render.words import clock_time, size

SCHEMA = "launch/checkpoints/v1"


def show_inventory(console: Console, found: Inventory) -> None:
    """The newest first, and what all of them take together."""
    columns = (
        Column("step", "right"),
        Column("attempt", "right", drop=2),
        Column("written", drop=3),
        Column("size", "right"),
        Column("of it new", "right", drop=4),
        Column("ranks", "right", drop=5),
        Column("metrics", drop=1, folds=True),
        Column("state", folds=True),
    )
    if found.checkpoints:
        console.print(table(console, columns, [(_cells(one), "") for one in found.checkpoints]))
    unreferenced = found.unreferenced_bytes
    left_over = f", {size(unreferenced)} of it belong to none of them: `launch checkpoints gc`" if unreferenced else ""
    readable = sum(one.state == "readable" for one in found.checkpoints)
    console.print(
        f" {readable} checkpoints, {size(found.stored_bytes)} in {found.uri}{left_over}",
        highlight=False,
        soft_wrap=True,
    )


def inventory_json(found: Inventory) -> dict[str, Any]:
    """`launch/checkpoints/v1`."""
    return {
        "schema": SCHEMA,
        "uri": found.uri,
        "stored_bytes": found.stored_bytes,
        "unreferenced_bytes": found.unreferenced_bytes,
        "checkpoints": [
            {
                "name": one.name,
                "step": one.step,
                "attempt": one.attempt,
                "state": one.state,
                "why": one.why or None,
                "created_at": one.created_at.isoformat() if one.created_at else None,
                "bytes": one.bytes,
                "added_bytes": one.added_bytes,
                "world_size": one.world_size,
                "metrics": dict(one.metrics),
            }
            for one in found.checkpoints
        ],
    }


def _cells(one: StoredCheckpoint) -> tuple[str, ...]:
    return (
        f"{one.step:,}",
        str(one.attempt),
        "–" if one.created_at is None else clock_time(one.created_at),
        "–" if one.bytes is None else size(one.bytes),
        "–" if one.added_bytes is None else size(one.added_bytes),
        "–" if one.world_size is None else str(one.world_size),
        " ".join(f"{name} {value:.4g}" for name, value in one.metrics.items()),
        f"damaged: {one.why}" if one.why else one.state,
    )
