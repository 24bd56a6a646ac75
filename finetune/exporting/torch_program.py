"""A network as a program of torch.export (.pt2): run by torch without the code that built it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from configs.base import ConfigError
from finetune.exporting.onnx_file import describe, random_images
from models.attention import any_kernel
from models.build import input_spec
from models.dynamic import check_static

EXTRA = "mirada.json"
"""Beside the program, what an ONNX file has as metadata: how images are prepared, and the classes."""

_TOLERANCE = 1e-5
_CHECKED_BATCHES = (1, 3)


@torch.no_grad()
def write_program(model: nn.Module, path: Path) -> float:
    """Writes a network in evaluation mode, for batches of any size, reads it back and compares; the difference seen."""
    check_static(model, what="a program of torch.export")
    spec = input_spec(model)
    batch = torch.export.Dim("batch", min=1)
    with any_kernel():
        program = torch.export.export(
            model.eval(), (random_images(spec, 2),), dynamic_shapes=({0: batch},), strict=False
        )
    torch.export.save(program, path, extra_files={EXTRA: json.dumps(describe(model))})
    loaded = torch.export.load(path).module()
    worst = 0.0
    for size in _CHECKED_BATCHES:
        images = random_images(spec, size)
        with any_kernel():
            expected = model(images)
        difference = (loaded(images) - expected).abs().max() / expected.abs().max().clamp_min(1.0)
        worst = max(worst, float(difference))
    if not worst <= _TOLERANCE:
        raise ConfigError(
            f"the exported program's logits differ from the network's by {worst:.2g} (allowed is {_TOLERANCE:g}); "
            "please report its architecture"
        )
    return worst
