"""Teacher: a released network, frozen, that sees the student's crops through its own normalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.base import ConfigError
from data_pipeline.batch import normalize
from data_pipeline.mix import Mix, mix_images
from models.attention_maps import open_attention
from models.build import input_spec, label_names, load_release

# ITU-R BT.601, what OpenCV and Pillow use for RGB -> grey.
_LUMA = (0.299, 0.587, 0.114)

_LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOutput:
    """What a teacher has to say about a batch, without gradient, in float32."""

    logits: Tensor
    """[B, num_classes]"""
    attention: Tensor | None
    """[B, gh, gw], mean over the layers asked for, sums to 1 over the grid; None where no layer was."""


class Teacher:
    """Calls a frozen network on uint8 images, and holds it where no optimizer and no checkpoint sees it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str = "teacher",
        attention_layers: Sequence[int] = (),
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    ) -> None:
        self.name = name
        self.num_classes = int(getattr(model, "num_classes", 0))
        self._model = model.eval().requires_grad_(False)
        self._spec = input_spec(model)
        self._maps = open_attention(model, attention_layers) if attention_layers else None
        self._precision = precision

    @torch.no_grad()
    def __call__(self, images: Tensor, mix: Mix | None = None) -> TeacherOutput:
        """One forward for logits and attention together; `images` are the student's, uint8 [B, C, H, W], and mixed as
        they are there.
        """
        inputs = self._prepare(images, mix)
        with torch.autocast(
            inputs.device.type, _LOWER.get(self._precision), enabled=self._precision in _LOWER
        ):
            if self._maps is None:
                return TeacherOutput(logits=self._model(inputs).float(), attention=None)
            with self._maps:
                logits = self._model(inputs).float()
        return TeacherOutput(logits=logits, attention=torch.stack(self._maps.take()).mean(dim=0))

    @property
    def network(self) -> nn.Module:
        """What is called, to count its operations."""
        return self._model

    def to(self, device: torch.device | str) -> Teacher:
        """Moves the network in place, as modules do."""
        self._model.to(device)
        return self

    def check_classes(self, num_classes: int, class_names: Sequence[str] = ()) -> None:
        """Raises ConfigError unless the student is to tell apart the very classes that this teacher knows."""
        if self.num_classes != num_classes:
            raise ConfigError(
                f"teacher {self.name!r} knows {self.num_classes} classes and the student has {num_classes}: distil "
                f"from a teacher trained on the same classes (fine-tune it on this data first)"
            )
        known = label_names(self._model)
        differing = [(i, a, b) for i, (a, b) in enumerate(zip(known, class_names, strict=False)) if a != b]
        if differing:
            index, ours, theirs = differing[0]
            raise ConfigError(
                f"class {index} is {ours!r} for teacher {self.name!r} and {theirs!r} in the data: their class maps "
                f"differ, and distillation would teach the wrong names"
            )

    def _prepare(self, images: Tensor, mix: Mix | None) -> Tensor:
        spec = self._spec
        scaled = mix_images(normalize(_with_channels(images, spec.channels), spec.mean, spec.std), mix)
        if scaled.shape[-2:] != (spec.size, spec.size):
            scaled = F.interpolate(scaled, (spec.size, spec.size), mode="bilinear", antialias=True)
        return scaled


def load_teacher(
    reference: str,
    *,
    num_classes: int,
    class_names: Sequence[str] = (),
    attention_layers: Sequence[int] = (),
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Teacher:
    """The teacher behind a release folder, run folder or timm reference, checked against the student's classes."""
    teacher = Teacher(
        load_release(reference), name=reference, attention_layers=attention_layers, precision=precision
    )
    teacher.check_classes(num_classes, class_names)
    return teacher.to(device)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """Grey to colour repeats the channel; colour to grey takes the luma; still uint8."""
    if images.shape[1] == channels:
        return images
    if channels == 1:
        red, green, blue = images.float().unbind(dim=1)
        luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        return luma.round().to(torch.uint8).unsqueeze(1)
    return images.expand(-1, channels, -1, -1)
