"""Measures how well the order mixes shards that are sorted by class, by window, against a full permutation.

python -m benchmarks.shuffle --out benchmarks/results/shuffle.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.result_file import installed_versions, write_result_file
from data_pipeline.order.plan import Plan

Ints = NDArray[np.int64]

COLUMNS = {
    "corpus": ["corpus, sorted by class", "s"],
    "window": ["window", "s"],
    "streams": ["streams", "s"],
    "open_shards": ["shards in play", "s"],
    "displacement": ["mean displacement, of N", ".3f"],
    "classes": ["classes in a batch", ".1f"],
    "mixing": ["of a permutation's, %", ".1f"],
    "largest": ["largest class in a batch, %", ".2f"],
    "adjacent": ["neighbours of one shard, %", ".2f"],
}
WINDOWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """A corpus whose samples lie class after class, in shards of equal size."""

    num_shards: int
    shard_length: int
    num_classes: int
    global_batch: int

    @property
    def num_samples(self) -> int:
        return self.num_shards * self.shard_length

    def __str__(self) -> str:
        shards = f"{self.num_shards:,} x {self.shard_length:,}"
        return f"{shards}, {self.num_classes:,} classes, batch {self.global_batch:,}"


CORPORA = (
    Sorted(num_shards=1280, shard_length=1000, num_classes=1000, global_batch=1024),
    Sorted(num_shards=128, shard_length=10_000, num_classes=1000, global_batch=1024),
    Sorted(num_shards=32, shard_length=2000, num_classes=100, global_batch=256),
)


def main(arguments: list[str]) -> int:
    """Writes one row per corpus and window, and one per corpus for a full permutation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=[row for corpus in CORPORA for row in _rows(corpus, given.seeds)],
        note=(
            f"Means over an epoch and {given.seeds} seeds. Displacement is |place in the epoch - place in the corpus| "
            "/ N, 1/3 for a permutation. No timing enters, so the machine does not matter."
        ),
        versions=installed_versions(["numpy"]),
    )
    return 0


def _rows(corpus: Sorted, seeds: int) -> Iterator[dict[str, object]]:
    permutations = [np.random.default_rng(seed).permutation(corpus.num_samples) for seed in range(seeds)]
    best = _qualities(corpus, permutations)
    for window in WINDOWS:
        plans = [
            Plan(
                np.full(corpus.num_shards, corpus.shard_length),
                global_batch=corpus.global_batch,
                seed=seed,
                window=window,
            )
            for seed in range(seeds)
        ]
        steps = range(plans[0].batches_per_epoch)
        orders = [np.concatenate([plan.batch(0, step) for step in steps]) for plan in plans]
        yield {
            "corpus": str(corpus),
            "window": str(window),
            "streams": str(plans[0].num_streams),
            "open_shards": f"{plans[0].num_streams * window:,}",
            **(found := _qualities(corpus, orders)),
            "mixing": 100 * found["classes"] / best["classes"],
        }
    yield {
        "corpus": str(corpus),
        "window": "permutation",
        "streams": "-",
        "open_shards": "all",
        **best,
        "mixing": 100.0,
    }


def _qualities(corpus: Sorted, orders: list[Ints]) -> dict[str, float]:
    found = [_quality(corpus, order) for order in orders]
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def _quality(corpus: Sorted, order: Ints) -> dict[str, float]:
    order = order[: len(order) // corpus.global_batch * corpus.global_batch]
    batches = order.reshape(-1, corpus.global_batch) * corpus.num_classes // corpus.num_samples
    counts = np.stack([np.bincount(batch, minlength=corpus.num_classes) for batch in batches])
    shards = order // corpus.shard_length
    return {
        "displacement": float(np.abs(order - np.arange(len(order))).mean() / corpus.num_samples),
        "classes": float((counts > 0).sum(axis=1).mean()),
        "largest": float(100 * counts.max(axis=1).mean() / corpus.global_batch),
        "adjacent": float(100 * (shards[1:] == shards[:-1]).mean()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
