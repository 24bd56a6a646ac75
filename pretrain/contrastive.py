"""Learning from captions: every image of a batch with every caption of it, over all ranks and micro-batches.

    batch -> both towers -> unit vectors, of all ranks -> gradients by these -> backward through our towers -> Loss

A step in one micro-batch takes one pass through the towers. In several, each micro-batch is first embedded without
gradient, and again when its turn comes (Gao et al. 2021): the loss is that of the whole batch all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from configs.base import Section
from data_pipeline.batch import Batch, normalize
from engine.objective import Loss
from engine.results.zero_shot import NameClasses
from engine.world import World
from models.contrastive import Pairs, sigmoid_pairs
from models.image_text import ImageText
from models.text_tower import Tokenizer
from models.zero_shot import class_tokens
from pretrain.config import SiglipConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    """What is known of a micro-batch before its turn."""

    tokens: Tensor
    pairs: Pairs


class Contrastive:
    """Zhai et al. 2023: the sigmoid loss of all pairs of the global batch; the same on any number of ranks."""

    def __init__(
        self, tokenizer: Tokenizer, *, mean: tuple[float, ...], std: tuple[float, ...], world: World
    ) -> None:
        self.tokenizer = tokenizer
        self._mean, self._std = mean, std
        self._world = world
        self._awaited: deque[_Awaited] = deque()

    def look_ahead(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """Embeds a step's micro-batches, where there are several, so that each knows the others."""
        self._awaited.clear()
        if len(micro_batches) == 1:
            return
        device = self._world.device
        devices = [device] if device.type == "cuda" else []
        tokens = [self._read(batch) for batch in micro_batches]
        # Random numbers (stochastic depth) are drawn again when the micro-batches come: the same ones.
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            embedded = [
                model(self._look(batch.to(device)), text)
                for batch, text in zip(micro_batches, tokens, strict=True)
            ]
        seen, read = (torch.cat([vectors[place] for vectors in embedded]) for place in (0, 1))
        pairs = self._pairs(seen, read, *embedded[0][2:])
        parts = pairs.split(len(micro_batches[0]))
        self._awaited.extend(
            _Awaited(tokens=text, pairs=part) for text, part in zip(tokens, parts, strict=True)
        )

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        awaited = self._awaited.popleft() if self._awaited else None
        tokens = self._read(batch) if awaited is None else awaited.tokens
        seen, read, scale, bias = model(self._look(batch), tokens)
        pairs = self._pairs(seen, read, scale, bias) if awaited is None else awaited.pairs
        # Its gradient is the loss's, which we know; its value means nothing.
        pull = (seen * pairs.images).sum() + (read * pairs.texts).sum()
        pull = pull + (scale * pairs.scale.sum() + bias * pairs.bias.sum()).sum()
        total = (pairs.losses.sum() + pull - pull.detach()) / len(batch)
        return Loss(total=total, parts={"pair_scale": scale.squeeze(), "pair_bias": bias.squeeze()})

    def _pairs(self, seen: Tensor, read: Tensor, scale: Tensor, bias: Tensor) -> Pairs:
        """Of this rank's samples, with those of all ranks."""
        world, count = self._world, len(seen)
        images, texts = (world.gather_rows(vectors.detach()) for vectors in (seen, read))
        return sigmoid_pairs(images, texts, first=world.rank * count, count=count, scale=scale, bias=bias)

    def _look(self, batch: Batch) -> Tensor:
        return normalize(batch.images, self._mean, self._std)

    def _read(self, batch: Batch) -> Tensor:
        if batch.captions is None:
            raise ValueError("a batch without captions: the loader was not told that they are needed")
        return self.tokenizer(batch.captions).to(self._world.device, non_blocking=True)


def build_siglip(
    image: nn.Module,
    config: SiglipConfig,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    world: World,
    activation_checkpointing: bool = False,
) -> tuple[ImageText, Contrastive]:
    """The network around `image`, and what it minimises."""
    model = ImageText(image, config)
    if activation_checkpointing:  # the engine asks the tower that looks, and that only
        model.text.set_grad_checkpointing(True)
    tokenizer = Tokenizer(config.text.context_length)
    return model, Contrastive(tokenizer, mean=mean, std=std, world=world)


def naming_of(objective: Section) -> NameClasses | None:
    """How the classes of ``data.val`` are called; None where nothing is learned from captions."""
    if not isinstance(objective, SiglipConfig):
        return None
    tokenizer = Tokenizer(objective.text.context_length)
    return partial(class_tokens, prompts=objective.prompts, tokenizer=tokenizer)
