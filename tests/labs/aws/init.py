"""Process 1 of a lab: starts the API, reaps orphans, and takes everything inside along when it ends."""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> int:
    api = subprocess.Popen([sys.executable, "-m", "tests.labs.aws.api", *sys.argv[1:]])
    while True:
        pid, status = os.wait()
        if pid == api.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
