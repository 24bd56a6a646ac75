"""WeightSource: where weights to start from come from, and what is known about them before they are read.

release or run folder, local-dir:PATH    config.json says architecture, arguments, input and classes
timm name, hf-hub:OWNER/NAME             timm's registry or the hub's config.json says the same
FILE.safetensors, FILE.pth               weights alone: the recipe says the rest
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import get_arch_name, get_pretrained_cfg, load_model_config_from_hf
from torch import Tensor

from configs.attention import AttentionConfig
from configs.base import ConfigError
from models.build import CONFIG_FILE, SIGNATURE, WEIGHTS_FILE, resolve_release, unavailable
from models.checkpoint_file import is_weights_file, read_weights

_LOCAL, _HUB = "local-dir:", "hf-hub:"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """A checkpoint that has been found and described, and not been read."""

    reference: str
    """As it was given."""
    location: str
    """A path, or timm's own reference."""
    architecture: str | None = None
    """timm's name of the network; None where the checkpoint does not say."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that the network was built with."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """timm's ``pretrained_cfg``: input_size, mean, std, interpolation, crop_pct, num_classes ...; empty: not known."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """What of its attention is ours and not timm's."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes by name in the order of the logits; empty where they are not known."""
        return tuple(map(str, self.facts.get("label_names") or ()))

    def read(self) -> dict[str, Tensor]:
        """The weights by name, on the CPU; ConfigError where they cannot be had."""
        if is_weights_file(self.location):
            return read_weights(Path(self.location))
        if self.location.startswith(_LOCAL):
            return read_weights(Path(self.location.removeprefix(_LOCAL)) / WEIGHTS_FILE)
        try:
            return dict(timm.create_model(self.location, pretrained=True).state_dict())
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            raise unavailable(self.reference, error) from error


def open_source(reference: str) -> WeightSource:
    """Finds out what a checkpoint is; raises ConfigError saying what is missing or not understood."""
    if is_weights_file(reference):
        path = Path(reference).expanduser()
        if not path.is_file():
            raise ConfigError(f"checkpoint {reference!r}: no such file")
        return WeightSource(reference=reference, location=str(path))
    location = resolve_release(reference)
    if location.startswith(_LOCAL):
        return _of_folder(reference, location)
    if location.startswith(_HUB):
        return _of_hub(reference, location)
    return _of_name(reference)


def _of_folder(reference: str, location: str) -> WeightSource:
    path = Path(location.removeprefix(_LOCAL)) / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{CONFIG_FILE} of {reference!r} is no JSON ({error}): copy or release it again"
        ) from error
    if not isinstance(content, dict) or "architecture" not in content:
        raise ConfigError(
            f"{CONFIG_FILE} of {reference!r} names no 'architecture': it does not come from timm; give its weights "
            f"file, {str(path.with_name(WEIGHTS_FILE))!r}, and set model.name"
        )
    facts = dict(content.get("pretrained_cfg") or {})
    facts |= {key: content[key] for key in ("num_classes", "label_names", "global_pool") if key in content}
    ours = content.get(SIGNATURE, {})
    return WeightSource(
        reference=reference,
        location=location,
        architecture=str(content["architecture"]),
        args=dict(content.get("model_args") or {}),
        facts=facts,
        attention=AttentionConfig.model_validate(ours.get("attention", {})),
    )


def _of_hub(reference: str, location: str) -> WeightSource:
    try:
        facts, architecture, args = load_model_config_from_hf(location.removeprefix(_HUB))
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        raise unavailable(reference, error) from error
    return WeightSource(
        reference=reference, location=location, architecture=architecture, args=args or {}, facts=facts
    )


def _of_name(reference: str) -> WeightSource:
    cfg = get_pretrained_cfg(reference)
    if cfg is None or not cfg.has_weights:
        raise ConfigError(
            f"checkpoint {reference!r}: timm {timm.__version__} has this architecture, but no weights for it; "
            f"timm.list_pretrained({get_arch_name(reference) + '*'!r}) lists those it has"
        )
    return WeightSource(
        reference=reference,
        location=reference,
        architecture=get_arch_name(reference),
        facts=cfg.to_dict(),
    )
