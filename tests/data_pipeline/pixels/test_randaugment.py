from __future__ import annotations

import random
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision

from configs.data import RandAugmentConfig
from data_pipeline.pixels import randaugment
from data_pipeline.pixels.colour import Step
from data_pipeline.pixels.randaugment import RandAugment, changes
from tests.support.shards import draw_image

IMAGE = cv2.resize(draw_image(0, 12, 12, 3), (64, 64), interpolation=cv2.INTER_CUBIC)
FILL = (124, 116, 104)
TIMM_NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "saturation": "Color",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
AMOUNTS = {
    "rotate": (-27.0, 12.5),
    "posterize": (1, 2, 3, 4),
    "solarize": (0, 26, 128, 255, 256),
    "solarize_add": (0, 55, 110),
    "shear_x": (-0.27, 0.1),
    "shear_y": (-0.27, 0.1),
    "translate_x": (-0.405, 0.2),
    "translate_y": (-0.405, 0.2),
}
CASES = [(name, amount) for name in TIMM_NAMES for amount in AMOUNTS.get(name, (0.1, 0.73, 1.81))]


def timm_name(name: str, *, increasing: bool) -> str:
    longer = TIMM_NAMES[name] + "Increasing"
    return longer if increasing and longer in auto_augment.NAME_TO_OP else TIMM_NAMES[name]


def draw_many(config: RandAugmentConfig, channels: int = 3, count: int = 6000) -> list[list[Step]]:
    u = np.random.default_rng(0).random((count, randaugment.NUM_DRAWS))
    policy = RandAugment(config, channels=channels)
    return [policy.draw(row) for row in u]


@pytest.mark.parametrize("increasing", [True, False])
def test_the_operations_are_those_of_timm(increasing: bool) -> None:
    ours = {
        timm_name(name, increasing=increasing)
        for steps in draw_many(RandAugmentConfig(increasing=increasing))
        for name, _ in steps
    }
    assert ours == set(auto_augment.rand_augment_choices("", increasing=increasing))


@pytest.mark.parametrize(("name", "amount"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_equal_those_of_timm_bit_for_bit(name: str, amount: float, channels: int) -> None:
    image = Image.fromarray(IMAGE if channels == 3 else IMAGE[:, :, 0])
    fill = FILL[:channels]
    arguments = () if name in ("autocontrast", "equalize", "invert") else (amount,)
    expected = auto_augment.NAME_TO_OP[TIMM_NAMES[name]](
        image, *arguments, resample=Image.Resampling.BILINEAR, fillcolor=fill if channels == 3 else fill[0]
    )
    np.testing.assert_array_equal(changes(fill)[name](image, amount), expected)


@pytest.mark.parametrize(("name", "amount"), [case for case in CASES if case[0] != "solarize_add"])
def test_pixels_are_those_of_torchvisions_tensor_arithmetic(name: str, amount: float) -> None:
    expected = on_tensors(name, amount, torch.from_numpy(IMAGE).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    difference = np.abs(
        np.asarray(changes(FILL)[name](Image.fromarray(IMAGE), amount)).astype(int) - expected
    )
    if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        # PIL cuts decimals off where torchvision rounds; along the edge torchvision mixes pixels with the fill.
        assert (difference > 1).any(axis=2).mean() < 0.05
        assert difference.mean() < 2
    elif name == "equalize":
        assert difference.max() <= 4  # bins of a histogram end one level apart
    else:
        assert difference.max() <= 1


def on_tensors(name: str, amount: float, image: torch.Tensor) -> torch.Tensor:
    """torchvision's own computation, without PIL."""
    if name in ("brightness", "contrast", "saturation", "sharpness"):
        return getattr(torchvision, f"adjust_{name}")(image, amount)
    if name in ("autocontrast", "equalize", "invert"):
        return getattr(torchvision, name)(image)
    if name == "posterize":
        return torchvision.posterize(image, int(amount))
    if name == "solarize":
        # torchvision refuses a threshold above 255; 256 inverts nothing.
        return image if amount == 256 else torchvision.solarize(image, amount)
    if name == "rotate":
        return torchvision.rotate(image, amount, interpolation=InterpolationMode.BILINEAR, fill=FILL)
    size, degrees = image.shape[-1], float(np.degrees(np.arctan(amount)))
    translate = [-amount * size if name == f"translate_{axis}" else 0.0 for axis in "xy"]
    shear = [degrees if name == f"shear_{axis}" else 0.0 for axis in "xy"]
    center = [0.0, 0.0] if any(shear) else None
    return torchvision.affine(
        image, 0.0, translate, 1.0, shear, InterpolationMode.BILINEAR, fill=FILL, center=center
    )


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("magnitude", [0, 1, 2.5, 5, 7.4, 9, 9.99, 10])
def test_amounts_at_a_magnitude_are_those_of_timm(magnitude: float, increasing: bool) -> None:
    config = RandAugmentConfig(magnitude=magnitude, std=0, probability=1, increasing=increasing)
    ours: dict[str, set[float]] = {}
    for steps in draw_many(config, count=1000):
        for name, amount in steps:
            ours.setdefault(name, set()).add(round(amount, 9))
    random.seed(0)
    for name, amounts in ours.items():
        amount_of = auto_augment.LEVEL_TO_ARG[timm_name(name, increasing=increasing)]
        theirs = {round(amount_of(magnitude, {})[0], 9) for _ in range(100)} if amount_of else {0.0}
        if name == "posterize":
            theirs = {max(1, bits) for bits in theirs}  # none left would be a black image
        assert amounts == theirs, name


@pytest.mark.parametrize(("channels", "count"), [(1, 14), (3, 15)])
def test_every_operation_is_equally_likely_and_grey_has_no_saturation(channels: int, count: int) -> None:
    drawn = draw_many(RandAugmentConfig(probability=1), channels)
    names = Counter(name for steps in drawn for name, _ in steps)
    assert len(names) == count
    assert ("saturation" in names) == (channels == 3)
    # 12,000 draws: 800 or 857 each, with a standard deviation of 28.
    assert max(abs(number - 12_000 / count) for number in names.values()) < 112
    pairs = Counter(tuple(name for name, _ in steps) for steps in drawn)
    assert len(pairs) == count**2  # with replacement, in both orders


def test_each_layer_happens_with_its_probability_on_its_own() -> None:
    lengths = Counter(len(steps) for steps in draw_many(RandAugmentConfig(layers=3, probability=0.4)))
    expected = {0: 0.6**3, 1: 3 * 0.4 * 0.6**2, 2: 3 * 0.4**2 * 0.6, 3: 0.4**3}
    for length, probability in expected.items():
        assert abs(lengths[length] / 6000 - probability) < 0.025


def test_magnitudes_are_normal_around_the_mean_and_kept_within_their_range() -> None:
    def magnitudes(mean: float, std: float) -> np.ndarray:
        config = RandAugmentConfig(magnitude=mean, std=std, probability=1)
        signed = [a / 30 * 10 for steps in draw_many(config) for name, a in steps if name == "rotate"]
        assert abs(np.mean(np.sign(signed))) < 0.16
        return np.abs(signed)

    free = magnitudes(5, 0.5)
    assert abs(free.mean() - 5) < 0.08
    assert abs(free.std() - 0.5) < 0.06
    np.testing.assert_allclose(np.quantile(free, [0.159, 0.841]), [4.5, 5.5], atol=0.1)
    kept = magnitudes(9, 2)
    assert kept.max() == pytest.approx(10)
    assert abs((kept > 9.9999).mean() - 0.309) < 0.07  # a normal deviate exceeds half a standard deviation


def test_layers_beyond_those_asked_for_use_no_numbers() -> None:
    for two, four in zip(
        draw_many(RandAugmentConfig(layers=2, probability=1), count=100),
        draw_many(RandAugmentConfig(layers=4, probability=1), count=100),
        strict=True,
    ):
        assert four[:2] == two


def test_what_comes_in_from_outside_has_the_fill_colour() -> None:
    moved = np.asarray(changes(FILL)["translate_x"](Image.fromarray(IMAGE), 0.25))
    assert (moved[:, 48:] == FILL).all()
    np.testing.assert_array_equal(moved[:, :48], IMAGE[:, 16:])
