"""pretrain.advising.rule: which family and size for which corpus; the recipes it gives are valid and buildable."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.advising.corpus_facts import CorpusFacts
from pretrain.advising.rule import HEAVY_ABOVE, LIGHT_BELOW, choose, lighter, recipe
from pretrain.config import PretrainConfig
from pretrain.run import build_task


def facts(**changes: Any) -> CorpusFacts:
    usual: dict[str, Any] = {"num_images": 50_000, "num_classes": 10, "shorter_side": 375, "channels": 3}
    given = {**usual, "num_labelled": changes.get("num_images", usual["num_images"]), **changes}
    statistics = (0.5,) * given["channels"]
    return CorpusFacts(**given, mean=statistics, std=statistics)


@pytest.mark.parametrize(
    ("num_images", "image_size", "family", "because"),
    [
        (LIGHT_BELOW - 1, None, "resnet_cbam", "99,999 labelled images are under 100,000: light gates"),
        (
            LIGHT_BELOW,
            None,
            "efficientnet_se",
            "100,000 labelled images are 100,000 to 1,000,000: EfficientNet",
        ),
        (HEAVY_ABOVE, None, "efficientnet_se", "1,000,000 labelled images are 100,000 to 1,000,000"),
        (
            HEAVY_ABOVE + 1,
            None,
            "vit",
            "1,000,001 labelled images are above 1,000,000: self-attention over all",
        ),
        (HEAVY_ABOVE + 1, 384, "swin", "at 384 pixels: attention in windows"),
        (HEAVY_ABOVE + 1, 768, "two_stage_vit", "at 768 pixels: a ViT whose attention is linear"),
        (LIGHT_BELOW - 1, 768, "resnet_cbam", "under 100,000"),
    ],
)
def test_the_family_goes_by_labelled_images_and_resolution(
    num_images: int, image_size: int | None, family: str, because: str
) -> None:
    choice = choose(facts(num_images=num_images), image_size=image_size)
    assert choice.family == family
    assert because in choice.reasons[0]


def test_labels_count_and_not_images() -> None:
    assert choose(facts(num_images=5_000_000, num_labelled=50_000)).family == "resnet_cbam"
    alone = choose(facts(num_images=5_000_000, num_labelled=0, num_classes=0))
    assert alone.family == "mae_vit" and "none of 5,000,000 images has a label" in alone.reasons[0]


def test_sizes_grow_with_the_corpus_and_shrink_where_classes_have_few_images() -> None:
    assert choose(facts(num_images=9_999)).sizes == ("resnet18",)
    assert choose(facts(num_images=60_000)).sizes == ("resnet50", "resnet34", "resnet18")
    sparse = choose(facts(num_images=60_000, num_classes=1_201))
    assert sparse.sizes == ("resnet34", "resnet18")
    assert "50 labelled images for each of 1,201 classes are fewer than 50" in sparse.reasons[1]
    assert choose(facts(num_images=60_000, num_classes=1_200)).sizes[0] == "resnet50"


@pytest.mark.parametrize(("side", "shown"), [(28, 28), (33, 32), (223, 220), (224, 224), (4000, 224)])
def test_images_are_shown_as_they_are_up_to_the_usual_size(side: int, shown: int) -> None:
    choice = choose(facts(shorter_side=side))
    assert choice.image_size == shown
    assert any("--image-size shows more" in reason for reason in choice.reasons) == (side > 2 * 224)


def test_lighter_families_end_with_the_lightest() -> None:
    choice, families = choose(facts(num_images=2_000_000), image_size=768), list[str]()
    while choice is not None:
        families.append(choice.family)
        choice = lighter(choice)  # type: ignore[assignment]
    assert families == ["two_stage_vit", "efficientnet_se", "resnet_cbam"]


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (100, 3), (224, 3)])
@pytest.mark.parametrize(
    ("num_images", "num_labelled"), [(5_000, 5_000), (300_000, 300_000), (2_000_000, 1_500_000), (40_000, 0)]
)
def test_every_smallest_recipe_builds(num_images: int, num_labelled: int, side: int, channels: Any) -> None:
    found = facts(
        num_images=num_images,
        num_labelled=num_labelled,
        num_classes=10 if num_labelled else 0,
        shorter_side=side,
        channels=channels,
    )
    choice = choose(found)
    sections = recipe(found, choice, choice.sizes[-1], train="data/x", val=None, precision="bf16")
    config = PretrainConfig.model_validate(sections)
    model, _ = build_task(config, num_classes=found.num_classes)
    gates = [group.name for group in config.model.attention.gates]
    assert gates == (["cbam"] if choice.family == "resnet_cbam" else [])
    assert config.data.image_size == side and sum(p.numel() for p in model.parameters()) > 1_000_000
    assert found.num_images // config.train.global_batch >= 40
    assert (config.data.unlabelled == "drop") == (0 < num_labelled < num_images)


@pytest.mark.parametrize("size", [384, 768])
def test_recipes_of_large_images_keep_attention_within_windows(size: int) -> None:
    found = facts(num_images=2_000_000, shorter_side=1_000)
    choice = choose(found, image_size=size)
    sections = recipe(found, choice, choice.sizes[-1], train="data/x", val="data/y", precision="fp32")
    config = PretrainConfig.model_validate(sections)
    assert config.data.val == "data/y"
    if size == 768:
        assert config.model.attention.two_stage is not None and config.model.name.startswith("vit_")
    else:
        assert config.model.name.startswith("swin_")
    build_task(config, num_classes=10)
