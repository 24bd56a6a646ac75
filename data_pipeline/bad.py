"""Bad samples: which images could not be used, why, and when there are too many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from data_pipeline.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """An image that could not be decoded, or a sample without the text that is needed."""

    sample_id: int
    shard: str
    key: str
    reason: str


class BadSamples:
    """The bad samples one rank has met, each once however often it comes by."""

    def __init__(self, *, num_samples: int, max_fraction: float, world_size: int = 1) -> None:
        self._num_samples = num_samples
        self._max_fraction = max_fraction
        self._alone = world_size == 1
        self._met: dict[int, BadSample] = {}
        self._undrained: list[BadSample] = []

    def add(self, samples: Iterable[BadSample]) -> None:
        """Records samples; raises DataError with a table of reasons once they exceed the allowed fraction.

        One of several ranks never raises: the others would wait for it. They add up what they met (`drain`), and stop
        together.
        """
        for sample in samples:
            if sample.sample_id not in self._met:
                self._met[sample.sample_id] = sample
                self._undrained.append(sample)
        if self._alone:
            refuse_too_many(
                self._met.values(), num_samples=self._num_samples, max_fraction=self._max_fraction
            )

    def counts(self) -> dict[str, int]:
        """Number of bad samples by reason."""
        return dict(Counter(sample.reason for sample in self._met.values()))

    def drain(self) -> list[BadSample]:
        """What was met since the last call."""
        drained, self._undrained = self._undrained, []
        return drained


def refuse_too_many(samples: Collection[BadSample], *, num_samples: int, max_fraction: float) -> None:
    """Raises DataError with a table of reasons if these are more than the allowed fraction."""
    if len(samples) <= max_fraction * num_samples:
        return
    counts = Counter(sample.reason for sample in samples)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    raise DataError(
        f"{len(samples)} of {num_samples} images cannot be used ({reasons}); data.max_bad_fraction (mirada evaluate: "
        f"--max-bad-fraction) allows {max_fraction:g}: repair the data (mirada data verify --deep finds all), or raise "
        f"it\n{_table(samples)}"
    )


def _table(samples: Collection[BadSample]) -> str:
    """A line per reason, the most frequent first: how many, in how many shards, and the first of them."""
    lines = [f"{'images':>10}  {'shards':>6}  {'reason':20}  first: shard, key"]
    for reason, count in Counter(sample.reason for sample in samples).most_common():
        those = [sample for sample in samples if sample.reason == reason]
        num_shards, first = len({sample.shard for sample in those}), those[0]
        lines.append(f"{count:>10,}  {num_shards:>6,}  {reason:20}  {first.shard}, {first.key!r}")
    return "\n".join(lines)
