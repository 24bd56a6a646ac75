"""What `mirada export` writes: one function for each format, each checked before the file appears."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.base import ConfigError
from data_pipeline.index import open_index
from engine.results.release import run_of_release
from engine.tracking.command import quiet_mlflow
from engine.tracking.follower import SinkError
from engine.tracking.mlflow_model import ALIASES, RELEASE_IN_MODEL, register_pyfunc, save_pyfunc
from finetune.candidate import Candidate, load_candidates
from finetune.evaluating.comparison import check_images
from finetune.evaluating.tracking import tracking_place
from finetune.exporting.card import Facts
from finetune.exporting.destination import new_place
from finetune.exporting.onnx_file import write_onnx
from finetune.exporting.onnx_int8 import Cost, measure_cost, quantize
from finetune.exporting.timm_folder import export_release
from finetune.exporting.torch_program import write_program
from models.build import input_spec, label_names, load_release

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A name in MLflow's registry, and the alias that is to point to the new version."""

    name: str
    alias: str

    @classmethod
    def parse(cls, text: str) -> Registered:
        """Reads NAME@ALIAS."""
        name, at, alias = text.partition("@")
        if not name or not at or alias not in ALIASES:
            raise ConfigError(
                f"--register {text!r}: write NAME@{ALIASES[0]} or NAME@{ALIASES[1]}, as in flowers@{ALIASES[1]}"
            )
        return cls(name=name, alias=alias)


def to_timm(reference: str, destination: Path, facts: Facts, *, is_pushed: bool) -> list[str]:
    """A folder that plain timm loads; what to tell the user, a line each, as from every function here.

    One that is pushed may be there already, from a push that failed.
    """
    spec = export_release(reference, destination, facts, told_by="." if is_pushed else None)
    size = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    return [
        f"{destination}: {size / 1e6:.1f} MB, for images of {spec.channels} x {spec.size} x {spec.size}; load it with",
        f"  timm.create_model('local-dir:{destination}', pretrained=True)",
    ]


def to_onnx(reference: str, destination: Path) -> list[str]:
    """An .onnx file whose logits are those of torch."""
    _check_suffix(destination, ".onnx")
    model = load_release(reference).eval().requires_grad_(False)
    with new_place(destination) as aside:
        difference = write_onnx(model, aside)
    return [f"{destination}: logits within {difference:.1g} of torch's in ONNX Runtime, any batch"]


def to_onnx_int8(reference: str, destination: Path, data: str | None) -> list[str]:
    """An .onnx file in 8 bits, and how it compares with the one in 32."""
    _check_suffix(destination, ".onnx")
    if data is None:
        raise ConfigError("--format onnx-int8 needs --data DIR: images to calibrate with, and to compare on")
    index = open_index(data)
    model = load_release(reference).eval().requires_grad_(False)
    release = Candidate(
        name=reference,
        reference=reference,
        model=model,
        spec=input_spec(model),
        label_names=label_names(model),
    )
    check_images([release], index, data)
    with tempfile.TemporaryDirectory() as folder, new_place(destination) as aside:
        whole = Path(folder) / "whole.onnx"
        write_onnx(model, whole)
        (full,) = load_candidates([str(whole)], device=_CPU)
        quantize(whole, aside, full, data)
        (small,) = load_candidates([str(aside)], device=_CPU)
        costs = measure_cost(whole, full, data), measure_cost(aside, small, data)
    return [f"{destination}: {costs[0].scores.num_images:,} images of {data}", *_compare(*costs)]


def to_torch(reference: str, destination: Path) -> list[str]:
    """A .pt2 program of torch.export."""
    _check_suffix(destination, ".pt2")
    model = load_release(reference).eval().requires_grad_(False)
    with new_place(destination) as aside:
        difference = write_program(model, aside)
    return [
        f"{destination}: logits within {difference:.1g} of the network's, any batch; load it with",
        f"  torch.export.load({str(destination)!r}).module()",
    ]


def to_mlflow(reference: str, destination: Path, facts: Facts, registered: Registered | None) -> list[str]:
    """A pyfunc model, and with `registered` a version in MLflow's registry, of one that is there already too."""
    quiet_mlflow()
    place = None if registered is None else tracking_place(reference)
    told_by = None if registered is None else RELEASE_IN_MODEL
    with tempfile.TemporaryDirectory() as folder, new_place(destination, told_by=told_by) as aside:
        release = Path(folder) / "release"
        spec = export_release(reference, release, facts)
        num_classes = int(getattr(load_release(str(release)), "num_classes", 0))
        save_pyfunc(release, aside, channels=spec.channels, num_classes=num_classes)
    lines = [f"{destination}: load it with", f"  mlflow.pyfunc.load_model({str(destination)!r})"]
    if registered is not None and place is not None:
        lines.append(_register(reference, destination, registered, *place))
    return lines


def _register(reference: str, folder: Path, registered: Registered, uri: str, experiment: str) -> str:
    run_id = run_of_release(reference)
    try:
        return register_pyfunc(
            folder,
            uri,
            experiment=experiment,
            run_id=run_id,
            name=registered.name,
            alias=registered.alias,
            tags={"mirada.run_id": run_id or "", "mirada.checkpoint": reference},
        )
    except SinkError as failure:
        raise ConfigError(
            f"{str(folder)!r} is written, but not registered: {failure}; start the server, or set "
            "MLFLOW_TRACKING_URI, and run the same command again"
        ) from failure


def _check_suffix(destination: Path, suffix: str) -> None:
    if destination.suffix != suffix:
        raise ConfigError(f"{str(destination)!r}: give a name that ends in {suffix}")


def _compare(full: Cost, small: Cost) -> Sequence[str]:
    loss = full.scores.top1 - small.scores.top1
    faster = full.latency_s / small.latency_s
    return [
        *(
            f"  {name}: top-1 {cost.scores.top1:.2f} %, ECE {cost.scores.ece:.4f}, {cost.num_bytes / 1e6:.2f} MB, "
            f"{1000 * cost.latency_s:.3g} ms for one image, {cost.throughput.images_per_s:,.0f} images/s by "
            f"{cost.throughput.batch_size}"
            for name, cost in (("32 bits", full), (" 8 bits", small))
        ),
        f"  8 bits lose {loss:.2f} points of top-1, and take {1 / faster:.2f} of the time for one image",
    ]
