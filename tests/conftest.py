"""What all tests share: none depends on how fast the machine is, and each run of the suite tries the same cases."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; every child would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
