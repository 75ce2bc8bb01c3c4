"""One of SkyPilot's clusters, by its name: how its launch went, and its end. Attempts and supervisors live on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.adapters import skypilot_client as client
from launcher.adapters.skypilot_errors import meaning, refusal
from launcher.errors import BackendError, LaunchRefused

DOWN_SECONDS = 600.0
_UNDER_WAY = frozenset({"PENDING", "WAITING", "RUNNING"})


def launch(task: Mapping[str, Any], *, name: str, config: Mapping[str, Any]) -> None:
    """Begin it. Raises: LaunchRefused: it is not granted. BackendError: nobody knows whether it has begun."""
    try:
        client.submit(task, name=name, config=config)
    except BackendError:
        raise
    except Exception as error:
        raise _refused(error) from error


def newest_launch(name: str) -> Any | None:
    """The request, as far as the API server remembers it."""
    return max(_launches(name), key=lambda each: each.created_at, default=None)


def demand_granted(begun: Any) -> None:
    """That a launch is under way, or has ended well.

    Raises: LaunchRefused: it has ended without a machine. BackendError: nobody knows how it ended.
    """
    if begun.status in (*_UNDER_WAY, "SUCCEEDED"):
        return
    error = client.outcome(begun.request_id)
    if error is not None:
        raise _refused(error) from error


def find(name: str, *, fresh: bool = False) -> Any | None:
    """SkyPilot's record of it: as it remembers, or `fresh` as the provider says now."""
    how: dict[str, Any] = {}
    if fresh:
        from sky import StatusRefreshMode

        how["refresh"] = StatusRefreshMode.FORCE
    found = client.ask("status", [name], **how)
    return found[0] if found else None


def call_off(name: str) -> None:
    """End its launch, if one is under way."""
    for begun in _launches(name):
        if begun.status in _UNDER_WAY:
            client.cancel(begun.request_id)


def release(name: str) -> None:
    """End its machines. Raises: BackendError: one may be there still."""
    try:
        client.ask("down", name, patience_seconds=DOWN_SECONDS)
    except BackendError:
        raise
    except Exception as error:
        if meaning(error) != "gone":
            raise BackendError(f"{name} could not be released: {error}") from error
    if find(name) is not None:
        raise BackendError(f"{name} is still there after its release; if it stays, `sky down {name}`")


def _launches(name: str) -> list[Any]:
    return [each for each in client.requests(name) if each.name.endswith("launch")]


def _refused(error: BaseException) -> LaunchRefused | BackendError:
    found = refusal(error)
    if found is None:
        return BackendError(f"nobody knows how the launch ended: {type(error).__name__}: {error}")
    return LaunchRefused(*found)
