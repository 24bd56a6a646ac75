"""Bad samples: which images could not be used, why, and when there are too many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """An image that could not be decoded."""

    sample_id: int
    shard: str
    key: str
    reason: str


class BadSamples:
    """The bad samples one rank has met, each once however often it comes by."""

    def __init__(self, *, num_samples: int, max_fraction: float) -> None:
        self._num_samples = num_samples
        self._max_fraction = max_fraction
        self._met: dict[int, BadSample] = {}
        self._undrained: list[BadSample] = []

    def add(self, samples: Iterable[BadSample]) -> None:
        """Records samples; raises DataError with a table of reasons once they exceed the allowed fraction."""
        for sample in samples:
            if sample.sample_id not in self._met:
                self._met[sample.sample_id] = sample
                self._undrained.append(sample)
        if len(self._met) > self._max_fraction * self._num_samples:
            raise DataError(self._verdict())

    def counts(self) -> dict[str, int]:
        """Number of bad samples by reason."""
        return dict(Counter(sample.reason for sample in self._met.values()))

    def drain(self) -> list[BadSample]:
        """What was met since the last call."""
        drained, self._undrained = self._undrained, []
        return drained

    def _verdict(self) -> str:
        table = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts().items()))
        example = next(iter(self._met.values()))
        return (
            f"{len(self._met)} of {self._num_samples} images cannot be used ({table}); the first is key "
            f"{example.key!r} in shard {example.shard!r}; data.max_bad_fraction allows {self._max_fraction:g}: "
            "repair the data (mirada data verify --deep finds all), or raise it"
        )
