"""models.residual_vit: one token per place of the stem's map, everywhere a timm ViT is usable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.training import ModelConfig
from models.attention_maps import AttentionMaps
from models.build import build_model, load_release, own_module
from models.release import save_for_timm
from models.residual_vit import residual_stem

CONFIG = ModelConfig(
    name="residual_vit",
    args={
        "stem_channels": [8, 16, 24],
        "depth": 2,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "avg",
    },
)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(CONFIG, num_classes=5, in_chans=1, image_size=28).eval()


@pytest.mark.parametrize(("side", "grid"), [(28, 7), (30, 8), (32, 8), (33, 9)])
def test_each_block_of_the_stem_halves_the_sides_upwards(side: int, grid: int) -> None:
    assert residual_stem(3, (4, 8, 12))(torch.zeros(1, 3, side, side)).shape == (1, 12, grid, grid)


def test_a_fresh_stem_is_its_shortcuts_alone() -> None:
    stem = residual_stem(1, (4, 8)).eval()
    images = torch.rand(2, 1, 8, 8)
    shortcut = torch.relu(stem[3].downsample(stem[:3](images)))
    torch.testing.assert_close(stem(images), shortcut)


def test_where_it_looks_is_one_number_per_place(model: torch.nn.Module) -> None:
    with AttentionMaps(model, layers=(0, -1)) as maps:
        model(torch.rand(2, 1, 28, 28))
    assert [tuple(found.shape) for found in maps.take()] == [(2, 7, 7), (2, 7, 7)]


def test_a_release_of_it_loads_here_and_by_timm_after_one_import(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    save_for_timm(
        model,
        model.state_dict(),
        tmp_path,
        input_size=(1, 28, 28),
        mean=(0.5,),
        std=(0.5,),
        classes=tuple("abcde"),
    )
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(load_release(str(tmp_path)).eval()(images), model(images))
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import sys, timm, torch, mirada.models.residual_vit\n"
        "model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()\n"
        "torch.save(model(torch.load(sys.argv[1] + '/images.pt')), sys.argv[1] + '/logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(images))


def test_only_architectures_of_ours_need_an_import() -> None:
    assert own_module("residual_vit") == "models.residual_vit"
    assert own_module("vit_base_patch16_224") is None
