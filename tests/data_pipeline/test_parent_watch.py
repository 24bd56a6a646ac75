"""A worker whose parent was killed ends, even while it waits for work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from configs.load import packaged_root
from tests.support.nginx import wait_until
from tests.support.processes import has_ended

PARENT = """
import multiprocessing, os, time
from data_pipeline.parent_watch import end_with_parent

def idle(ready):
    end_with_parent()
    ready.put(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    ready = context.Queue()
    context.Process(target=idle, args=(ready,)).start()
    print(ready.get(), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_an_idle_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(packaged_root())}
    with subprocess.Popen(
        [sys.executable, program], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        wait_until(lambda: has_ended(worker))
