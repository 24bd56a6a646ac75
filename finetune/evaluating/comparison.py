"""compare: released networks on the same images, every image exactly once over all ranks, on the same machine.

EvalLoader -> Batch -> network -> Tally and Confusion        -> Row
                   \\-> corrupted -> network -> Tallies       /
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from configs.base import ConfigError
from configs.data import MOST_BAD
from data_pipeline.index import ShardIndex, open_index
from engine.results.class_scores import ClassScores, class_scores
from engine.results.evaluate import Bin
from engine.world import World
from finetune.candidate import Candidate
from finetune.evaluating.scoring import Measured, score
from models.complexity import count_flops, count_parameters, mean_flops
from models.latency import measure_latency
from models.throughput import Throughput, measure_throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known about one network."""

    name: str
    path: str
    top1: float
    """Percent."""
    top5: float
    """Percent."""
    ece: float
    """Expected calibration error over 15 bins, 0 to 1."""
    parameters: int | None
    """None, as `flops`, where the file does not tell (ONNX)."""
    flops: int | None
    """Of one image's forward; a multiply-add is two."""
    latency_ms: float
    """Of one image's forward, warm, median."""
    images_per_s: float
    """Forward passes alone, warm, median, in batches of `batch_size`."""
    batch_size: int
    """With which it is fastest."""
    reliability: tuple[Bin, ...]
    """Confidence against accuracy in the bins of `ece`."""
    classes: tuple[ClassScores, ...]
    confusions: tuple[tuple[int, int, int], ...]
    """True class, predicted class (-1: logits not finite), number of images; pairs that do not occur are left out."""
    corrupted_top1: float | None
    """Percent, mean over all corruptions and severities; None where none was asked for."""
    corruptions: Mapping[str, tuple[float, ...]]
    """Top-1 in percent at the severities 1 to 5, by name."""
    tokens: float | None = None
    """Of an image, mean over blocks and images, where it follows the image (`model.attention.dynamic`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Networks evaluated on the same images, on the same machine."""

    data: str
    data_digest: str
    num_images: int
    rows: tuple[Row, ...]
    timing: str
    """How speed was measured."""
    num_left_out: int = 0
    """Images beside `num_images` that cannot be decoded."""


def compare(
    candidates: Sequence[Candidate],
    location: str,
    *,
    batch_size: int,
    world: World,
    corruptions: Sequence[str] = (),
    max_bad_fraction: float = MOST_BAD,
) -> Comparison:
    """Evaluates each network on all of `location` as its own config wants the images; all ranks together.

    DataError on every rank where more images than `max_bad_fraction` cannot be decoded.
    """
    index = open_index(location)
    check_images(candidates, index, location)
    measured: dict[int, Measured] = {}
    for places in _alike(candidates, location):
        group = [candidates[place] for place in places]
        found = score(
            group,
            index,
            location,
            batch_size=batch_size,
            world=world,
            corruptions=corruptions,
            max_bad_fraction=max_bad_fraction,
        )
        measured |= dict(zip(places, found, strict=True))
    rows = [_row(candidate, measured[place], index, world) for place, candidate in enumerate(candidates)]
    return Comparison(
        data=location,
        data_digest=index.digest,
        num_images=measured[0].scores.num_images,
        rows=tuple(rows),
        timing=_timing(candidates, world.device),
        num_left_out=measured[0].num_left_out,
    )


def check_images(candidates: Sequence[Candidate], index: ShardIndex, location: str) -> None:
    """ConfigError unless there are labelled images, of the classes that each network was trained on."""
    if index.num_samples == 0:
        raise ConfigError(f"there is no image in {location!r}: give a folder of shards with labelled images")
    if not index.classes:
        raise ConfigError(f"the images of {location!r} have no labels, so there is nothing to score them by")
    for candidate in candidates:
        candidate.check_classes(index.classes, location=location)


def write_json(comparison: Comparison, path: Path, *, pictures: Mapping[str, Path] | None = None) -> None:
    """Whole or not at all; pictures by title, their paths relative to the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = [
        {"title": title, "file": os.path.relpath(file, path.parent)}
        for title, file in (pictures or {}).items()
    ]
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps({**asdict(comparison), "pictures": drawn}, indent=1) + "\n")
    aside.replace(path)


def _alike(candidates: Sequence[Candidate], location: str) -> list[list[int]]:
    """Places of those that take the same pixels, which are then decoded and corrupted once for all of them."""
    groups: dict[str, list[int]] = {}
    for place, candidate in enumerate(candidates):
        pixels = candidate.data_config(location).model_dump_json(exclude={"mean", "std"})
        groups.setdefault(pixels, []).append(place)
    return list(groups.values())


def _timing(candidates: Sequence[Candidate], device: torch.device) -> str:
    on_cpu = f"cpu, {torch.get_num_threads()} thread(s)"
    elsewhere = [candidate.name for candidate in candidates if not candidate.is_torch]
    beside = f"; {', '.join(elsewhere)}: {on_cpu}" if elsewhere and device.type != "cpu" else ""
    return f"Forward alone, warm, fp32, {on_cpu if device.type == 'cpu' else device.type}{beside}"


def _row(candidate: Candidate, measured: Measured, index: ShardIndex, world: World) -> Row:
    scores = measured.scores
    latency_s, throughput = _speed(candidate, world, measured.timed_on)
    every = [top1 for severities in measured.corruptions.values() for top1 in severities]
    return Row(
        name=candidate.name,
        path=candidate.reference,
        top1=scores.top1,
        top5=scores.top5,
        ece=scores.ece,
        parameters=count_parameters(candidate.model) if candidate.is_torch else None,
        flops=_flops(candidate, world, measured.timed_on) if candidate.is_torch else None,
        latency_ms=1000 * latency_s,
        images_per_s=throughput.images_per_s,
        batch_size=throughput.batch_size,
        reliability=scores.reliability,
        classes=class_scores(measured.confusion, index.classes),
        confusions=tuple((true, taken, count) for (true, taken), count in measured.confusion.items()),
        corrupted_top1=sum(every) / len(every) if every else None,
        corruptions=measured.corruptions,
        tokens=measured.tokens,
    )


def _flops(candidate: Candidate, world: World, images: torch.Tensor | None) -> int:
    """On rank 0's images where they decide: the first batch of another rank may be padding alone."""
    if images is None:
        return count_flops(candidate.model, candidate.input_shape)
    return world.broadcast(mean_flops(candidate.model, images) if world.is_main else 0)


def _speed(candidate: Candidate, world: World, images: torch.Tensor | None) -> tuple[float, Throughput]:
    """Rank 0's, measured while the others wait."""
    found: tuple[float, Throughput] | None = None
    if world.is_main:
        shape = candidate.input_shape
        model = candidate.model
        found = measure_latency(model, shape, images), measure_throughput(model, shape, images)
    found = world.broadcast(found)
    assert found is not None
    return found
