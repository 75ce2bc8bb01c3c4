"""Live prices and capacity signals of clouds, where the user wants them and has credentials. None has to be there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.adapters.feeds.aws import AwsFeed
from launcher.adapters.feeds.azure import AzureFeed
from launcher.adapters.feeds.gcp import GcpFeed
from launcher.adapters.feeds.live import LiveFeeds

__all__ = ["FEEDS", "AwsFeed", "AzureFeed", "GcpFeed", "LiveFeeds", "open_feeds"]

FEEDS = {"aws": AwsFeed, "gcp": GcpFeed, "azure": AzureFeed}


def open_feeds(names: Sequence[str], folder: Path) -> LiveFeeds | None:
    """Those that the setting `feeds` names; answers are kept in `folder`. `None`: it names none."""
    return LiveFeeds([FEEDS[name]() for name in names], folder=folder) if names else None
