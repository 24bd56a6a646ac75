"""Answers: what a teacher says of one image in some hundred bytes: its best classes, what is left for others, its maps.

Where its tokens are asked for (`teacher.features`) they are kept too, in a hundred times as much.

    TeacherOutput -> AnswerFormat.write -> rows -> Sidecar -> Batch.records -> AnswerFormat.read -> TeacherOutput

| field | | |
| --- | --- | --- |
| check | u4 | CRC-32 of the rest |
| best | f4 | the greatest logit |
| others | f4 x 2 | mean and log-mean-exp of the logits of all classes that are not listed, less the greatest |
| classes | u2 x k (u4 above 65,536 classes) | those with the greatest logits, in descending order |
| offsets | f2 x k | their logits, less the greatest |
| maps | f2 x places | each layer's map, pooled to its grid, over its greatest value |
| tokens | f2 x D x places | each layer's features, pooled to its grid, over their greatest magnitude |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.base import ConfigError
from data_pipeline.sidecar import CHECK
from finetune.kept_layers import NO_LAYERS, KeptLayers
from finetune.teacher import TeacherOutput

_LEAST_OFFSET = -60_000.0
"""float16 ends at -65,504."""
_UNSIGNED = {2: (torch.int16, 0xFFFF), 4: (torch.int32, 0xFFFFFFFF)}
_ALIGNMENT = 4


@dataclass(frozen=True, kw_only=True)
class AnswerFormat:
    """How answers of one teacher are written and read."""

    num_classes: int
    top: int
    """Classes that are listed."""
    maps: KeptLayers = NO_LAYERS
    """Attention layers."""
    tokens: KeptLayers = NO_LAYERS
    """Layers of features."""

    @classmethod
    def of(
        cls,
        told: TeacherOutput,
        *,
        top: int,
        grid: int,
        maps: KeptLayers = NO_LAYERS,
        tokens: KeptLayers = NO_LAYERS,
    ) -> AnswerFormat:
        """The format for answers like this one, maps and tokens pooled to at most `grid` places on a side."""
        num_classes = told.logits.shape[1]
        return cls(
            num_classes=num_classes,
            top=min(top, num_classes),
            maps=maps.shown(told.attention, grid=grid),
            tokens=tokens.shown(told.tokens, grid=grid),
        )

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """The structured type of an answer."""
        number = "<u2" if self.num_classes <= 1 << 16 else "<u4"
        fields: list[tuple[str, str] | tuple[str, str, tuple[int, ...]]] = [
            CHECK,
            ("best", "<f4"),
            ("others", "<f4", (2,)),
            ("classes", number, (self.top,)),
            ("offsets", "<f2", (self.top,)),
            *((name, "<f2", (kept.count,)) for name, kept in self._layered.items()),
        ]
        unused = -np.dtype(fields).itemsize % _ALIGNMENT
        return np.dtype([*fields, ("unused", "u1", (unused,))] if unused else fields)

    def write(self, told: TeacherOutput) -> NDArray[np.void]:
        """A row for each image, without its checksum; ConfigError for a teacher whose logits are not finite."""
        if not told.logits.isfinite().all():
            raise ConfigError(
                "the teacher answers with logits that are not finite: nothing can be learned from them"
            )
        ranked, classes = told.logits.sort(dim=1, descending=True, stable=True)
        offsets = ranked - ranked[:, :1]
        rows = np.zeros(len(ranked), self.record)
        rows["best"] = _numbers(ranked[:, 0])
        rows["others"] = _numbers(_level(offsets[:, self.top :]))
        rows["classes"] = _numbers(classes[:, : self.top])
        rows["offsets"] = _numbers(offsets[:, : self.top].clamp(min=_LEAST_OFFSET))
        for name, found in (("maps", told.attention), ("tokens", told.tokens)):
            if name in self._layered:
                rows[name] = _numbers(self._layered[name].pooled(found))
        return rows

    def read(
        self,
        records: Tensor,
        *,
        temperature: float,
        maps: Sequence[int] = (),
        tokens: Sequence[int] = (),
    ) -> TeacherOutput:
        """uint8 [B, record] on any device -> logits, and the maps and tokens of these places in their layers.

        A map sums to 1; tokens are an image's as they were but for a factor.


        The classes that are not listed share what is left equally. How much that is at `temperature` follows from the
        mean of their logits and their log-mean-exp: exactly at 1 and far above it, to second order between.
        """
        best = self._floats(records, "best", torch.float32)
        mean, level = self._floats(records, "others", torch.float32).unbind(dim=1)
        rest = best + (mean + (level - mean) / temperature).unsqueeze(1)
        listed = best + self._floats(records, "offsets", torch.float16)
        logits = rest.expand(-1, self.num_classes).scatter(1, self._classes(records), listed)
        return TeacherOutput(
            logits=logits,
            attention=tuple(
                found / found.sum(dim=(1, 2), keepdim=True) for found in self._parts(records, "maps", maps)
            ),
            tokens=self._parts(records, "tokens", tokens),
        )

    @property
    def _layered(self) -> Mapping[str, KeptLayers]:
        """What is kept layer by layer, by field."""
        return {name: kept for name, kept in (("maps", self.maps), ("tokens", self.tokens)) if kept.count}

    def _parts(self, records: Tensor, name: str, places: Sequence[int]) -> tuple[Tensor, ...]:
        if not places:
            return ()
        return self._layered[name].parts(self._floats(records, name, torch.float16), places)

    def _floats(self, records: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        return self._bytes(records, name).view(dtype).float()

    def _classes(self, records: Tensor) -> Tensor:
        dtype, mask = _UNSIGNED[self.record["classes"].base.itemsize]
        return self._bytes(records, "classes").view(dtype).long() & mask

    def _bytes(self, records: Tensor, name: str) -> Tensor:
        assert self.record.fields is not None
        kind, start = self.record.fields[name][:2]
        return records[:, start : start + kind.itemsize]


def _level(logits: Tensor) -> Tensor:
    """Mean and log-mean-exp [B, 2]; 0 where there are none."""
    if not logits.shape[1]:
        return logits.new_zeros(len(logits), 2)
    level = logits.logsumexp(dim=1) - math.log(logits.shape[1])
    return torch.stack([logits.mean(dim=1), level], dim=1)


def _numbers(tensor: Tensor) -> NDArray[np.generic]:
    numbers: NDArray[np.generic] = tensor.cpu().numpy()
    return numbers
