"""Classification by the names of classes: which of "a photo of a sneaker." and so on an image is nearest to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from configs.base import ConfigError
from configs.text import PairingConfig
from models.build import load_release, resolve_release
from models.image_text import COMPANION, ImageText
from models.text_tower import Tokenizer

_TEXTS = 256
"""Read at a time."""


class ZeroShot(nn.Module):
    """The tower that looks, with a class for each name: images -> logits, as any classifier of timm."""

    def __init__(self, towers: ImageText, directions: Tensor) -> None:
        """`directions`: unit vectors [classes, E] of the names."""
        super().__init__()
        self.towers = towers
        self.towers.text = None
        self.register_buffer("directions", directions)
        self.num_classes = len(directions)
        self.pretrained_cfg: Any = towers.image.pretrained_cfg

    directions: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """[B, classes]; the bias of pairs is the same for all classes, and left out."""
        logits: Tensor = self.towers.log_scale.exp() * self.towers.embed_images(images) @ self.directions.T
        return logits


def class_tokens(names: Sequence[str], prompts: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """int64 [classes, prompts, L]: each class as each prompt calls it."""
    return torch.stack([tokenizer([prompt.replace("{}", name) for prompt in prompts]) for name in names])


def class_directions(read: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Unit vectors [classes, E], the mean direction over the prompts; `read` gives unit vectors of tokens [N, L]."""
    vectors = torch.cat([read(part) for part in tokens.flatten(0, 1).split(_TEXTS)])
    return functional.normalize(vectors.unflatten(0, tokens.shape[:2]).mean(1), dim=1)


def load_classifier(reference: str, *, names: Sequence[str], prompts: Sequence[str] = ()) -> nn.Module:
    """A release as a classifier of `names` where a text tower lies beside it, else as it is.

    `prompts` default to those of its training.
    """
    file = _companion(reference, ".json")
    if file is None or not file.is_file():
        return load_release(reference)
    towers = load_image_text(reference)
    tokenizer = Tokenizer(towers.config.text.context_length)
    tokens = class_tokens(names, prompts or towers.config.prompts, tokenizer)
    with torch.no_grad():
        directions = class_directions(lambda part: _read(towers, part), tokens)
    return ZeroShot(towers, directions)


def load_image_text(reference: str) -> ImageText:
    """Both towers of a release, in evaluation mode; ConfigError where there is no text tower, or it is damaged."""
    config, weights = _companion(reference, ".json"), _companion(reference, ".safetensors")
    if config is None or weights is None or not (config.is_file() and weights.is_file()):
        raise ConfigError(
            f"{reference!r} has no text tower ({COMPANION}.json and {COMPANION}.safetensors beside its weights): give "
            "a run that was trained with objective.name 'siglip'"
        )
    try:
        pairing = PairingConfig.model_validate_json(config.read_text())
        towers = ImageText(load_release(reference), pairing)
        missing, unknown = towers.load_state_dict(load_file(weights), strict=False)
        wrong = [*(name for name in missing if not name.startswith("image.")), *unknown]
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the text tower of {reference!r} cannot be loaded ({error}): copy or release it again"
        ) from error
    if wrong:
        raise ConfigError(
            f"{str(weights)!r} does not fit {str(config)!r} ({', '.join(wrong)}): copy it again"
        )
    return towers.eval()


def _read(towers: ImageText, tokens: Tensor) -> Tensor:
    read: Tensor | None = towers(None, tokens)[1]
    assert read is not None
    return read


def _companion(reference: str, suffix: str) -> Path | None:
    resolved = resolve_release(reference)
    if not resolved.startswith("local-dir:"):
        return None
    return Path(resolved.removeprefix("local-dir:")) / f"{COMPANION}{suffix}"
