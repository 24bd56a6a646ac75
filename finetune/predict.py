"""python -m finetune.predict EXPORT IMAGE...: the classes of image files, with probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from configs.base import ConfigError
from configs.exit_code import run_main
from data_pipeline.batch import normalize
from finetune.candidate import Candidate, load_candidates, parse_device
from finetune.image_file import read_image_files

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A class and how probable it is, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, the first first."""

    image: str
    guesses: tuple[Guess, ...]


def predict(candidate: Candidate, paths: Sequence[Path], *, top: int) -> list[Prediction]:
    """In the order of the files; DataError for those that are no images, before anything is predicted."""
    if candidate.num_classes == 0:
        raise ConfigError(
            f"{candidate.name!r} is an encoder: it has no classes to predict; fine-tune it first"
        )
    pixels = read_image_files(paths, candidate.data_config(""))
    found: list[Prediction] = []
    for start in range(0, len(paths), _BATCH):
        part = torch.from_numpy(pixels[start : start + _BATCH]).permute(0, 3, 1, 2)
        for path, row in zip(paths[start : start + _BATCH], _probabilities(candidate, part), strict=True):
            found.append(Prediction(image=str(path), guesses=_guesses(candidate, row, top)))
    return found


@app.command()
def main(
    export: Annotated[
        str, typer.Argument(metavar="EXPORT", help="Exported folder, run folder or .onnx file.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="JPEG, PNG or WebP files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to tell for each image.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Say what is on images: the most probable classes and their probabilities."""
    (candidate,) = load_candidates([export], device=parse_device(device))
    predictions = predict(candidate, images, top=top)
    if as_json:
        typer.echo(json.dumps([asdict(prediction) for prediction in predictions], indent=1))
        return
    for prediction in predictions:
        guesses = "  ".join(f"{guess.label} {100 * guess.probability:.1f} %" for guess in prediction.guesses)
        typer.echo(f"{prediction.image}: {guesses}")


@torch.inference_mode()
def _probabilities(candidate: Candidate, pixels: torch.Tensor) -> torch.Tensor:
    device = next(candidate.model.parameters()).device
    images = normalize(pixels.to(device), candidate.spec.mean, candidate.spec.std)
    probabilities: torch.Tensor = candidate.model(images).float().softmax(dim=1).cpu()
    return probabilities


def _guesses(candidate: Candidate, row: torch.Tensor, top: int) -> tuple[Guess, ...]:
    best = row.topk(min(top, len(row)))
    names = candidate.label_names or tuple(f"class {index}" for index in range(len(row)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Guess(label=names[index], probability=probability) for index, probability in pairs)


if __name__ == "__main__":
    run_main(lambda: app(prog_name="mirada predict"))
