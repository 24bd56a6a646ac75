"""Measures the search for near-duplicates: a million random hashes with planted pairs against fifty thousand.

python -m benchmarks.duplicates --out benchmarks/results/duplicates.json [--rounds 5] [--hashes N] [--others N]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result_file import installed_versions, write_result_file
from data_pipeline.inspection.near_pairs import Hashes, NearPairs, find_near_pairs

COLUMNS = {
    "name": ["radius, bits", "s"],
    "seconds": ["seconds, median", ".1f"],
    "slowest": ["slowest", ".1f"],
    "recall": ["planted pairs found", ".4f"],
    "pairs": ["pairs", ",d"],
    "checked": ["pairs among 2,000 x 50,000 by brute force", ",d"],
    "missed": ["of these missed", ",d"],
}
_RADII = (4, 8, 10)
_PLANTED = 5_000
_CHECKED = 2_000


def main(arguments: list[str]) -> int:
    """Runs the rounds, radii interleaved, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--others", type=int, default=50_000)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, given.hashes, dtype=np.uint64)
    others = rng.integers(0, 2**64, given.others, dtype=np.uint64)
    planted = min(_PLANTED, given.others // 2, given.hashes)
    seconds: dict[int, list[float]] = {radius: [] for radius in _RADII}
    rows: dict[int, dict[str, Any]] = {}
    for _ in range(given.rounds):
        for radius in _RADII:
            others[:planted] = _flipped(hashes[:planted], radius, rng)
            began = time.perf_counter()
            near = find_near_pairs(hashes, others, radius)
            seconds[radius].append(time.perf_counter() - began)
            rows[radius] = _score(near, hashes, others, radius, planted)
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=[
            {
                "name": str(radius),
                "seconds": statistics.median(seconds[radius]),
                "slowest": max(seconds[radius]),
                **rows[radius],
            }
            for radius in _RADII
        ],
        note=f"{given.hashes:,} random 64-bit hashes against {given.others:,}, {planted:,} pairs planted within the "
        f"radius; one process; peak memory {_peak_mb():,.0f} MB; {given.rounds} interleaved rounds.",
        versions=installed_versions(["numpy"]),
    )
    return 0


def _flipped(hashes: Hashes, radius: int, rng: np.random.Generator) -> Hashes:
    """The hashes with 0 to `radius` random bits flipped, each number as often."""
    order = rng.random((len(hashes), 64)).argsort(axis=1)
    counts = rng.integers(0, radius + 1, len(hashes))
    bits = np.where(order < counts[:, None], np.uint64(1) << np.arange(64, dtype=np.uint64), np.uint64(0))
    return hashes ^ np.bitwise_or.reduce(bits, axis=1)


def _score(near: NearPairs, hashes: Hashes, others: Hashes, radius: int, planted: int) -> dict[str, Any]:
    found = set(zip(near.places.tolist(), near.other_places.tolist(), strict=True))
    recall = sum((place, place) in found for place in range(planted)) / planted
    # Half of what is checked by brute force has planted counterparts, half has none.
    checked = np.unique(np.linspace(0, 2 * planted - 1, min(_CHECKED, len(hashes))).astype(np.int64))
    pairs = [
        (int(place), int(other))
        for place in checked
        for other in np.flatnonzero(np.bitwise_count(hashes[place] ^ others) <= radius)
    ]
    return {
        "recall": recall,
        "pairs": len(near.places),
        "checked": len(pairs),
        "missed": sum(pair not in found for pair in pairs),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
