"""The images of one training step of a run: drawn again from the run folder's config, pixel for pixel."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.bad import BadSample
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.inspection.recipe import Recipe, load_recipe
from data_pipeline.inspection.sample_names import SampleName, SampleNames
from data_pipeline.inspection.sheet import Sheet, check_name, exact_side, exact_tile
from data_pipeline.joined import open_training
from data_pipeline.loader import LoaderState, ShardLoader
from data_pipeline.mix import mix_pixels

_COLUMNS = 8
_MAX_TILES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """What the model was given at one step: the global batch in the order of its slots."""

    step: int
    """As the run's log counts: 1 is the first."""
    epoch: int
    batch_of_epoch: int
    batches_per_epoch: int
    batch: Batch
    names: tuple[SampleName, ...]
    replaced: tuple[BadSample, ...]
    """Samples that cannot be used, and whose slots others took."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        targets, passes = self.batch.targets.tolist(), self.batch.epochs.tolist()
        copies, shares = self.batch.copies.tolist(), self.batch.label_shares
        own = [1.0] * len(targets) if shares is None else shares.tolist()
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch_of_epoch": self.batch_of_epoch,
            "batches_per_epoch": self.batches_per_epoch,
            "samples": [
                {
                    "slot": slot,
                    **asdict(name),
                    "target": target,
                    "pass": number,
                    "copy": copy,
                    "label_share": share,
                }
                for slot, (name, target, number, copy, share) in enumerate(
                    zip(self.names, targets, passes, copies, own, strict=True)
                )
            ],
            "replaced": [asdict(sample) for sample in self.replaced],
        }


def read_run_step(run: Path, step: int) -> RunStep:
    """Draws a step's global batch again; DataError when it cannot be the one of then."""
    recipe = _read_config(run)
    index = open_training(recipe.data)
    _check_digest(run, recipe, index)
    if recipe.train is None:
        raise DataError(f"{str(run / 'config.yaml')!r} has no section 'train'; it is not the config of a run")
    data = recipe.data.model_copy(update={"workers": 0, "max_bad_fraction": 1.0})
    global_batch = recipe.train.global_batch
    duration = recipe.train.duration
    loader = ShardLoader(
        index,
        data,
        global_batch=global_batch,
        seed=recipe.seed,
        duration=duration,
        needs_captions=recipe.needs_captions,
    )
    total = duration.steps(steps_per_epoch=loader.batches_per_epoch, global_batch=global_batch)
    if not 1 <= step <= total:
        raise DataError(
            f"step {step} is not one of the run {str(run)!r}; steps count from 1 to {total:,}, as its log does"
        )
    epoch, place = divmod(_batch_of(run, step), loader.batches_per_epoch)
    loader.load_state_dict(LoaderState(version=1, epoch=epoch, samples=place * global_batch))
    batch = next(iter(loader))
    names = SampleNames(index)
    described = tuple(names.of(batch.sample_ids.numpy()))
    names.close()
    return RunStep(
        step=step,
        epoch=epoch,
        batch_of_epoch=place,
        batches_per_epoch=loader.batches_per_epoch,
        batch=batch,
        names=described,
        replaced=tuple(loader.drain_bad()),
    )


def write_step_sheet(drawn: RunStep, file: Path) -> None:
    """A PNG with the pixels the model was given, mixed ones included, eight to a row (512 at most), and their keys."""
    check_name(file)
    shown = drawn.batch.split(_MAX_TILES)[0]
    images = mix_pixels(shown.images, shown.mix).permute(0, 2, 3, 1).numpy()
    side = exact_side(images.shape[1])
    sheet = Sheet(columns=_COLUMNS, tile=side, gap=4)
    for start in range(0, len(images), _COLUMNS):
        keys = [name.key for name in drawn.names[start : start + _COLUMNS]]
        sheet.add_row(keys, [exact_tile(image, side) for image in images[start : start + _COLUMNS]])
    sheet.write(file)


def _read_config(run: Path) -> Recipe:
    config = run / "config.yaml"
    if not config.is_file():
        raise DataError(
            f"{str(run)!r} is not a run folder: it has no config.yaml; name the --out of a training"
        )
    return load_recipe(config)


def _check_digest(run: Path, recipe: Recipe, index: ShardIndex) -> None:
    """The run's log says which data it was: other data would give other images without a word."""
    log = run / "events.jsonl"
    if not log.is_file():
        return
    with open(log, encoding="utf-8") as lines:
        started = next((event for event in map(_parse, lines) if event.get("kind") == "run"), {})
    if started.get("data_digest", index.digest) != index.digest:
        raise DataError(
            f"the data at {recipe.data.train!r} is not what the run {str(run)!r} was trained on: its index has the "
            f"digest {index.digest}, the run's was {started['data_digest']}; restore the index of then"
        )


def _batch_of(run: Path, step: int) -> int:
    """Which global batch of the run's order, from 0, a step was given: rollbacks leave some out.

    A step that was taken twice, before a rollback and after it, is the one that counted: the later.
    """
    left_out = run / "skipped_windows.jsonl"
    lines = left_out.read_text(encoding="utf-8").splitlines() if left_out.is_file() else []
    windows = sorted((window["first"], window["last"]) for window in map(_parse, lines) if window)
    batch = step - 1
    for first, last in windows:
        if batch >= first:
            batch += last - first + 1
    return batch


def _parse(line: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return {}
    return event
