"""A network as an ONNX file that says how its images are prepared, checked in ONNX Runtime against torch."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from finetune.exporting.onnx_network import INPUT, METADATA, OUTPUT, OnnxNetwork
from models.attention import any_kernel
from models.build import InputSpec, input_spec
from models.dynamic import check_static

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest of them where that is above 1."""

_DESCRIBED = (
    *("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"),
    *("label_names", "architecture"),
)
_OPSET = 18
_CHECKED_BATCHES = (1, 3)


def write_onnx(model: nn.Module, path: Path) -> float:
    """Writes a network in evaluation mode, for batches of any size; the largest difference from torch that was seen."""
    check_static(model, what="an ONNX file")
    spec = input_spec(model)
    _export(model, spec, path)
    return check_onnx(model, spec, path)


def check_onnx(model: nn.Module, spec: InputSpec, path: Path) -> float:
    """The largest relative difference of logits on random images; ConfigError above the tolerance."""
    network = OnnxNetwork(path)
    worst = max(_difference(model, network, random_images(spec, batch)) for batch in _CHECKED_BATCHES)
    if not worst <= TOLERANCE:
        raise ConfigError(
            f"ONNX Runtime's logits differ from torch's by {worst:.2g} (allowed is {TOLERANCE:g}): this network cannot "
            "be exported to ONNX; please report its architecture"
        )
    return worst


def random_images(spec: InputSpec, batch: int) -> Tensor:
    """Normalized noise, always the same."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, spec.channels, spec.size, spec.size, generator=generator)


def _export(model: nn.Module, spec: InputSpec, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401  # torch's exporter is made of it
    except ImportError as error:
        raise ConfigError(f"ONNX is written by onnxscript ({error}): install the extra 'onnx'") from error
    quiet = logging.getLogger("torch.onnx")
    quiet.setLevel(logging.ERROR)
    with warnings.catch_warnings(), any_kernel():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (random_images(spec, 2),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=_OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing back")
    program.model.metadata_props[METADATA] = json.dumps(describe(model))
    program.save(str(path), external_data=False)


def describe(model: nn.Module) -> dict[str, Any]:
    """What the file says of itself, for whoever prepares images for it: timm's own words for input and classes."""
    facts: Any = model.pretrained_cfg
    told = {key: facts[key] for key in _DESCRIBED if facts.get(key) is not None}
    return {**told, "num_classes": int(getattr(model, "num_classes", 0))}


@torch.inference_mode()
def _difference(model: nn.Module, network: OnnxNetwork, images: Tensor) -> float:
    with any_kernel():
        expected = model(images)
    got = network(images)
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1.0))
