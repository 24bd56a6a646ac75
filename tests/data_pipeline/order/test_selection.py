from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs.data import DataConfig
from data_pipeline.order.selection import Selection, label_is_usable
from tests.support.shards import make_shards


def test_all_samples_are_selected_where_unlabelled_ones_are_kept(tmp_path: Path) -> None:
    selection = Selection(make_shards(tmp_path, [4, 3]), DataConfig(train="unused", label_fraction=0.1))
    assert selection.lengths.tolist() == [4, 3]
    assert selection.ids(np.array([6, 0, 3])).tolist() == [6, 0, 3]


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_dropping_unlabelled_samples_keeps_the_ids_of_the_others_in_order(
    tmp_path: Path, fraction: float
) -> None:
    index = make_shards(tmp_path, [9, 40, 7])
    data = DataConfig(train="unused", label_fraction=fraction, unlabelled="drop")
    kept = np.flatnonzero(label_is_usable(data, np.arange(56)))
    selection = Selection(index, data)
    assert selection.lengths.tolist() == [
        int(((kept >= first) & (kept < stop)).sum()) for first, stop in ((0, 9), (9, 49), (49, 56))
    ]
    shuffled = np.random.default_rng(0).permutation(len(kept))
    assert selection.ids(shuffled).tolist() == kept[shuffled].tolist()


def test_without_any_label_nothing_is_left(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [3], num_classes=None)
    assert Selection(index, DataConfig(train="unused", unlabelled="drop")).lengths.tolist() == [0]
