"""Measures what a run costs one rank, rank 0 and the file system as ranks and samples grow.

python -m benchmarks.scale --out benchmarks/results/scale.json [--ranks 1 64 512 4096] [--samples 1000000 ...]

Nothing is larger than this machine: files are small, indexes synthetic, the ranks of a group are threads. docs/scale.md
says what is measured, what is arithmetic, and what follows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.scaling import following, joining, order, saving

COLUMNS = {
    "ranks": ["ranks", ",d"],
    "samples": ["samples", ",d"],
    "index_mb": ["index, MB", ",.0f"],
    "open_s": ["opening it, s", ".2f"],
    "first_s": ["first plan, s", ".3f"],
    "memory_mb": ["memory of both, MB", ".0f"],
    "node_shards": ["shards a node reads per epoch", ",d"],
    "shards": ["of", ",d"],
    "peers": ["connections of a rank", ",d"],
    "files": ["files of a checkpoint", ",d"],
    "operations": ["metadata operations", ",d"],
    "publish_s": ["rank 0 to publish it, s", ".2f"],
    "rank_gb": ["most GB of a rank", ".2f"],
    "log_mb": ["event log of an epoch, MB", ",.1f"],
    "gather_kb": ["told to each rank per report, kB", ",.0f"],
}
_REPORT_EVERY = 10


def main(arguments: list[str]) -> int:
    """Writes one row per number of ranks and samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 64, 512, 4096])
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000_000, 100_000_000, 1_000_000_000])
    parser.add_argument("--parameters", type=int, default=304_000_000, help="of the model that is saved")
    parser.add_argument("--joined", type=int, nargs="+", default=[16, 32, 64], help="sizes of groups to form")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--join", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.join:
        json.dump([joining.join_best(size, rounds=given.rounds) for size in given.joined], sys.stdout)
        return 0
    log, meeting = following.log_costs(), _meeting(given.joined, given.rounds)
    rows = _rows(given.ranks, given.samples, given.parameters, given.rounds, event_bytes=log["event_bytes"])
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=_note(given.parameters, meeting),
        versions=installed_versions(["torch", "numpy"]),
        log=log,
        meeting=meeting,
    )
    return 0


def _rows(
    ranks: list[int], samples: list[int], num_parameters: int, rounds: int, *, event_bytes: float
) -> list[dict[str, Any]]:
    saves = {num_ranks: saving.save(num_ranks) for num_ranks in ranks}
    rows = []
    for num_samples in samples:
        planned = order.measure_order(num_samples, ranks, rounds=rounds)
        for num_ranks in ranks:
            num_reports = num_samples / (order.SHARE * num_ranks) / _REPORT_EVERY
            save = saves[num_ranks]
            rows.append(
                {
                    "ranks": num_ranks,
                    "samples": num_samples,
                    **planned[num_ranks],
                    **save,
                    "peers": num_ranks - 1,
                    "files": int(save["files"]),
                    "operations": int(save["operations"]),
                    "rank_gb": saving.bytes_per_rank(num_parameters, num_ranks) / 1e9,
                    "log_mb": event_bytes * num_reports / 1e6,
                    "gather_kb": following.comparing(num_ranks)["gather_bytes"] / 1e3,
                    "compare_ms": following.comparing(num_ranks)["compare_ms"],
                }
            )
    return rows


def _meeting(sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """Groups of each size, in a process where ranks connect at once and in one where they connect late."""
    found = []
    for lazy in (False, True):
        command = [sys.executable, "-m", "benchmarks.scale", "--join", "--rounds", str(rounds)]
        done = subprocess.run(
            [*command, "--joined", *map(str, sizes)],
            check=True,
            capture_output=True,
            env={**os.environ, joining.LAZY: "1" if lazy else "0", "OMP_NUM_THREADS": "1"},
        )
        found += [{"lazy": lazy, **one} for one in json.loads(done.stdout)]
    return found


def _note(num_parameters: int, meeting: list[dict[str, Any]]) -> str:
    eager, late = (
        max((m for m in meeting if m["lazy"] is lazy), key=lambda m: m["ranks"]) for lazy in (False, True)
    )
    pairs = eager["ranks"] * (eager["ranks"] - 1) / 2
    return (
        f"{order.SHARE} images per rank and step, shards of {order.SAMPLES_PER_SHARD:,} images, "
        f"{order.RANKS_PER_NODE} ranks per node, a report every {_REPORT_EVERY} steps, a model "
        f"of {num_parameters / 1e6:,.0f} M parameters at ZeRO 2 with a moving average. Opening, planning, publishing "
        "and the counts of files and operations are measured, gigabytes and connections are arithmetic. A group of "
        f"{eager['ranks']} ranks, threads of one process, stood after {eager['join_s']:.2f} s with "
        f"{eager['sockets']:,.0f} sockets ({eager['join_s'] / pairs * 1e6:,.0f} us for each pair), with "
        f"{joining.LAZY}=1 after {late['join_s']:.2f} s with {late['sockets']:,.0f} sockets."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
