"""python -m finetune.evaluation CKPT... --data DIR: released networks side by side, on every image exactly once."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from configs.base import ConfigError
from configs.data import MOST_BAD
from configs.exit_code import run_main
from data_pipeline.index import open_index
from data_pipeline.pixels.corruptions.corrupt import chosen_corruptions
from engine.world import World, close_world, init_world, read_place
from finetune.candidate import load_candidates, parse_device
from finetune.evaluating.comparison import Comparison, compare, write_json
from finetune.evaluating.table import as_table
from finetune.evaluating.tracking import track, tracking_place
from models.zero_shot import load_classifier

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Run folders, releases or .onnx files.")
    ],
    data: Annotated[str, typer.Option(help="Folder of indexed shards with labels.")],
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write every number here, per class and per bin too.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw reliability, confusion and corruptions into DIR."),
    ] = None,
    corrupt: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH", help="Corrupt the images too: all, or noise,blur,fog ...; 5 severities."
        ),
    ] = None,
    is_tracked: Annotated[
        bool, typer.Option("--track", help="Log to MLflow: to each checkpoint's run, or to a run of its own.")
    ] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="What classes are called where captions were learned from, as 'a photo of a {}.'; may be repeated.",
        ),
    ] = None,
    dynamic: Annotated[
        float | None,
        typer.Option(
            metavar="THRESHOLD", min=0.0, max=1.0, help="ViTs: merge tokens that are more alike than this."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward while scoring.")] = 100,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of images that may fail to decode; left out.")
    ] = MOST_BAD,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Score released networks on every image of DATA exactly once, and print them side by side.

    With --ranks N, under torchrun or srun, the ranks share the images; the numbers stay the same.
    """
    corruptions = chosen_corruptions(corrupt) if corrupt is not None else ()
    if is_tracked:
        for reference in checkpoints:
            tracking_place(reference)  # what is missing is said now, not after the images
    world = open_world(device)
    load = partial(load_classifier, names=open_index(data).classes, prompts=_checked(prompts or []))
    candidates = load_candidates(checkpoints, device=world.device, load=load)
    if dynamic is not None:
        for candidate in candidates:
            candidate.merge_tokens(dynamic)
    comparison = compare(
        candidates,
        data,
        batch_size=batch_size,
        world=world,
        corruptions=corruptions,
        max_bad_fraction=max_bad_fraction,
    )
    if world.is_main:
        _hand_out(comparison, pictures=pictures, json_path=json_path, is_tracked=is_tracked)
    if world.size > 1:
        close_world()


def _hand_out(
    comparison: Comparison, *, pictures: Path | None, json_path: Path | None, is_tracked: bool
) -> None:
    """To the terminal, and wherever else it was asked for."""
    Console().print(as_table(comparison))
    drawn: dict[str, Path] = {}
    if pictures is not None:
        from finetune.evaluating.pictures import draw_pictures  # matplotlib takes a second

        drawn = draw_pictures(comparison, pictures)
    if json_path is not None:
        write_json(comparison, json_path, pictures=drawn)
    if is_tracked:
        for line in track(comparison, drawn):
            typer.echo(line)


def _checked(prompts: list[str]) -> list[str]:
    wrong = [prompt for prompt in prompts if prompt.count("{}") != 1]
    if wrong:
        raise ConfigError(f"--prompt {wrong[0]!r}: write the class once as {{}}, as in 'a photo of a {{}}.'")
    return prompts


def open_world(device: str) -> World:
    """The ranks that share the images; alone this process on `device`, and then without a process group."""
    if read_place(os.environ).size == 1:
        return World(rank=0, size=1, local_rank=0, device=parse_device(device))
    world = init_world()
    if device not in ("auto", world.device.type):
        raise ConfigError(
            f"--device {device!r} on {world.size} ranks: each takes a GPU where there are some, else the CPU; leave "
            "the option out, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    return world


if __name__ == "__main__":
    run_main(lambda: app(prog_name="mirada evaluate"))
