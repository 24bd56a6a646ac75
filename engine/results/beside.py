"""Several things that are measured of the same evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from data_pipeline.batch import Batch
from engine.results.evaluate import Beside


class Several:
    """More than one of them."""

    def __init__(self, members: Sequence[Beside]) -> None:
        self._members = tuple(members)

    def begin(self) -> None:
        """An evaluation begins."""
        for member in self._members:
            member.begin()

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Around a forward."""
        with ExitStack() as watching:
            for member in self._members:
                watching.enter_context(member.watch(batch))
            yield

    def values(self) -> Mapping[str, float]:
        """Of all of them."""
        return {name: value for member in self._members for name, value in member.values().items()}
