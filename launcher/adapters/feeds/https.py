"""One JSON request over HTTPS, with the standard library."""

from __future__ import annotations

import json
from decimal import Decimal
from http.client import HTTPException
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from launcher.adapters.feeds.port import REQUEST_SECONDS, FeedSilent

_MOST_BYTES = 32 << 20
_LOOPBACK = "127.0.0.1"


class NoRedirects(HTTPRedirectHandler):
    """Only who was asked may answer: urllib would ask whatever host an answer names, and send a token along."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def ask_json(url: str, *, body: object = None, token: str | None = None) -> Any:
    """The answer's JSON, numbers with a point as `Decimal`; a POST where there is a body.

    Raises: FeedSilent: no answer in time, none of status 2xx, or no JSON.
    """
    address = urlsplit(url)
    if address.scheme != "https" and address.hostname != _LOOPBACK:
        raise FeedSilent(f"{address.hostname} would be asked without encryption")
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    request = Request(url, data=data, headers=headers)  # noqa: S310  # the scheme was looked at
    try:
        with build_opener(NoRedirects).open(request, timeout=REQUEST_SECONDS) as answer:
            return json.loads(answer.read(_MOST_BYTES), parse_float=Decimal)
    except HTTPError as error:
        with error:
            raise FeedSilent(f"{address.hostname} answered {error.code} {error.reason}") from error
    except URLError as error:
        raise FeedSilent(f"{address.hostname} did not answer: {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise FeedSilent(f"{address.hostname} did not answer: {error or type(error).__name__}") from error
    except ValueError as error:
        raise FeedSilent(f"{address.hostname} answered no JSON") from error
