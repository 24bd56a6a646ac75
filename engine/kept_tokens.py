"""How many tokens a network with `model.attention.dynamic` keeps: logged in training, and in each evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from data_pipeline.batch import Batch
from engine.objective import Loss, Objective, look_ahead
from engine.world import World
from models.dynamic import DynamicBlock, dynamic_blocks


class TokenLog:
    """Any objective, with ``tokens`` among its parts: of an image, mean over the blocks and the micro-batch.

    `network` is the network itself; what is called is the engine's wrapper around it.
    """

    def __init__(self, objective: Objective, network: nn.Module) -> None:
        self._objective = objective
        self._blocks = dynamic_blocks(network)

    def look_ahead(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """For the objective within."""
        look_ahead(self._objective, model, micro_batches)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        loss = self._objective(model, batch)
        tokens = _tokens_by_image(self._blocks).mean().to(loss.total.device)
        return Loss(total=loss.total, parts={**(loss.parts or {"task": loss.total}), "tokens": tokens})


class KeptTokens:
    """``tokens`` as above, and ``tokens_last`` behind the last block; means over the images that count."""

    def __init__(self, network: nn.Module, world: World) -> None:
        self._blocks = dynamic_blocks(network)
        self._world = world
        self.begin()

    def begin(self) -> None:
        """An evaluation begins."""
        self._sums = torch.zeros(3, dtype=torch.float64)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Around the forward of a batch."""
        yield
        weights = batch.weights.double().cpu()
        last = torch.tensor(self._blocks[-1].counts, dtype=torch.float64)
        found = (torch.ones_like(weights), _tokens_by_image(self._blocks), last)
        self._sums += torch.stack([(weights * values).sum() for values in found])

    def values(self) -> Mapping[str, float]:
        """Means over the images of all ranks; all ranks together."""
        count, tokens, last = self._world.sum(self._sums.to(self._world.device)).tolist()
        return {"tokens": tokens / count, "tokens_last": last / count}


def _tokens_by_image(blocks: list[DynamicBlock]) -> Tensor:
    """float64 [B] of the latest forward, mean over blocks."""
    return torch.tensor([block.counts for block in blocks], dtype=torch.float64).mean(dim=0)
