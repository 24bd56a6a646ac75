"""finetune.export: a copy is verified before it appears."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from typer.testing import CliRunner

from configs.base import ConfigError
from finetune.export import app, export_release

ARGS = {
    "depths": (1, 1),
    "channels": (16, 32),
    "stem_type": "3x3",
    "stem_chs": 8,
    "in_chans": 1,
    "num_classes": 4,
}


def make_run(run: Path) -> Path:
    stats = {"mean": (0.3,), "std": (0.35,), "input_size": (1, 28, 28)}
    model = timm.create_model("nf_seresnet26", pretrained_cfg_overlay=stats, **ARGS)
    save_for_hf(model, run / "release", model_config={"model_args": ARGS}, safe_serialization=True)
    return run


def test_an_export_loads_in_plain_timm_with_equal_logits(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    out = tmp_path / "models" / "student"
    result = CliRunner().invoke(app, [str(run), str(out)])
    assert result.exit_code == 0, result.exception
    assert "1 x 28 x 28" in result.output and f"local-dir:{out}" in result.output
    images = torch.rand(2, 1, 28, 28)
    logits = [
        timm.create_model(f"local-dir:{f}", pretrained=True).eval()(images) for f in (run / "release", out)
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    assert [path.name for path in out.parent.iterdir()] == ["student"]


def test_a_broken_release_leaves_nothing_behind(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    weights = run / "release" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "head.fc.bias": torch.full((4,), torch.nan)}, weights)
    with pytest.raises(ConfigError, match=r"hold infinite or undefined numbers, first in 'head\.fc\.bias'"):
        export_release(str(run), tmp_path / "out")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"model\.safetensors of .* is damaged"):
        export_release(str(run), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_in_use_and_a_name_without_folder_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="exists already: give a new folder"):
        export_release(str(run), run)
    with pytest.raises(ConfigError, match="'resnet18' is no folder"):
        export_release("resnet18", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert export_release(str(run), tmp_path / "empty").size == 28
