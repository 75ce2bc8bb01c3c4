"""What a plan shows beside its numbers."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from launcher.render.plan import listing


def test_a_listing_says_how_far_it_is_and_nothing_is_shown_where_none_is() -> None:
    silent, told = StringIO(), StringIO()

    with listing(Console(file=silent, force_terminal=True)):
        pass
    with listing(Console(file=told, force_terminal=True)) as progress:
        progress("s3://b/x", 1234.0, 34_000)

    assert silent.getvalue() == ""
    assert "listing s3://b/x: 1.23 TB in 34,000 objects" in told.getvalue()
