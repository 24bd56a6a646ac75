"""data_pipeline.mix: mixup and cutmix as timm does them to pairs, drawn by what is mixed and not by where it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import timm.data.mixup
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import SoftTargetCrossEntropy

from configs.data import AugmentConfig
from data_pipeline.mix import Mix, _cut_boxes, draw_mix, mix_images, mix_pixels
from models.losses import task_loss

BOTH = AugmentConfig(mixup=0.8, cutmix=1.0)
CLASSES = 7


def draw(config: AugmentConfig, count: int, *, size: int = 32, seed: int = 0) -> Mix:
    ids = np.arange(count)
    return draw_mix(config, size=size, seed=seed, epochs=ids // 100, sample_ids=ids, copies=ids % 3)


def random_images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "config", [BOTH, AugmentConfig(mixup=0.3), AugmentConfig(cutmix=0.5, mix_probability=0.6)]
)
def test_images_and_loss_are_those_of_timm_for_the_same_lambdas_and_boxes(
    config: AugmentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, smoothing = 40, 0.1
    mix, images = draw(config, count), random_images(count)
    targets = torch.arange(count) * 5 % CLASSES
    # timm's pairs are the first and the last, the second and the last but one ...
    order = [*range(0, count, 2), *range(count - 1, 0, -2)]
    shares, boxes = mix.shares[::2].numpy().copy(), iter(mix.boxes[::2].tolist())
    areas = mix.boxes[::2, 2] * mix.boxes[::2, 3]
    uncorrected = np.where(areas > 0, np.float32(0.5), shares)  # timm corrects them by the boxes

    def next_box(*_args: object, **_options: object) -> tuple[int, int, int, int]:
        left, top, width, height = next(box for box in boxes if box[2] * box[3])
        return top, top + height, left, left + width

    theirs = timm.data.mixup.Mixup(mode="pair", label_smoothing=smoothing, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_elem", lambda _count: (uncorrected, (areas > 0).numpy()))
    monkeypatch.setattr(timm.data.mixup, "rand_bbox", next_box)
    expected, soft = theirs(images[order].clone(), targets[order])
    torch.testing.assert_close(mix_images(images, mix)[order], expected, rtol=0, atol=1e-6)
    logits = torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(2))
    loss = task_loss(logits, targets, label_shares=mix.shares, label_smoothing=smoothing)
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits[order], soft), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.8, 1.0, 3.0, 50.0])
def test_lambdas_of_mixup_have_the_distribution_of_numpy_s_beta(alpha: float) -> None:
    # Rounded, since at the ends of a small alpha's distribution ours has 0 and 1 where numpy has 1e-30.
    drawn = np.sort(draw(AugmentConfig(mixup=alpha), 100_000).shares[::2].numpy().round(6))
    expected = np.sort(np.random.default_rng(0).beta(alpha, alpha, size=50_000).astype(np.float32).round(6))
    assert abs(drawn.mean() - 0.5) < 0.007
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    # Two samples of this size are this far apart by chance once in a million times (Kolmogorov, Smirnov).
    both = np.concatenate([drawn, expected])
    apart = np.searchsorted(drawn, both, "right") - np.searchsorted(expected, both, "right")
    assert np.abs(apart).max() / 50_000 < 0.017


def test_boxes_are_timm_s_for_the_same_lambda_and_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    config, size = AugmentConfig(cutmix=1.0), 33
    mix = draw(config, 2000, size=size)
    generator = np.random.default_rng(0)
    lambdas, u = generator.random(500), generator.random((500, 2))
    found = _cut_boxes(lambdas, size, u)
    for lam, (x, y), (left, top, width, height) in zip(
        lambdas.tolist(), u.tolist(), found.tolist(), strict=True
    ):
        centres = iter([int(y * size), int(x * size)])
        monkeypatch.setattr(np.random, "randint", lambda *_, size=None, centres=centres: next(centres))
        assert (top, top + height, left, left + width) == timm.data.mixup.rand_bbox((3, size, size), lam)
    left, top, width, height = mix.boxes.unbind(1)
    assert ((left >= 0) & (top >= 0) & (left + width <= size) & (top + height <= size)).all()
    torch.testing.assert_close(mix.shares, (1 - width * height / size**2).float())


def test_pairs_are_mixed_as_often_and_cut_as_often_as_the_config_says() -> None:
    config = AugmentConfig(mixup=0.8, cutmix=1.0, mix_probability=0.6, mix_switch=0.3)
    mix = draw(config, 40_000, size=224)
    mixed, cut = mix.shares < 1, mix.boxes[:, 2:].prod(dim=1) > 0
    assert mixed.float().mean().item() == pytest.approx(0.6, abs=0.015)
    assert cut.float().mean().item() == pytest.approx(0.6 * 0.3, abs=0.015)
    assert not (cut & ~mixed).any()
    assert torch.equal(mix.shares[::2], mix.shares[1::2])
    assert torch.equal(mix.boxes[::2], mix.boxes[1::2])


@given(
    first=st.integers(0, 31).map(lambda pair: 2 * pair),
    pairs=st.integers(1, 32),
    size=st.sampled_from([8, 9, 24]),
    channels_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_pair_is_mixed_the_same_bit_for_bit_whatever_else_is_in_the_batch(
    first: int, pairs: int, size: int, channels_last: bool
) -> None:
    images, whole = random_images(64, size), draw(BOTH, 64, size=size)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    part = slice(first, first + 2 * pairs)
    ids = np.arange(64)[part]
    drawn = draw_mix(BOTH, size=size, seed=0, epochs=ids // 100, sample_ids=ids, copies=ids % 3)
    assert torch.equal(drawn.shares, whole.shares[part])
    assert torch.equal(drawn.boxes, whole.boxes[part])
    before = images.clone()
    assert torch.equal(mix_images(images[part], drawn), mix_images(images, whole)[part])
    assert torch.equal(images, before)


def keys() -> Iterator[dict[str, int]]:
    yield {"seed": 1, "epoch": 2, "sample": 3, "copy": 0}
    for name in ("seed", "epoch", "sample", "copy"):
        yield {"seed": 1, "epoch": 2, "sample": 3, "copy": 0, name: 7}


def test_coefficients_are_others_for_another_seed_pass_sample_and_copy() -> None:
    shares = [
        draw_mix(
            AugmentConfig(mixup=1.0),
            size=8,
            seed=key["seed"],
            epochs=np.full(2, key["epoch"]),
            sample_ids=np.array([key["sample"], 100]),
            copies=np.full(2, key["copy"]),
        ).shares[0]
        for key in keys()
    ]
    assert len({share.item() for share in shares}) == 5


def test_without_a_mix_images_are_what_they_were() -> None:
    images = random_images(3)
    assert mix_images(images, None) is images
    pixels = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    unmixed = Mix(shares=torch.ones(2), boxes=torch.zeros(2, 4, dtype=torch.int64))
    assert torch.equal(mix_pixels(pixels, unmixed), pixels)
    assert torch.equal(mix_pixels(pixels, None), pixels)


def test_a_box_is_pasted_and_the_rest_left_alone() -> None:
    images = torch.stack([torch.zeros(1, 4, 6), torch.ones(1, 4, 6)])
    mix = Mix(shares=torch.full((2,), 0.75), boxes=torch.tensor([[1, 2, 3, 2]] * 2))
    first, second = mix_images(images, mix)[:, 0]
    expected = torch.zeros(4, 6)
    expected[2:4, 1:4] = 1
    assert torch.equal(first, expected)
    assert torch.equal(second, 1 - expected)
