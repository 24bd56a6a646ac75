"""models.build: any recipe's model is built, described and reloaded, and mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from configs.base import ConfigError
from configs.training import ModelConfig
from models.build import build_model, input_spec, label_names, load_release
from models.surgery import build_from_source
from models.weight_source import open_source

TEACHER = ModelConfig(
    name="vit_tiny_r_s16_p8_224",
    args={"img_size": 28, "patch_size": 1, "embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2},
)
STUDENT = ModelConfig(
    name="nf_seresnet26",
    args={"depths": [1, 2], "channels": [48, 96], "stem_type": "3x3", "stem_chs": 24, "bottle_ratio": 0.5},
)


def build(config: ModelConfig, num_classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config, num_classes=num_classes, in_chans=1, image_size=28, mean=(0.3,), std=(0.35,))


def release(model: nn.Module, config: ModelConfig, folder: Path) -> Path:
    """A timm folder as timm itself writes it."""
    args = (
        {**config.args, "in_chans": 1, "img_size": 28}
        if "vit" in config.name
        else {**config.args, "in_chans": 1}
    )
    names = [f"class {i}" for i in range(10)]
    save_for_hf(
        model, folder, model_config={"model_args": args, "label_names": names}, safe_serialization=True
    )
    return folder


def start(
    config: ModelConfig,
    folder: Path,
    *,
    num_classes: int = 10,
    image_size: int = 28,
    other_sizes: tuple[int, ...] = (),
) -> nn.Module:
    """A network that begins with the weights of a release."""
    model, _ = build_from_source(
        config,
        open_source(str(folder)),
        num_classes=num_classes,
        in_chans=1,
        image_size=image_size,
        other_sizes=other_sizes,
    )
    return model


@pytest.mark.parametrize("config", [TEACHER, STUDENT], ids=lambda config: config.name)
def test_a_recipes_model_maps_small_grey_images_to_classes(config: ModelConfig) -> None:
    model = build(config)
    assert model.training
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert input_spec(model) == (1, 28, (0.3,), (0.35,))


def test_the_teacher_sees_49_tokens() -> None:
    assert build(TEACHER).patch_embed.num_patches == 49


def test_state_dict_keys_are_those_of_plain_timm() -> None:
    plain = timm.create_model(TEACHER.name, in_chans=1, num_classes=10, **TEACHER.args)
    assert list(build(TEACHER).state_dict()) == list(plain.state_dict())


def test_the_same_weights_give_the_logits_of_plain_timm() -> None:
    model = build(TEACHER).eval()
    plain = timm.create_model(TEACHER.name, in_chans=1, num_classes=10, **TEACHER.args).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=0)


def test_the_image_size_comes_from_the_data_where_the_architecture_takes_it() -> None:
    config = ModelConfig(
        name="vit_tiny_patch16_224", args={"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 3}
    )
    model = build_model(config, num_classes=3, in_chans=3, image_size=32)
    assert model.pos_embed.shape == (1, 17, 48)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ModelConfig(name="vit_bas_patch16_224"),
            r"no architecture of timm .*did you mean 'vit_base_patch16_224'",
        ),
        (ModelConfig(name="hf-hub:some/one"), "no architecture of timm"),
        (
            ModelConfig(name="nf_seresnet26", args={"dephts": [1, 2]}),
            "'nf_seresnet26' cannot be built with args .*dephts",
        ),
        (
            ModelConfig(name="nf_seresnet26", args={"num_classes": 3}),
            "model.args.num_classes: set model.num_classes",
        ),
        (ModelConfig(name=TEACHER.name, args={"img_size": 32}), "img_size is 32, but data.image_size is 28"),
        (
            ModelConfig(name="vit_tiny_patch16_224", args={"embed_dim": 100, "num_heads": 3}),
            "cannot be built",
        ),
        (
            ModelConfig(name="resnet26", args={"num_classes": 3, "in_chans": 2}),
            r"num_classes: .*\n.*in_chans: set data.channels",
        ),
    ],
)
def test_a_mistake_in_the_model_section_is_named(config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + message):
        build(config)


@pytest.mark.parametrize("config", [TEACHER, STUDENT], ids=lambda config: config.name)
def test_a_release_reloads_with_equal_logits(config: ModelConfig, tmp_path: Path) -> None:
    model = build(config).eval()
    release(model, config, tmp_path / "run" / "release")
    images = torch.rand(2, 1, 28, 28)
    for reference in (
        tmp_path / "run" / "release",
        tmp_path / "run",
        f"local-dir:{tmp_path / 'run' / 'release'}",
    ):
        loaded = load_release(str(reference)).eval()
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
        assert input_spec(loaded) == (1, 28, (0.3,), (0.35,))
        assert label_names(loaded) == tuple(f"class {i}" for i in range(10))


def test_starting_from_a_release_keeps_the_body_and_resets_a_head_of_other_classes(tmp_path: Path) -> None:
    model = build(STUDENT)
    release(model, STUDENT, tmp_path)
    tuned = start(STUDENT, tmp_path, num_classes=4)
    assert tuned(torch.rand(2, 1, 28, 28)).shape == (2, 4)
    assert input_spec(tuned) == (1, 28, (0.3,), (0.35,)) and label_names(tuned) == ()
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("head")}
    assert kept.keys() <= tuned.state_dict().keys()
    assert all(torch.equal(value, tuned.state_dict()[name]) for name, value in kept.items())


def test_starting_from_a_release_of_another_size_resamples_positions(tmp_path: Path) -> None:
    config = ModelConfig(
        name="vit_tiny_patch16_224", args={"patch_size": 7, "depth": 1, "embed_dim": 48, "num_heads": 3}
    )
    release(build(config), config, tmp_path)
    tuned = start(config, tmp_path, image_size=42)
    assert tuned.pos_embed.shape == (1, 37, 48)
    assert input_spec(tuned).size == 42


def test_starting_from_a_release_of_another_architecture_is_refused(tmp_path: Path) -> None:
    release(build(STUDENT), STUDENT, tmp_path)
    with pytest.raises(
        ConfigError, match=r"model.name is 'vit_tiny_r_s16_p8_224', but checkpoint .* holds a 'nf_seresnet26'"
    ):
        start(TEACHER, tmp_path)


def test_what_is_wrong_with_a_release_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder, and no architecture of timm"):
        load_release(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"no config\.json and no model\.safetensors"):
        load_release(str(tmp_path))
    folder = release(build(STUDENT), STUDENT, tmp_path / "release")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"model.safetensors of .* is damaged"):
        load_release(str(folder))
    save_file({"other": torch.zeros(1)}, weights)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_release(str(folder))
    (folder / "config.json").write_text(json.dumps({"architecture": "nope"})[:-3])
    with pytest.raises(ConfigError, match=r"config.json of .* is no JSON"):
        load_release(str(folder))


@pytest.mark.parametrize("reference", ["resnet50.a1_in1k", "hf-hub:owner/typo"])
def test_a_network_that_cannot_be_fetched_is_an_error_with_a_way_out(reference: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{reference}' cannot be fetched .* into a folder with its config"
    ):
        load_release(reference)


RESIZABLE = [
    ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    ("deit_tiny_distilled_patch16_224", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
    ),
    ("swinv2_tiny_window8_256", {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}),
    ("residual_vit", {"stem_channels": [8, 16], "depth": 1, "num_heads": 2}),
    ("resnet18", {"channels": [8, 8, 8, 8]}),
]


@pytest.mark.parametrize(("name", "args"), RESIZABLE, ids=[name for name, _ in RESIZABLE])
def test_a_model_for_several_sizes_is_at_the_last_the_one_for_that_size_alone(
    name: str, args: dict[str, Any]
) -> None:
    def make(sizes: tuple[int, ...]) -> nn.Module:
        torch.manual_seed(0)
        config = ModelConfig(name=name, args=args)
        return build_model(config, num_classes=4, in_chans=3, image_size=64, other_sizes=sizes)

    alone, several = make(()), make((32, 48))
    several.load_state_dict(alone.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(several.eval()(images), alone.eval()(images))
    for size in (32, 48, 64, 32):
        several.zero_grad()
        several.train()(torch.rand(2, 3, size, size)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in several.parameters())


def test_a_swin_on_smaller_images_has_the_windows_it_will_have_at_last() -> None:
    config = ModelConfig(name=RESIZABLE[2][0], args=RESIZABLE[2][1])
    several = build_model(config, num_classes=4, in_chans=3, image_size=64, other_sizes=(32,)).eval()
    small = build_model(config, num_classes=4, in_chans=3, image_size=32).eval()
    small.load_state_dict(several.state_dict())
    images = torch.rand(2, 3, 32, 32)
    # 8 x 8 tokens, then 4 x 4: two windows to a side, then one, with which the small one does not shift.
    torch.testing.assert_close(
        several.layers[0](several.patch_embed(images)), small.layers[0](small.patch_embed(images))
    )


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "vit_tiny_patch16_224",
            {},
            r"data\.progressive: 'vit_tiny_patch16_224' cannot take images of 40 x 40 pixels",
        ),
        (
            "mixer_s32_224",
            {},
            r"'mixer_s32_224' cannot take images of 40 x 40 .* a CNN, or leave data\.progressive out",
        ),
        ("vit_tiny_patch16_224", {"dynamic_img_size": False}, r"cannot take images of 40 x 40 pixels"),
    ],
)
def test_a_model_that_cannot_change_its_size_is_refused(
    name: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(
            ModelConfig(name=name, args=args), num_classes=4, in_chans=3, image_size=64, other_sizes=(40,)
        )


def test_a_released_model_goes_on_with_several_sizes(tmp_path: Path) -> None:
    folder = release(build(TEACHER), TEACHER, tmp_path)
    model = start(TEACHER, folder, other_sizes=(20,)).eval()
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(model(images), load_release(str(folder)).eval()(images))
    assert model(torch.rand(2, 1, 20, 20)).shape == (2, 10)


def test_attention_in_a_release_that_cannot_be_is_named_with_its_value(tmp_path: Path) -> None:
    folder = release(build(STUDENT), STUDENT, tmp_path / "release")
    file = folder / "config.json"
    attention = {"dynamic": {"threshold": 1.5}}
    file.write_text(json.dumps({**json.loads(file.read_text()), "mirada": {"attention": attention}}))
    with pytest.raises(
        ConfigError, match=r"1 mistake in .*release/config\.json\n  dynamic\.threshold: 1\.5 is not allowed"
    ):
        load_release(str(folder))
