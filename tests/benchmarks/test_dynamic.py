"""benchmarks.dynamic: thresholds that keep the share asked for, images in thirds, ratios to the plain network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.dynamic import main
from benchmarks.tables import render
from tests.support.releases import make_release


def test_each_share_is_a_row_beside_the_plain_network(tmp_path: Path) -> None:
    run, out = make_release(tmp_path / "vit", kind="vit"), tmp_path / "dynamic.json"
    options = ["--images", "24", "--batch", "12", "--rounds", "1", "--keep", "0.8", "0.5"]
    assert main([str(run), "--data", "mirada://sample/test", "--out", str(out), *options]) == 0
    plain, most, half = json.loads(out.read_text())["rows"]
    assert plain["threshold"] is None and plain["ratio"] == 1.0 and plain["tokens"] == 50
    for row, share in ((most, 0.8), (half, 0.5)):
        assert row["tokens"] == pytest.approx(50 * share, abs=4.0)
        assert row["easy_tokens"] < row["tokens"] < row["busy_tokens"]
        assert row["last"] < row["tokens"] and row["gflops"] < plain["gflops"]
        assert min(row["ratio"], row["easy"], row["busy"], row["training"], row["images_per_s"]) > 0
    assert half["threshold"] < most["threshold"] < 1
    assert len(render(out).splitlines()) == 2 + 3 + 2
