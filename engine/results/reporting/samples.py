"""Images of a run's data, as they are and as the run varied them, for its report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from configs.base import ConfigError
from engine.results.reporting.inputs import Picture, inline_image
from engine.results.run_record import RunRecord


def draw_samples(runs: Sequence[RunRecord]) -> list[Picture]:
    """A sheet for each run; runs whose data section is the same share one. ConfigError where the data is gone."""
    # NOTE: imported late: they bring torch, and a report without samples needs none.
    from data_pipeline.inspection.recipe import load_recipe, write_augmented_sheet
    from data_pipeline.joined import open_training

    sheets: dict[str, tuple[str, list[str]]] = {}
    for run in runs:
        recipe = load_recipe(run.path / "config.yaml")
        key = f"{recipe.seed} {recipe.data.model_dump_json()}"
        if key not in sheets:
            try:
                index = open_training(recipe.data)
            except ConfigError as missing:
                raise ConfigError(f"no samples of {run.name!r}: {missing}; leave --samples out") from missing
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "samples.png"
                write_augmented_sheet(index, recipe, file)
                sheets[key] = (inline_image(file), [])
        sheets[key][1].append(run.name)
    return [Picture(title=" and ".join(names), source=source) for source, names in sheets.values()]
