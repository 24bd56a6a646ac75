"""A sheet of near-duplicates: each image above its counterpart, the least alike last."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.index import ShardIndex
from data_pipeline.inspection.duplicates import Duplicates
from data_pipeline.inspection.sample_names import SampleNames
from data_pipeline.inspection.sheet import Sheet, whole_image

_COLUMNS = 10
_MAX_PAIRS = 400


def write_pairs_sheet(index: ShardIndex, against: ShardIndex, duplicates: Duplicates, file: Path) -> None:
    """A PNG with two rows per ten pairs: from `index` above, from `against` below."""
    pairs = sorted(duplicates.found, key=lambda pair: pair.difference)[:_MAX_PAIRS]
    names, other_names = SampleNames(index), SampleNames(against)
    sheet = Sheet(columns=_COLUMNS, gap=4)
    for start in range(0, len(pairs), _COLUMNS):
        row = pairs[start : start + _COLUMNS]
        upper = names.images(np.array([pair.sample.sample_id for pair in row]))
        lower = other_names.images(np.array([pair.other.sample_id for pair in row]))
        differences = f"difference {row[0].difference:.4f} to {row[-1].difference:.4f}"
        sheet.add_row(f"{index.name}: {differences}", [whole_image(encoded) for encoded in upper])
        sheet.add_row(f"{against.name}", [whole_image(encoded) for encoded in lower])
    names.close()
    other_names.close()
    sheet.write(file)
