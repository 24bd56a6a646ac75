"""StallingDisk: programs that run with it go no further than so many syncs, so that they can be caught at work."""

from __future__ import annotations

import os
from pathlib import Path

# Python imports it at its start, in the program and in all processes that it starts.
_HOOK = """\
import os, time
_left, _sync = {num_syncs}, os.fsync
_latest = time.monotonic() + 600  # the test may be gone

def fsync(file):
    global _left
    _left -= 1
    while _left < 0 and not os.path.exists({released!r}) and time.monotonic() < _latest:
        open({stalled!r}, "a").close()
        time.sleep(0.01)
    _sync(file)

os.fsync = fsync
"""


class StallingDisk:
    """Lets each process sync `num_syncs` files; the next sync waits for `release`."""

    def __init__(self, folder: Path, num_syncs: int) -> None:
        self._released, self._stalled = folder / "released", folder / "stalled"
        folder.mkdir()
        hook = _HOOK.format(num_syncs=num_syncs, released=str(self._released), stalled=str(self._stalled))
        (folder / "sitecustomize.py").write_text(hook)
        self.environment = os.environ | {"PYTHONPATH": str(folder)}

    @property
    def has_stalled(self) -> bool:
        """Whether a process waits, or did."""
        return self._stalled.exists()

    def release(self) -> None:
        """All go on, and wait no more."""
        self._released.touch()
