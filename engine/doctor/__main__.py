"""The doctor's program, started like a training program on every rank: parse, check, exit code.

python -m engine.doctor --shared DIR [--out FILE] [--data LOCATION ...] [--tracking URI] [--cpus N] [--gpus N] ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.exit_code import run_main
from configs.finding import write_findings
from engine.doctor.checkup import Wanted, examine
from engine.world import close_world, init_world


def main(arguments: Sequence[str] | None = None) -> int:
    """Examines, and lets rank 0 write the findings; 0 whatever they are, since they are the result."""
    options = _parse(arguments)
    world = init_world()
    findings = examine(
        world,
        Wanted(
            shared=options.shared,
            data=tuple(options.data),
            tracking=options.tracking,
            cpus_per_task=options.cpus,
            gpus_per_node=options.gpus,
            ranks_per_node=options.ranks,
        ),
    )
    if world.is_main and options.out is not None:
        write_findings(options.out, findings)
    elif world.is_main:
        sys.stdout.writelines(f"{finding}\n" for finding in findings)
    close_world()
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine.doctor", allow_abbrev=False)
    parser.add_argument(
        "--out", type=Path, help="file that gets the findings, as JSON; default: they are printed"
    )
    parser.add_argument("--shared", type=Path, required=True, help="folder that every node should see")
    parser.add_argument("--data", action="append", default=[], help="folder of indexed shards to read from")
    parser.add_argument("--tracking", help="tracking URI that the nodes should reach")
    parser.add_argument("--cpus", type=int, default=1, help="cores that each rank should have")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that each node should have")
    parser.add_argument("--ranks", type=int, default=1, help="ranks that each node should have")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_main(main)
