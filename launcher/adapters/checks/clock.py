"""This machine's clock beside a server's: every HTTP answer carries the server's time in its `Date`."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from launcher.adapters.feeds.https import NoRedirects
from launcher.core.doctor.checkup import Check
from launcher.core.doctor.checkup import clock as judged

_SECONDS = 8.0


def clock(url: str) -> list[Check]:
    """Beside the server at `url`, whatever it answers to an unsigned request."""
    server = urlsplit(url).hostname or url
    try:
        sent = time.time()
        date = _date(url)
        received = time.time()
        # cut to the second, so it was half a second later on average
        at_server = parsedate_to_datetime(date).timestamp() + 0.5
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        fix = "the check of the bucket or cloud behind it says what is wrong"
        return [Check(name="clock", state="skipped", found=f"{server} does not tell its time: {reason}", fix=fix)]
    offset_seconds, within_seconds = (sent + received) / 2 - at_server, 0.5 + (received - sent) / 2
    return [judged(offset_seconds, within_seconds=within_seconds, server=server)]


def nobody_to_ask() -> list[Check]:
    found = "no bucket and no remote API server in use to compare with"
    return [Check(name="clock", state="skipped", found=found, fix="`timedatectl` says whether NTP sets it")]


def _date(url: str) -> str:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  # http or https: from settings
    opener = urllib.request.build_opener(NoRedirects)
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return str(answer.headers["Date"])
    except urllib.error.HTTPError as answer:  # a refusal has a date, too
        with answer:
            return str(answer.headers["Date"])
