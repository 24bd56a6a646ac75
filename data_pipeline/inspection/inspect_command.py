"""``mirada data inspect``: a data set, one sample of it, or what a run was given at one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.errors import DataError
from data_pipeline.wording import count, print_table

if TYPE_CHECKING:
    from data_pipeline.index import ShardIndex
    from data_pipeline.inspection.find_sample import FoundSample
    from data_pipeline.inspection.inspect import Summary
    from data_pipeline.inspection.run_step import RunStep

_BAR = 30
_MAX_SAMPLES_SHOWN = 64


def inspect(
    location: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="Folder of indexed shards; not with --run.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Write a contact sheet.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE.yaml", help="Sheet: each image beside its augmentations by this recipe."
        ),
    ] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="KEY", help="Show one sample: where it lies, and what it says.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the image of --sample to a file, or into a folder."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder of a training run, for --step.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Show the images a run was given at step N (from 1).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show counts, class balance, sizes, formats and resolutions; or --sample KEY; or --run RUN --step N."""
    _refuse_contradictions(location, sheet, recipe, sample, save, run, step)
    if run is not None and step is not None:
        _inspect_step(run, step, sheet, as_json=as_json)
    elif location is not None:
        from data_pipeline.index import open_index

        index = open_index(location)
        if sample is not None:
            _inspect_sample(index, sample, save, as_json=as_json)
        else:
            _inspect_index(index, sheet, recipe, as_json=as_json)


def _refuse_contradictions(
    location: str | None,
    sheet: Path | None,
    recipe: Path | None,
    sample: str | None,
    save: Path | None,
    run: Path | None,
    step: int | None,
) -> None:
    rules = (
        ((run is None) != (step is None), "--run and --step belong together: --run RUN --step N"),
        (run is None and location is None, "name a folder of indexed shards, or a run: --run RUN --step N"),
        (run is not None and location is not None, "--run finds the data by the run's config; leave DIR out"),
        (run is not None and (sample or recipe), "--run shows a step: leave --sample and --recipe out"),
        (save is not None and sample is None, "--save writes the image of --sample KEY; give that too"),
        (recipe is not None and sheet is None, "--recipe is for the sheet; give --sheet FILE.png too"),
        (sample is not None and sheet is not None, "--sheet is not for one --sample; --save FILE writes it"),
    )
    wrong = [advice for is_wrong, advice in rules if is_wrong]
    if wrong:
        raise DataError("; ".join(wrong))


def _inspect_index(index: ShardIndex, sheet: Path | None, recipe: Path | None, *, as_json: bool) -> None:
    from data_pipeline.inspection.inspect import summarize, write_contact_sheet
    from data_pipeline.inspection.recipe import load_recipe, write_augmented_sheet

    if sheet is not None and recipe is not None:
        write_augmented_sheet(index, load_recipe(recipe), sheet)
    elif sheet is not None:
        write_contact_sheet(index, sheet)
    summary = summarize(index)
    if as_json:
        typer.echo(json.dumps(summary.as_json(), indent=1))
        return
    print_table(("", summary.name), _summary_rows(summary))
    print_table(("shorter side", "images", ""), _bars(summary.shorter_sides))
    if summary.classes:
        bars = _bars(summary.classes)
        print_table(("label", "class", "samples", ""), [(label, *entry) for label, entry in enumerate(bars)])
    if sheet is not None:
        typer.echo(f"contact sheet: {sheet}")


def _inspect_sample(index: ShardIndex, key: str, save: Path | None, *, as_json: bool) -> None:
    from data_pipeline.inspection.find_sample import find_sample, save_image

    found = find_sample(index, key)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        print_table(("", found.key), _sample_rows(found))
    if save is not None:
        typer.echo(f"saved {save_image(found, save)}", err=as_json)


def _inspect_step(run: Path, step: int, sheet: Path | None, *, as_json: bool) -> None:
    from data_pipeline.inspection.run_step import read_run_step, write_step_sheet

    drawn = read_run_step(run, step)
    if sheet is not None:
        write_step_sheet(drawn, sheet)
    if as_json:
        typer.echo(json.dumps(drawn.as_json(), indent=1))
        return
    print_table(
        ("slot", "sample id", "shard", "key", "label", "class"), _step_rows(drawn)[:_MAX_SAMPLES_SHOWN]
    )
    if len(drawn.names) > _MAX_SAMPLES_SHOWN:
        typer.echo(f"... and {len(drawn.names) - _MAX_SAMPLES_SHOWN:,} more; --json lists all")
    for bad in drawn.replaced:
        typer.echo(f"{bad.shard}: key {bad.key!r} cannot be used ({bad.reason}): another took its place")
    typer.echo(
        f"{run}, step {drawn.step:,}: {count(len(drawn.names), 'image')}; epoch {drawn.epoch}, batch "
        f"{drawn.batch_of_epoch:,} of {drawn.batches_per_epoch:,} (both from 0)"
    )
    if sheet is not None:
        typer.echo(f"contact sheet: {sheet}")


def _summary_rows(summary: Summary) -> list[tuple[object, ...]]:
    formats = ", ".join(f"{count:,} {name}" for name, count in summary.formats.items())
    common = [f"{size} ({count:,})" for size, count in list(summary.resolutions.items())[:5]]
    more = " ..." if len(summary.resolutions) > len(common) else ""
    balance = "no labels"
    if summary.classes:
        counts = list(summary.classes.values())
        balance = f"{len(counts)}, of {min(counts):,} to {max(counts):,} samples"
    least, most = summary.samples_per_shard
    return [
        ("split", summary.split),
        ("samples", f"{summary.num_samples:,}" + _remark(summary.num_unlabelled, "without label")),
        ("classes", balance),
        ("shards", f"{summary.num_shards} of {least:,} to {most:,}"),
        ("bytes", f"{summary.num_bytes:,}"),
        ("formats", formats),
        ("image bytes", "{:,} to {:,}, median {:,}".format(*(summary.image_bytes[i] for i in (0, 2, 1)))),
        ("width x height", ", ".join(common) + more + _remark(summary.num_unreadable, "unreadable")),
        ("digest", summary.digest),
    ]


def _sample_rows(found: FoundSample) -> list[tuple[object, ...]]:
    files = ", ".join(f".{suffix}: {size:,} at {offset:,}" for suffix, (offset, size) in found.files.items())
    label = "none" if found.label < 0 else f"{found.label} ({found.class_name or 'no such class'})"
    sample_id = "none: the index leaves it out" if found.sample_id is None else f"{found.sample_id:,}"
    return [
        ("shard", found.shard),
        ("sample id", sample_id),
        ("label", label),
        *([("caption", found.caption)] if found.caption is not None else []),
        ("image", found.state),
        ("files, bytes", files),
    ]


def _step_rows(drawn: RunStep) -> list[tuple[object, ...]]:
    targets = drawn.batch.targets.tolist()
    return [
        (slot, name.sample_id, name.shard, name.key, _label(name.label, target), name.class_name or "")
        for slot, (name, target) in enumerate(zip(drawn.names, targets, strict=True))
    ]


def _label(label: int, target: int) -> str:
    return "none" if label < 0 else f"{label}" if target >= 0 else f"{label}, not used"


def _bars(counts: dict[str, int]) -> list[tuple[object, ...]]:
    """Name, count, and a bar as long as the count."""
    most = max(counts.values(), default=0) or 1
    return [(name, number, "\u2588" * round(_BAR * number / most)) for name, number in counts.items()]


def _remark(count: int, what: str) -> str:
    return f" ({count:,} {what})" if count else ""
