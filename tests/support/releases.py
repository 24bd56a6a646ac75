"""Released networks small enough for a test: a CNN with SE, and a ViT, with weights that nobody trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import save_for_hf

_CNN = ("nf_seresnet26", {"depths": (1, 1), "channels": (16, 32), "stem_type": "3x3", "stem_chs": 8})
_VIT = (
    "vit_tiny_patch16_224",
    {"img_size": 28, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3},
)


def make_release(
    run: Path,
    *,
    kind: Literal["cnn", "vit"] = "cnn",
    seed: int = 0,
    channels: int = 1,
    num_classes: int = 10,
    label_names: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """RUN/release for images of 28 pixels; returns RUN. Confident and mostly wrong, so that calibration is bad.

    `changes` are arguments that the architecture gets instead of its usual ones here.
    """
    torch.manual_seed(seed)
    name, body = _CNN if kind == "cnn" else _VIT
    args: dict[str, Any] = {**body, **changes, "in_chans": channels, "num_classes": num_classes}
    stats = {
        "input_size": (channels, 28, 28),
        "mean": (0.3,) * channels,
        "std": (0.35,) * channels,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    model = timm.create_model(name, pretrained_cfg_overlay=stats, **args)
    for parameter in model.get_classifier().parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    config: dict[str, Any] = {"model_args": args}
    if label_names:
        config["label_names"] = list(label_names)
    save_for_hf(model, run / "release", model_config=config, safe_serialization=True)
    return run
