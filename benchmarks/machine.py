"""What a result file says about the machine it was measured on."""

from __future__ import annotations

import os
import platform


def machine() -> dict[str, str | int]:
    """Processor, cores this process may use, and Python."""
    with open("/proc/cpuinfo") as lines:
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(named, platform.machine())
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
