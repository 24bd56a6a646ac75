"""finetune.teacher: frozen, reading the student's crops in its own way, and refusing other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from configs.base import ConfigError
from finetune.teacher import Teacher, load_teacher

ARGS = {"patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}


def make_model(channels: int = 3, **cfg: Any) -> nn.Module:
    torch.manual_seed(0)
    stats = {"mean": (0.4,) * channels, "std": (0.2,) * channels, "input_size": (channels, 28, 28), **cfg}
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, in_chans=channels, pretrained_cfg_overlay=stats, **ARGS
    )
    return model


def make_images(channels: int, size: int = 28) -> Tensor:
    return torch.randint(
        0, 256, (3, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


def test_logits_are_those_of_the_network_on_its_own_normalization() -> None:
    model, images = make_model(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), make_images(3)
    told = Teacher(model)(images)
    scaled = images.double() / 255
    scaled = (scaled - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    torch.testing.assert_close(told.logits, model(scaled.float()))
    assert told.attention == told.tokens == () and told.logits.requires_grad is False


def test_a_teacher_is_frozen_and_in_eval_mode() -> None:
    model = make_model()
    model.train()
    Teacher(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_each_layer_asked_for_has_a_map_of_its_own_that_sums_to_one() -> None:
    model, images = make_model(), make_images(3)
    (one,), (two,), both = (
        Teacher(model, attention_layers=layers)(images).attention for layers in ((0,), (1,), (-1, 0))
    )
    assert torch.equal(both[0], two) and torch.equal(both[1], one) and not torch.equal(one, two)
    for found in both:
        torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(3))


def test_grey_crops_reach_a_colour_teacher_and_colour_crops_a_grey_one() -> None:
    grey, colour = make_images(1), make_images(3)
    torch.testing.assert_close(
        Teacher(make_model(3))(grey).logits, Teacher(make_model(3))(grey.repeat(1, 3, 1, 1)).logits
    )
    luma = (
        0.299 * colour[:, 0:1].float() + 0.587 * colour[:, 1:2].float() + 0.114 * colour[:, 2:3].float()
    ).round()
    torch.testing.assert_close(
        Teacher(make_model(1))(colour).logits, Teacher(make_model(1))(luma.to(torch.uint8)).logits
    )


def test_crops_of_another_size_are_resized_to_the_teachers() -> None:
    told = Teacher(make_model(), attention_layers=(-1,))(make_images(3, size=42))
    assert told.logits.shape == (3, 4)
    assert [found.shape for found in told.attention] == [(3, 4, 4)]


def test_bf16_is_autocast_with_float32_answers() -> None:
    model, images = make_model(), make_images(3)
    told = Teacher(model, attention_layers=(-1,), precision="bf16")(images)
    assert told.logits.dtype == told.attention[0].dtype == torch.float32
    torch.testing.assert_close(told.logits, Teacher(make_model())(images).logits, rtol=0.05, atol=0.05)


def test_a_teacher_is_loaded_from_a_run_folder_and_checked(tmp_path: Path) -> None:
    model = make_model(label_names=["a", "b", "c", "d"])
    config = {"model_args": {**ARGS, "img_size": 28}, "label_names": ["a", "b", "c", "d"]}
    save_for_hf(model, tmp_path / "release", model_config=config, safe_serialization=True)
    teacher = load_teacher(
        str(tmp_path), num_classes=4, class_names=("a", "b", "c", "d"), attention_layers=(-1,)
    )
    images = make_images(3)
    torch.testing.assert_close(teacher(images).logits, Teacher(model)(images).logits, rtol=0, atol=0)
    with pytest.raises(
        ConfigError, match="knows 4 classes and the student has 5: distil from a teacher trained"
    ):
        load_teacher(str(tmp_path), num_classes=5)
    with pytest.raises(ConfigError, match=r"class 1 is 'b' for teacher .* and 'x' in the data"):
        load_teacher(str(tmp_path), num_classes=4, class_names=("a", "x", "c", "d"))


def test_a_teacher_without_attention_is_refused_when_maps_are_asked_for() -> None:
    cnn = timm.create_model("resnet10t", num_classes=4)
    with pytest.raises(ConfigError, match="ResNet has no attention row to show"):
        Teacher(cnn, attention_layers=(-1,))


def test_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError,
        match=r"teacher 'big' cannot show .* a map of 7 is asked for, but the model has attention in layers "
        r"0 \(blocks.0.attn\), 1 \(blocks.1.attn\); negative numbers count from the last. teacher.attention",
    ):
        Teacher(make_model(), name="big", attention_layers=(7,))
    with pytest.raises(ConfigError, match=r"the model has features in stages 0 \(blocks.0\), 1 \(blocks.1\)"):
        Teacher(make_model(), token_layers=(2,))


def test_tokens_are_features_of_places_beside_the_maps() -> None:
    teacher = Teacher(make_model(), attention_layers=(0,), token_layers=(-1, 0))
    told = teacher(make_images(3))
    assert [found.shape for found in told.tokens] == [(3, 24, 4, 4)] * 2
    assert teacher.token_widths == (24, 24) and len(told.attention) == 1
    assert not any(found.requires_grad for found in (*told.tokens, *told.attention))
    assert not any(module._forward_hooks for module in teacher.network.modules())


def test_a_teacher_knows_how_deep_its_layers_are() -> None:
    teacher = Teacher(make_model(), attention_layers=(-1, 0), token_layers=(0,))
    last, first = teacher.attention_depths
    assert 0 < first < teacher.token_depths[0] < last < 1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"img_size": 28, **ARGS}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "embed_dim": 24, "num_classes": 4},
        ),
        (
            "residual_vit",
            {"stem_channels": (8, 24), "depth": 1, "num_heads": 2, "num_classes": 4, "img_size": 28},
        ),
    ],
)
def test_low_precision_halves_the_memory_of_matrices_and_keeps_the_answers(
    name: str, args: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    size = args["img_size"]
    model = timm.create_model(name, pretrained_cfg_overlay={"input_size": (3, size, size)}, **args)
    images = make_images(3, size=size)
    exact = Teacher(model, attention_layers=(-1,), token_layers=(-1,))(images)
    matrices = sum(p.nbytes for p in model.parameters() if p.ndim > 1)
    told = Teacher(model, attention_layers=(-1,), token_layers=(-1,), precision="bf16")(images)
    assert sum(p.nbytes for p in model.parameters() if p.ndim > 1) == matrices / 2
    assert {p.dtype for p in model.parameters() if p.ndim < 2} == {torch.float32}
    for ours, theirs in ((told.logits, exact.logits), (told.attention[0], exact.attention[0])):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))


def test_a_teacher_can_be_asked_for_other_maps() -> None:
    teacher, images = Teacher(make_model(), attention_layers=(0,)), make_images(3)
    other = teacher.showing(attention_layers=(1,))
    assert other.network is teacher.network
    assert torch.equal(
        other(images).attention[0], Teacher(make_model(), attention_layers=(1,))(images).attention[0]
    )
    assert not torch.equal(other(images).attention[0], teacher(images).attention[0])
