"""What a fine-tuning run trains of its network: `mode` of the recipe, before the optimizer is made."""

from __future__ import annotations

from typing import Any

from torch import nn

from configs.modes import FullMode, KnnMode, LastBlocksMode, LinearProbeMode, LoraMode, Mode
from models.freezing import count_trained, head_weights, last_block_weights, train_only
from models.lora import add_lora


def apply_mode(model: nn.Module, mode: Mode) -> str:
    """Freezes what the mode does not train, adds what it adds, in place; says in a line how much is trained."""
    match mode:
        case FullMode():
            pass
        case KnnMode():
            model.requires_grad_(False)
        case LinearProbeMode():
            train_only(model, head_weights(model))
        case LastBlocksMode():
            train_only(model, last_block_weights(model, mode.count))
        case LoraMode():
            head = head_weights(model)
            train_only(model, head | add_lora(model, rank=mode.rank, alpha=mode.alpha))
    trained, total = count_trained(model)
    return f"mode {mode.name}: {trained:,} of {total:,} weights are trained"


def features_of(model: Any) -> nn.Module:
    """The network without its classifier, in place, in evaluation mode: images to pooled features [B, D]."""
    model.reset_classifier(0)
    model.pretrained_cfg["num_classes"] = 0
    features: nn.Module = model.eval()
    return features
