"""Evaluation by the names of classes: towers for images and texts, scored as a classifier is, every image once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from data_pipeline.batch import normalize
from engine.results.evaluate import Evaluator, Scores, Tally
from models.zero_shot import class_directions

NameClasses = Callable[[Sequence[str]], Tensor]
"""Names of classes -> tokens of what they are called, int64 [classes, prompts, L]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotEvaluator(Evaluator):
    """A validation set, and what its classes are called."""

    tokens: Tensor
    """int64 [classes, prompts, L]."""

    def scores_alone(self, model: nn.Module) -> Scores:
        """Of `model` (images, tokens) -> vectors, as `models.image_text`."""
        tokens = self.tokens.to(self.world.device)
        directions = class_directions(lambda part: _vectors(model(None, part)[1]), tokens)
        tally = Tally(self.world)
        for batch in self.batches:
            batch = batch.to(self.world.device)
            with self.watching(batch):
                seen, _, scale, _ = model(normalize(batch.images, self.mean, self.std))
            tally.add(scale * _vectors(seen) @ directions.T, batch)
        return tally.scores()


def _vectors(found: Tensor | None) -> Tensor:
    assert found is not None
    return found
