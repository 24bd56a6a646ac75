"""Four ranks on two nodes (by name) are examined twice: as they are, and with everything wrong on the second node.

``python tests/distributed/doctor_program.py OUT`` as any rank of four.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from configs.finding import write_findings
from engine.doctor import network, processes, shared_folder
from engine.doctor.checkup import Wanted, examine
from engine.world import close_world, init_world

CLOCK_ERROR_S = 5.5
"""What is measured may be half a second off."""


def main() -> None:
    out, is_second = Path(sys.argv[1]), int(os.environ["RANK"]) >= 2
    os.environ["SLURMD_NODENAME"] = "n2" if is_second else "n1"
    world = init_world()
    healthy = examine(world, Wanted(shared=out / "shared", data=("mirada://sample/train",), ranks_per_node=2))
    shared_folder._VISIBLE_S = 1.0
    if is_second:
        break_this_node()
    faulty = examine(
        world,
        Wanted(
            shared=out / ("elsewhere" if is_second else "shared"),
            data=(str(out / "nowhere"),),
            cpus_per_task=4096,
            gpus_per_node=1,
            ranks_per_node=3,
        ),
    )
    if world.is_main:
        write_findings(out / "healthy.json", healthy)
        write_findings(out / "faulty.json", faulty)
    close_world()


def break_this_node() -> None:
    """Its clock is ahead, and somebody has installed another timm."""
    versions = processes._versions()
    processes._versions = lambda: {**versions, "timm": "0.9.0"}
    network.time = SimpleNamespace(  # type: ignore[assignment]
        time=lambda: time.time() + CLOCK_ERROR_S, perf_counter=time.perf_counter
    )


main()
