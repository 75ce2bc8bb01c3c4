"""Tables that fit the terminal: columns are dropped by priority, money is never cut or wrapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

FOLDED_WIDTH = 24  # of text that may wrap, at the least


@dataclass(frozen=True, slots=True)
class Column:
    """`drop`: 0 stays whatever the width; of the others the highest goes first. `folds`: long text may wrap."""

    name: str
    justify: Literal["left", "right"] = "left"
    drop: int = 0
    folds: bool = False


Row = tuple[Sequence[str], str]  # cells and style


def table(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """All columns that fit into the console's width."""
    widths = [_width(column, [cells[n] for cells, _ in rows]) for n, column in enumerate(columns)]
    kept = list(range(len(columns)))
    while sum(widths[n] for n in kept) > console.width and any(columns[n].drop for n in kept):
        kept.remove(max(kept, key=lambda n: columns[n].drop))
    return _built([columns[n] for n in kept], [([cells[n] for n in kept], style) for cells, style in rows])


def _width(column: Column, cells: Sequence[str]) -> int:
    """That the column needs, with its padding."""
    longest = max((cell_len(cell) for cell in (column.name, *cells)), default=0)
    return (min(longest, FOLDED_WIDTH) if column.folds else longest) + 2


def _built(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    built = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for column in columns:
        built.add_column(
            column.name,
            justify=column.justify,
            no_wrap=not column.folds,
            overflow="fold",
        )
    for cells, style in rows:
        built.add_row(*cells, style=style)
    return built
