"""benchmarks.dynamic: thresholds that keep the share asked for, images in thirds, ratios to the plain network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.dynamic import load_plain, main
from benchmarks.tables import render
from models.build import CONFIG_FILE, SIGNATURE, load_release
from models.dynamic import dynamic_blocks
from tests.support.releases import make_release


@pytest.fixture
def merging(tmp_path: Path) -> Path:
    """The release of a run with merging."""
    run = make_release(tmp_path / "merging", kind="vit")
    config = run / "release" / CONFIG_FILE
    attention = {"dynamic": {"threshold": 0.5}}
    config.write_text(json.dumps({**json.loads(config.read_text()), SIGNATURE: {"attention": attention}}))
    return run


def test_plain_is_plain_where_the_release_was_trained_with_merging(merging: Path) -> None:
    plain = load_plain(str(merging))
    assert dynamic_blocks(load_release(str(merging))) and not dynamic_blocks(plain)
    weights = load_release(str(merging)).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.state_dict().items())


def test_each_round_begins_with_another(
    merging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def note(model: nn.Module, images: Tensor) -> float:
        timed.append("merging" if dynamic_blocks(model) else "plain")
        return 1.0

    monkeypatch.setattr("benchmarks.dynamic._forward_s", note)
    monkeypatch.setattr("benchmarks.dynamic._step_s", note)
    options = [
        "--images",
        "12",
        "--batch",
        "4",
        "--rounds",
        "2",
        "--keep",
        "0.8",
        "--out",
        str(tmp_path / "a"),
    ]
    assert main([str(merging), "--data", "mirada://sample/test", *options]) == 0
    plain, *rounds = timed[:3], timed[3:9], timed[9:15], timed[15:]
    assert plain == ["plain"] * 3
    whole = ["plain", "merging", "merging", "merging", "plain", "merging"]
    assert rounds == [whole[first:] + whole[:first] for first in (0, 1, 2)]


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
