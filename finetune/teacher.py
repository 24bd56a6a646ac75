"""Teacher: a released network, frozen, that sees the student's crops through its own normalization."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.base import ConfigError
from data_pipeline.batch import Batch, normalize
from data_pipeline.mix import Mix, mix_images
from models.attention_maps import open_attention
from models.build import InputSpec, input_spec, label_names, load_release
from models.depth import relative_depths
from models.features import Features, feature_widths
from models.map_hooks import MapHooks
from models.vit_maps import HeadMaps

Precision = Literal["fp32", "bf16", "fp16"]

# ITU-R BT.601, what OpenCV and Pillow use for RGB -> grey.
_LUMA = (0.299, 0.587, 0.114)

_LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOutput:
    """What a teacher has to say about a batch, without gradient, in float32."""

    logits: Tensor
    """[B, num_classes]"""
    attention: tuple[Tensor, ...] = ()
    """[B, gh, gw] for each layer asked for, in that order; each sums to 1 over its grid."""
    heads: tuple[Tensor, ...] = ()
    """[B, H, gh, gw], the same head by head, where that was asked for."""
    tokens: tuple[Tensor, ...] = ()
    """[B, D, gh, gw] for each layer asked for, in that order: the features of its places."""


class Observer(Protocol):
    """Who answers for a batch: a teacher, several of them averaged, or a file of what one has said."""

    def observe(self, batch: Batch) -> TeacherOutput: ...


@runtime_checkable
class Located(Protocol):
    """Who knows how deep in its network the layers are whose attention it shows."""

    @property
    def attention_depths(self) -> tuple[float, ...]: ...


@runtime_checkable
class Featured(Observer, Protocol):
    """Who also tells features of places: how deep in its network, and how wide they are."""

    @property
    def token_depths(self) -> tuple[float, ...]: ...

    @property
    def token_widths(self) -> tuple[int, ...]: ...


class Teacher:
    """Calls a frozen network on uint8 images, and holds it where no optimizer and no checkpoint sees it.

    In bf16 and fp16 its matrices are kept in that precision too, which halves their memory; vectors and the statistics
    of normalization stay in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str = "teacher",
        attention_layers: Sequence[int] = (),
        token_layers: Sequence[int] = (),
        by_head: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        self.name = name
        self.num_classes = int(getattr(model, "num_classes", 0))
        self._model = model.eval().requires_grad_(False)
        self.input_spec: InputSpec = input_spec(model)
        """What the network takes; images are brought to it."""
        self._precision: Precision = precision
        self._by_head = by_head
        self._maps: MapHooks | None = None
        self._tokens: Features | None = None
        try:
            if attention_layers and by_head:
                self._maps = HeadMaps(model, attention_layers)
            elif attention_layers:
                self._maps = open_attention(model, attention_layers)
            if token_layers:
                self._tokens = Features(model, token_layers)
        except ConfigError as error:
            raise ConfigError(
                f"teacher {name!r} cannot show what is asked of it: {error}. teacher.attention, teacher.features and "
                "teacher.overlap ask; null asks for nothing"
            ) from error
        if precision in _LOWER:
            _store_matrices(model, _LOWER[precision])

    @torch.no_grad()
    def __call__(self, images: Tensor, mix: Mix | None = None) -> TeacherOutput:
        """One forward for all that is asked for; `images` are the student's, uint8 [B, C, H, W], and mixed as they are
        there.
        """
        inputs = self._prepare(images, mix)
        kind, lower = inputs.device.type, _LOWER.get(self._precision)
        with torch.autocast(kind, lower, enabled=lower is not None), ExitStack() as hooks:
            for watched in (self._maps, self._tokens):
                if watched is not None:
                    hooks.enter_context(watched)
            logits = self._model(inputs).float()
        maps = () if self._maps is None else self._maps.take()
        return TeacherOutput(
            logits=logits,
            attention=tuple(found.mean(dim=1) for found in maps) if self._by_head else maps,
            heads=maps if self._by_head else (),
            tokens=() if self._tokens is None else tuple(found.float() for found in self._tokens.take()),
        )

    def observe(self, batch: Batch) -> TeacherOutput:
        """What it says about a batch, mixed as the batch says."""
        return self(batch.images, batch.mix)

    @property
    def network(self) -> nn.Module:
        """What is called, to count its operations."""
        return self._model

    @property
    def attention_depths(self) -> tuple[float, ...]:
        """How far through the network each layer is whose attention is asked for, 0 to 1."""
        return () if self._maps is None else relative_depths(self._model, self._maps.names)

    @property
    def token_depths(self) -> tuple[float, ...]:
        """The same of the layers whose tokens are asked for."""
        return () if self._tokens is None else relative_depths(self._model, self._tokens.names)

    @property
    def token_widths(self) -> tuple[int, ...]:
        """D of each layer whose tokens are asked for."""
        if self._tokens is None:
            return ()
        spec = self.input_spec
        kind, lower = next(self._model.parameters()).device.type, _LOWER.get(self._precision)
        with torch.autocast(kind, lower, enabled=lower is not None):
            return feature_widths(self._model, self._tokens.names, (spec.channels, spec.size, spec.size))

    def showing(self, *, attention_layers: Sequence[int]) -> Teacher:
        """The same network, asked for other maps."""
        return Teacher(
            self._model, name=self.name, attention_layers=attention_layers, precision=self._precision
        )

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
        spec = self.input_spec
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
    token_layers: Sequence[int] = (),
    by_head: bool = False,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> Teacher:
    """The teacher behind a release folder, run folder or timm reference, checked against the student's classes."""
    teacher = Teacher(
        load_release(reference),
        name=reference,
        attention_layers=attention_layers,
        token_layers=token_layers,
        by_head=by_head,
        precision=precision,
    )
    teacher.check_classes(num_classes, class_names)
    return teacher.to(device)


def _store_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """Grey to colour repeats the channel; colour to grey takes the luma; still uint8."""
    if images.shape[1] == channels:
        return images
    if channels == 1:
        red, green, blue = images.float().unbind(dim=1)
        luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        return luma.round().to(torch.uint8).unsqueeze(1)
    return images.expand(-1, channels, -1, -1)
