"""Whether a process that need not be a child of ours has ended, however near its end we look."""

from __future__ import annotations

import psutil


def has_ended(process: psutil.Process) -> bool:
    """True as well for one that nobody has waited for yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return True
