"""SkyPilot's SDK as plain questions with an answer and an end.

Every verb of the SDK goes to an API server, which the SDK starts where it is a local one and does not run; each is
answered by a request id. `import sky` takes 1 to 3 s and 150 MiB, so it happens when the first question is asked.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from launcher.adapters.skypilot_errors import meaning
from launcher.errors import BackendError, InputError, Problem

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0  # a FORCE status took 1 to 5 s, starting the server 6 to 19 s, on two busy cores


def sky() -> Any:
    """The package. Raises: InputError: it is not installed."""
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")  # who wants to tell SkyPilot may set it to 0
    try:
        import sky as package
    except ImportError as error:
        fix = 'pip install "spotlaunch[sky]", and SkyPilot\'s own extra for the cloud, e.g. "skypilot[aws]"'
        raise InputError([Problem("L140", f"SkyPilot cannot be loaded: {error}", "", fix)]) from error
    return package


def ask(verb: str, *args: Any, patience_seconds: float = PATIENCE_SECONDS, **kwargs: Any) -> Any:
    """The answer to `sky.client.sdk.<verb>(…)`; `sky` itself has not every verb, and `sky.check` is a module.

    Raises: BackendError: no answer in time, or one that says nothing. Else the exception of SkyPilot's.
    """
    sdk = sky().client.sdk
    return _in_time(lambda: sdk.get(getattr(sdk, verb)(*args, **kwargs)), f"sky {verb}", patience_seconds)


def submit(task: Mapping[str, Any], *, name: str, config: Mapping[str, Any]) -> str:
    """Begin a launch and return at once; the id of its request.

    Raises: BackendError: it is not known to have begun. Else the exception of SkyPilot's.
    """
    package = sky()

    def begin() -> str:
        from sky import skypilot_config

        with skypilot_config.override_skypilot_config(dict(config)):
            return str(package.launch(package.Task.from_yaml_config(dict(task)), cluster_name=name))

    return str(_in_time(begin, "sky launch", PATIENCE_SECONDS))


def requests(name: str | None = None) -> list[Any]:
    """Requests that the API server remembers, newest first; of one cluster, or those that are under way."""
    package = sky()

    def question() -> Any:
        from sky.server import common

        common.check_server_healthy_or_start_fn()  # the SDK's other verbs do it by themselves
        return package.api_status(cluster_name=name, all_status=name is not None, limit=None)

    return list(_in_time(question, "sky api status", PATIENCE_SECONDS))


def outcome(request_id: str) -> BaseException | None:
    """How a request that has ended went: `None`, or the exception it ended with. Raises: BackendError."""
    package = sky()
    try:
        _in_time(lambda: package.get(request_id), "sky api get", PATIENCE_SECONDS)
    except BackendError:
        raise
    except Exception as error:
        return error
    return None


def cancel(request_id: str) -> None:
    """Abort a request that is under way, and wait until it is aborted."""
    package = sky()
    _in_time(lambda: package.get(package.api_cancel(request_id, silent=True)), "sky api cancel", PATIENCE_SECONDS)


def _in_time(question: Callable[[], Any], what: str, seconds: float) -> Any:
    """The answer, unless it takes too long: a thread that waits for ever must not keep the supervisor from the cap."""
    answer: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(question())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise BackendError(f"{what} gave no answer in {seconds:g} s; it is asked again")
    if failure:
        raise _translated(failure[0], what)
    return answer[0]


def _end_orphans() -> None:
    """Kill what an API server that was killed itself has left: its workers hold its ports, so that none can start.

    They are of its session, which has no leader any more. A launch that one of them had under way is taken up again.
    """
    import psutil

    def session(process: psutil.Process) -> int:
        with suppress(OSError):
            return os.getsid(process.pid)
        return 0

    def is_worker(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.uids().real == os.getuid() and "".join(process.cmdline()).startswith("SkyPilot:executor")
        return False

    everything = list(psutil.process_iter())
    headless = {s for s in map(session, filter(is_worker, everything)) if s and not psutil.pid_exists(s)}
    for process in everything:
        if session(process) in headless:
            log.warning("ending what a killed API server has left", extra={"pid": process.pid})
            with suppress(psutil.Error):
                process.kill()


def _translated(error: BaseException, what: str) -> BaseException:
    """What says something of a machine is left as it is; the rest is no answer."""
    if meaning(error) != "unclear":
        return error
    if "server process exited" in str(error):
        _end_orphans()
    translated = BackendError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
    translated.__cause__ = error
    return translated
