"""What each of SkyPilot's exceptions means to a launcher; the only place that knows their names.

By name, so that nothing here imports `sky`, and every subclass counts as the nearest ancestor that is named.
A test holds the list against the installed SkyPilot, so that a new exception does not pass unseen.
"""

from __future__ import annotations

from typing import Literal

from launcher.errors import RefusalReason

Meaning = Literal["no_capacity", "unavailable", "rejected", "gone", "unclear"]

MEANINGS: dict[str, Meaning] = {
    # no machine there and now: the next place is asked
    "ResourcesUnavailableError": "no_capacity",
    # this place does not work for this user now, another may
    "KubeAPIUnreachableError": "unavailable",
    "KubernetesValidationError": "unavailable",
    "InvalidCloudConfigs": "unavailable",
    "InvalidCloudCredentials": "unavailable",
    "NoCloudAccessError": "unavailable",
    "CloudError": "unavailable",
    "CloudUserIdentityError": "unavailable",
    "AWSAzFetchingError": "unavailable",
    "ProvisionPrechecksError": "unavailable",
    "ProvisionUnsupportedError": "unavailable",
    "ClusterSetUpError": "unavailable",
    "NotSupportedError": "unavailable",
    "CommandFailureException": "unavailable",
    "CommandError": "unavailable",
    "NetworkError": "unavailable",
    "VolumeNotReadyError": "unavailable",
    "VolumeTopologyConflictError": "unavailable",
    "NoClusterLaunchedError": "unavailable",
    # and once it ran: the machine does not answer
    "ClusterNotUpError": "unavailable",
    "CachedClusterUnavailable": "unavailable",
    "ClusterStatusFetchingError": "unavailable",
    "FetchClusterInfoError": "unavailable",
    "SkyletInternalError": "unavailable",
    "SkyletMethodNotImplementedError": "unavailable",
    "SkyletUnavailableError": "unavailable",
    # the request itself is wrong everywhere
    "ResourcesMismatchError": "rejected",
    "InvalidSkyPilotConfigError": "rejected",
    "InvalidClusterNameError": "rejected",
    "InvalidRecipeNameError": "rejected",
    "RecipeAlreadyExistsError": "rejected",
    "InvalidWorkspaceNameError": "rejected",
    "WorkspaceAmbiguousError": "rejected",
    "NoWorkspaceAccessError": "rejected",
    "PermissionDeniedError": "rejected",
    "UserRequestRejectedByPolicy": "rejected",
    "RestfulPolicyError": "rejected",
    "ClusterOwnerIdentityMismatchError": "rejected",
    "VolumeNotFoundError": "rejected",
    "GitError": "rejected",
    "StorageError": "rejected",
    "StorageSpecError": "rejected",
    "ClientError": "rejected",
    "InconsistentHighAvailabilityError": "rejected",
    # it is not there (any more)
    "ClusterDoesNotExist": "gone",
    # nothing is known: ask again
    "ApiServerConnectionError": "unclear",
    "ApiServerAuthenticationError": "unclear",
    "APIVersionMismatchError": "unclear",
    "APINotSupportedError": "unclear",
    "RequestCancelled": "unclear",
    "RequestInterruptedError": "unclear",
    "RequestAlreadyExistsError": "unclear",
    "ServerTemporarilyUnavailableError": "unclear",
    "ConcurrentWorkerExhaustedError": "unclear",
    "ExecutionRetryableError": "unclear",
    "ExecutionPausedError": "unclear",
    "ExecutionPoolFullError": "unclear",
    "PortDoesNotExistError": "unclear",
    # of managed jobs and services, which are not used: if one comes, something is badly out of order
    "ManagedJobReachedMaxRetriesError": "unclear",
    "ManagedJobStatusError": "unclear",
    "ManagedJobUserCancelledError": "unclear",
    "ServeUserTerminatedError": "unclear",
    "PoolDoesNotExistError": "unclear",
    "SkyPilotExcludeArgsBaseException": "unclear",
}

# of EC2, Compute Engine, Azure and Slurm: there are machines, but not for this account
_QUOTA_WORDS = ("quota", "limitexceeded", "maxspotinstancecount", "assocgrp", "qosmax", "assocmax")


def meaning(error: BaseException) -> Meaning:
    """What to do about it; a stranger is unclear, so that the same question is asked again."""
    named = (MEANINGS.get(kind.__name__) for kind in type(error).__mro__)
    return next((found for found in named if found), "unclear")


def refusal(error: BaseException) -> tuple[RefusalReason, str] | None:
    """Why a launch was refused and in which words; `None` where the error does not say that it was."""
    words = _words(error)
    match meaning(error):
        case "no_capacity" if any(word in words.lower().replace(" ", "") for word in _QUOTA_WORDS):
            return "quota", words
        case "no_capacity":
            return "no_capacity", words
        case "unavailable":
            return "unavailable", words
        case "rejected":
            return "rejected", words
        case "gone" | "unclear":
            return None


def _words(error: BaseException) -> str:
    """What the cloud itself said, where SkyPilot has kept it, in one line."""
    history = [str(each) for each in getattr(error, "failover_history", ())]
    text = " · ".join(dict.fromkeys(" ".join(line.split()) for line in history or [str(error)]))
    return text[:500] or type(error).__name__
