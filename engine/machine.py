"""What a run, and a result file, says about the machine it was made on."""

from __future__ import annotations

import os
import platform


def describe_machine() -> dict[str, str | int]:
    """The processor's own name where the system tells it, cores this process may use, and Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named, platform.machine())
    except OSError:
        return platform.machine()
