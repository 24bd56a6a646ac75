"""An ONNX file in 8-bit integers: statically quantized with real images, and what that costs and gains."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.data import DataConfig
from data_pipeline.batch import normalize
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.inspection.inspect import spaced
from data_pipeline.reader import SampleReader
from engine.results.evaluate import Scores
from engine.world import World
from finetune.candidate import Candidate
from finetune.evaluating.scoring import score
from finetune.exporting.onnx_network import INPUT
from models.latency import measure_latency
from models.throughput import Throughput, measure_throughput

_NUM_IMAGES = 256
"""For the ranges of activations; their labels are not used."""
_BATCH = 64
_QUANTIZED = ("Conv", "MatMul", "Gemm")
"""Nearly all of the work. Normalization and softmax stay in 32 bits: in 8 a small ViT fell to chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One of the two files."""

    num_bytes: int
    scores: Scores
    latency_s: float
    throughput: Throughput


def quantize(source: Path, path: Path, candidate: Candidate, location: str) -> None:
    """Writes `source` with weights per channel and activations of products and convolutions in 8 bits, as QDQ nodes."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            _Images(calibration_batches(candidate, location)),
            op_types_to_quantize=list(_QUANTIZED),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def measure_cost(path: Path, candidate: Candidate, location: str) -> Cost:
    """Accuracy on all images of `location`, and speed, on the CPU."""
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    (measured,) = score([candidate], open_index(location), location, batch_size=_BATCH, world=world)
    shape = candidate.input_shape
    return Cost(
        num_bytes=path.stat().st_size,
        scores=measured.scores,
        latency_s=measure_latency(candidate.model, shape),
        throughput=measure_throughput(candidate.model, shape),
    )


def calibration_batches(candidate: Candidate, location: str) -> Iterator[NDArray[np.float32]]:
    """Images spread evenly over the data, prepared as in evaluation."""
    index, config = open_index(location), candidate.data_config(location)
    chosen = spaced(np.arange(index.num_samples), _NUM_IMAGES)
    for start in range(0, len(chosen), _BATCH):
        yield _read(index, config, chosen[start : start + _BATCH])


def _read(index: ShardIndex, config: DataConfig, sample_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    shape = (len(sample_ids), config.image_size, config.image_size, config.channels)
    pixels = np.zeros(shape, np.uint8)
    bad = SampleReader(index, config).read_whole(np.arange(len(sample_ids)), sample_ids, pixels)
    whole = [slot for slot in range(len(sample_ids)) if slot not in bad]
    images = normalize(torch.from_numpy(pixels[whole]).permute(0, 3, 1, 2), config.mean, config.std)
    prepared: NDArray[np.float32] = images.contiguous().numpy()
    return prepared


class _Images:
    """As ONNX Runtime asks for them: one batch after the other, then None."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
