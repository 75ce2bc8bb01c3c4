"""What SkyPilot's exceptions mean, held against the SkyPilot that is installed."""

from __future__ import annotations

import inspect

import pytest

from launcher.adapters.skypilot_errors import MEANINGS, meaning, refusal

exceptions = pytest.importorskip("sky.exceptions", reason="SkyPilot is not installed: pip install spotlaunch[sky]")


def test_every_exception_of_skypilot_has_a_meaning_and_every_meaning_an_exception() -> None:
    raised = {
        name
        for name, kind in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(kind, BaseException) and kind.__module__ == exceptions.__name__
    }
    inherited = {name for name in raised if any(a.__name__ in MEANINGS for a in getattr(exceptions, name).__mro__[1:])}

    assert raised - inherited <= set(MEANINGS)
    assert set(MEANINGS) <= raised


def test_what_a_cloud_said_is_what_the_user_reads() -> None:
    history = [exceptions.CloudError("no p4d in us-east-1a", "aws", "InsufficientInstanceCapacity")]
    error = exceptions.ResourcesUnavailableError("see the log", failover_history=history)

    found = refusal(error)

    assert found == ("no_capacity", "aws error (InsufficientInstanceCapacity): no p4d in us-east-1a")


@pytest.mark.parametrize(
    "words",
    [
        "An error occurred (VcpuLimitExceeded) when calling RunInstances",
        "An error occurred (MaxSpotInstanceCountExceeded)",
        "Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally.",
        "SkuNotAvailable: Operation could not be completed as it results in exceeding approved Total Regional "
        "Cores quota",
    ],
)
def test_a_limit_of_the_account_is_told_from_an_empty_cloud(words: str) -> None:
    error = exceptions.ResourcesUnavailableError("no place", failover_history=[RuntimeError(words)])

    found = refusal(error)

    assert found is not None
    assert found[0] == "quota"


def test_a_lost_connection_refuses_nothing() -> None:
    assert refusal(exceptions.ApiServerConnectionError("http://127.0.0.1:46580")) is None
    assert refusal(ConnectionResetError()) is None


def test_a_subclass_means_what_its_nearest_named_ancestor_means() -> None:
    assert meaning(exceptions.StorageBucketCreateError("no")) == "rejected"
    assert meaning(exceptions.KubeAPIUnreachableError("no")) == "unavailable"
    assert meaning(exceptions.ResourcesUnavailableError("no")) == "no_capacity"
