"""python -m finetune.attend CKPT... [IMAGE...] [--data DIR] --out PNG: where released networks look, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.base import ConfigError
from configs.data import DataConfig
from configs.exit_code import run_main
from data_pipeline.batch import normalize
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.reader import SampleReader
from finetune.candidate import ONNX_SUFFIX, Candidate, load_candidates, parse_device
from finetune.image_file import read_image_file
from finetune.overlay import Column, Panel, draw_overlays
from models.attention_maps import open_maps
from models.energy_maps import EnergyMaps, stage_names
from models.map_hooks import MapHooks

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ONNX_SUFFIX)

_DEFAULT_GRID = (7, 7)
_NOTE = (
    "Each map runs from its own least (dark) to its own greatest (bright) value. "
    "Beneath: the prediction and its probability, green where it is right."
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Images to look at, and how to read them in any size."""

    names: tuple[str, ...]
    """True class, or file name."""
    labels: tuple[int, ...]
    """-1 where unknown."""
    class_names: tuple[str, ...]
    index: ShardIndex | None
    sample_ids: NDArray[np.int64]
    files: tuple[Path, ...]

    def read(self, config: DataConfig) -> NDArray[np.uint8]:
        """[N, S, S, C]: samples first, then files, each squeezed into the square as in evaluation."""
        size, channels = config.image_size, config.channels
        pixels = np.empty((len(self.names), size, size, channels), np.uint8)
        if self.index is not None:
            slots = np.arange(len(self.sample_ids))
            bad = SampleReader(self.index, config).read_whole(slots, self.sample_ids, pixels)
            for failed in bad.values():
                raise DataError(
                    f"image {failed.key!r} of shard {failed.shard!r} cannot be shown: {failed.reason}"
                )
        for slot, path in enumerate(self.files, start=len(self.sample_ids)):
            pixels[slot] = read_image_file(path, config)
        return pixels


def open_gallery(location: str | None, files: Sequence[Path], *, count: int) -> Gallery:
    """`count` samples of the shards at `location`, taking the classes in turn, and all of `files`."""
    if location is None and not files:
        raise ConfigError("nothing to look at: give image files, or --data with a folder of indexed shards")
    index = open_index(location) if location is not None else None
    classes = index.classes if index is not None else ()
    all_labels = index.labels() if index is not None else np.empty(0, np.int64)
    chosen = _one_class_after_another(all_labels, count)
    labels = [int(all_labels[sample]) for sample in chosen]
    pairs = zip(chosen.tolist(), labels, strict=True)
    names = [classes[label] if 0 <= label < len(classes) else f"sample {sample}" for sample, label in pairs]
    return Gallery(
        names=(*names, *(path.name for path in files)),
        labels=(*labels, *(-1 for _ in files)),
        class_names=classes,
        index=index,
        sample_ids=chosen,
        files=tuple(files),
    )


def look(candidates: Sequence[Candidate], gallery: Gallery) -> list[Column]:
    """What each network attends to and predicts; CNNs show the last stage at least as fine as the coarsest ViT map."""
    seen = [_forward(candidate, gallery) for candidate in candidates]
    grids = [maps[-1].shape[1:] for source, _, maps in seen if source.kind == "attention"]
    wanted = (min(g[0] for g in grids), min(g[1] for g in grids)) if grids else _DEFAULT_GRID
    columns = []
    for candidate, (source, probabilities, maps) in zip(candidates, seen, strict=True):
        number = len(maps) - 1 if source.kind == "attention" else _last_as_fine_as(wanted, maps)
        kind = source.kind
        height, width = maps[number].shape[1:]
        columns.append(
            Column(
                title=candidate.name,
                subtitle=f"{kind} of {source.names[number].removesuffix('.attn')}, {height} x {width}",
                maps=maps[number],
                panels=_predictions(candidate, probabilities, gallery),
            )
        )
    return columns


@app.command()
def main(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="CKPT... [IMAGE...]", help="Run folders or releases, and image files."),
    ],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    data: Annotated[str | None, typer.Option(help="Folder of indexed shards to take images from.")] = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="Images from DATA.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Draw where released networks look: image | map of each network, a row per image."""
    files = [Path(text) for text in inputs if _is_image(text)]
    references = [text for text in inputs if not _is_image(text)]
    candidates = load_candidates(references, device=parse_device(device))
    for candidate in candidates:
        if not candidate.is_torch:
            raise ConfigError(
                f"{candidate.reference!r} shows no layers to look into: name its run folder or release"
            )
    gallery = open_gallery(data, files, count=count)
    if data is not None:
        for candidate in candidates:
            if (
                candidate.num_classes and gallery.class_names
            ):  # an encoder, or images without labels, have none
                candidate.check_classes(gallery.class_names, location=data)
    finest = max(candidates, key=lambda candidate: (candidate.spec.size, candidate.spec.channels))
    shown = gallery.read(finest.data_config(data or ""))
    labels = [Panel(text=name) for name in gallery.names]
    draw_overlays(shown, labels, look(candidates, gallery), out, note=_NOTE)
    typer.echo(f"{out}: {len(labels)} image(s), {len(candidates)} network(s)")


@torch.no_grad()
def _forward(candidate: Candidate, gallery: Gallery) -> tuple[MapHooks, Tensor, tuple[Tensor, ...]]:
    spec, device = candidate.spec, next(candidate.model.parameters()).device
    pixels = torch.from_numpy(gallery.read(candidate.data_config(""))).permute(0, 3, 1, 2)
    source = _all_maps(candidate.model)
    with source:
        logits = candidate.model(normalize(pixels.to(device), spec.mean, spec.std))
    return source, logits.float().softmax(dim=1).cpu(), tuple(found.cpu() for found in source.take())


def _is_image(text: str) -> bool:
    """By its suffix; any other file too, unless it holds weights: then the message is about an image."""
    suffix = Path(text).suffix.lower()
    return suffix in _IMAGE_SUFFIXES or (suffix not in _WEIGHT_SUFFIXES and Path(text).is_file())


def _all_maps(model: nn.Module) -> MapHooks:
    last_layer = open_maps(model, (-1,))
    return last_layer if last_layer.kind == "attention" else EnergyMaps(model, stage_names(model))


def _last_as_fine_as(wanted: tuple[int, int], maps: Sequence[Tensor]) -> int:
    fine = [i for i, found in enumerate(maps) if found.shape[1] >= wanted[0] and found.shape[2] >= wanted[1]]
    return fine[-1] if fine else max(range(len(maps)), key=lambda i: maps[i].shape[1] * maps[i].shape[2])


def _predictions(candidate: Candidate, probabilities: Tensor, gallery: Gallery) -> tuple[Panel, ...]:
    if not candidate.num_classes:  # an encoder puts out features, of which none is a class
        return tuple(Panel(text="") for _ in gallery.labels)
    names = candidate.label_names or gallery.class_names
    panels = []
    for label, row in zip(gallery.labels, probabilities, strict=True):
        best = int(row.argmax())
        name = names[best] if best < len(names) else f"class {best}"
        correct = None if label < 0 else best == label
        panels.append(Panel(text=f"{name}  {100 * float(row[best]):.0f} %", correct=correct))
    return tuple(panels)


def _one_class_after_another(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The first sample of each class, then the second of each ..., in the order of classes."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order], side="left")
    turn = np.arange(len(order)) - starts
    return order[np.argsort(turn, kind="stable")][:count].astype(np.int64)


if __name__ == "__main__":
    run_main(lambda: app(prog_name="mirada attend"))
