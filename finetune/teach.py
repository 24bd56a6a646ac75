"""python -m finetune.teach RECIPE [key=value ...] --out CACHE: a recipe's teacher is asked about every crop, once.

recipe -> index, teacher -> parts that are missing -> this rank's crops -> answers -> a file per part -> manifest

A part is a shard in one pass. Its file appears whole, and what is in it does not depend on who writes it or when: so a
cache may be written by any number of ranks, killed at any moment, gone on with, and made longer later.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from configs.base import ConfigError
from configs.exit_code import run_main
from configs.load import load_config
from data_pipeline.batch import Batch
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from data_pipeline.progress import ProgressBar
from data_pipeline.sidecar import Part, parts_of, write_records
from data_pipeline.variants import VariantLoader
from engine.survival.lifeline import Lifeline
from engine.world import World, close_world, init_world
from finetune.answers import AnswerFormat
from finetune.cache_folder import claim_cache, finish_cache, missing_parts, wait_for_parts
from finetune.cache_manifest import CacheManifest, crops_of, needed_extent, teachers_of
from finetune.config import FinetuneConfig
from finetune.ensemble import Ensemble, as_one, load_teachers
from finetune.follow import follow_checkpoint
from finetune.kept_layers import KeptLayers
from finetune.teacher import Teacher

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How answers are kept; what is asked about stands in the recipe."""

    epochs: int | None
    """Of the recipe's run; None is all of them."""
    top: int
    grid: int
    batch_size: int


def teach(config: FinetuneConfig, out: Path, options: Options, *, world: World, command: str) -> None:
    """Writes what is missing of the answers that this recipe needs; all ranks together."""
    config, _ = follow_checkpoint(config)
    if config.uncacheable:
        raise ConfigError("\n".join(config.uncacheable))
    if config.teacher is not None and config.teacher.sharded:
        raise ConfigError(
            "teacher.sharded: all ranks ask a sharded teacher at once, and here each asks about its own files: leave "
            "it out (teacher.precision: bf16 halves what a rank holds)"
        )
    index = open_training(config.data)
    teacher = _load_teacher(config, index, world)
    here = _describe(config, index, teacher, options, device=world.device, command=command)
    manifest = claim_cache(out, here, world)
    parts = parts_of(index, passes=manifest.wanted.passes, copies=manifest.wanted.copies)
    missing = missing_parts(out, parts, world)
    if world.is_main:
        _say_size(out, manifest, index, parts, num_missing=len(missing))
    part_writer = _PartWriter(config, index, teacher, manifest, out=out, world=world)
    shares = [missing[rank :: world.size] for rank in range(world.size)]
    num_bad = part_writer.write(shares[world.rank])
    wait_for_parts(out, [share[-1] for share in shares if share])
    num_bad = sum(world.gather(num_bad))
    if world.is_main:
        finish_cache(out, manifest)
        without = f"; {num_bad:,} images could not be decoded" if num_bad else ""
        typer.echo(f"{out}: finished{without}; students read it with teacher.cache={out}")


class _PartWriter:
    """Asks the teacher about whole parts and writes what it says."""

    def __init__(
        self,
        config: FinetuneConfig,
        index: ShardIndex,
        teacher: Teacher | Ensemble,
        manifest: CacheManifest,
        *,
        out: Path,
        world: World,
    ) -> None:
        self._config = config
        self._index = index
        self._teacher = teacher
        self._manifest = manifest
        self._out = out
        self._world = world

    def write(self, parts: Sequence[Part]) -> int:
        """One file after the other; returns how many images could not be decoded."""
        loader = VariantLoader(
            self._index,
            self._config.data,
            parts,
            batch_size=self._manifest.how["batch_size"],
            seed=self._config.train.seed,
        )
        batches, done = iter(loader), 0
        title = "answers" if self._world.size == 1 else f"answers of rank 0 of {self._world.size}"
        total = int(self._lengths(parts).sum())
        bar = ProgressBar(title, total, unit="crops") if self._world.is_main and parts else None
        with bar or nullcontext():
            for part, length in zip(parts, self._lengths(parts).tolist(), strict=True):
                rows, present = self._ask(batches, length)
                write_records(part.path(self._out), rows, present=present)
                done += length
                if bar is not None:
                    bar.update(done)
        return sum(loader.bad_samples.values())

    def _ask(self, batches: Iterator[Batch], length: int) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """The answers about the next `length` images, and which of these could be decoded."""
        rows, present = np.zeros(length, self._manifest.answers.record), np.zeros(length, bool)
        first = 0
        while first < length:
            batch = next(batches)
            here = slice(first, first + len(batch))
            rows[here] = self._manifest.answers.write(self._teacher.observe(batch.to(self._world.device)))
            present[here] = batch.weights.numpy() > 0
            first += len(batch)
        return rows, present

    def _lengths(self, parts: Sequence[Part]) -> NDArray[np.int64]:
        return self._index.lengths[[part.shard for part in parts]]


@app.command()
def main(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Of the student.")],
    out: Annotated[Path, typer.Option(metavar="CACHE", help="Folder for the answers.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the run. Default: all of them.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes whose logits are kept.")] = 10,
    grid: Annotated[int, typer.Option(min=1, help="Most places on a side of a map.")] = 7,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward.")] = 64,
) -> None:
    """Ask the teacher of a recipe about every crop that its student will see; run again to go on."""
    config = load_config(FinetuneConfig, recipe, overrides or ()).config
    options = Options(epochs=epochs, top=top, grid=grid, batch_size=batch_size)
    world = init_world()
    with Lifeline(world):
        teach(config, out, options, world=world, command=_command(recipe, overrides or (), out, options))
        close_world()


def _command(recipe: str, overrides: Sequence[str], out: Path, options: Options) -> str:
    """What to type to go on."""
    flags = {"--epochs": options.epochs, "--top": options.top, "--grid": options.grid}
    flags["--batch-size"] = options.batch_size
    given = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    return shlex.join(["mirada", "teach", recipe, *overrides, "--out", str(out), *given])


def _load_teacher(config: FinetuneConfig, index: ShardIndex, world: World) -> Teacher | Ensemble:
    teacher = as_one(load_teachers(config, class_names=index.classes, device=world.device))
    if teacher is None:
        raise ConfigError("the recipe has no teacher to ask: set teacher.checkpoint")
    return teacher


def _describe(
    config: FinetuneConfig,
    index: ShardIndex,
    teacher: Teacher | Ensemble,
    options: Options,
    *,
    device: torch.device,
    command: str,
) -> CacheManifest:
    """The manifest of a cache of which nothing is there yet; one blank image tells what an answer is made of."""
    asked = config.teacher
    assert asked is not None  # or no teacher had been loaded
    return CacheManifest(
        teachers=teachers_of(config),
        data=index.digest,
        crops=crops_of(config),
        answers=AnswerFormat.of(
            teacher.observe(_blank(config).to(device)),
            top=options.top,
            grid=options.grid,
            maps=KeptLayers(layers=asked.attention_layers, depths=teacher.attention_depths),
            tokens=KeptLayers(layers=asked.token_layers, depths=teacher.token_depths),
        ),
        how={
            "precision": asked.precision or config.train.precision,
            "batch_size": options.batch_size,
        },
        wanted=needed_extent(config, index, epochs=options.epochs),
        taught=None,
        command=command,
    )


def _blank(config: FinetuneConfig) -> Batch:
    data, number = config.data, torch.zeros(1, dtype=torch.int64)
    return Batch(
        images=torch.zeros(1, data.channels, data.image_size, data.image_size, dtype=torch.uint8),
        targets=number,
        sample_ids=number,
        epochs=number,
        copies=number,
        weights=torch.ones(1),
    )


def _say_size(
    out: Path, manifest: CacheManifest, index: ShardIndex, parts: Sequence[Part], *, num_missing: int
) -> None:
    size, crops = manifest.answers.record.itemsize, int(index.lengths[[part.shard for part in parts]].sum())
    typer.echo(
        f"{out}: {size:,} bytes for each of {crops:,} crops ({index.num_samples:,} images, "
        f"{max(manifest.wanted.passes):,} passes): {size * crops / 1e6:,.1f} MB; {num_missing:,} of {len(parts):,} "
        "files are to be written"
    )


if __name__ == "__main__":
    run_main(lambda: app(prog_name="mirada teach"))
