"""A release with a text tower is a classifier of whatever names it is given; damage is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from configs.base import ConfigError
from data_pipeline.batch import normalize
from models.carrier import companion_of, released_parts
from models.image_text import ImageText
from models.release import save_companion, save_for_timm
from models.text_tower import Tokenizer
from models.zero_shot import ZeroShot, class_directions, class_tokens, load_classifier, load_image_text
from tests.support.captioned import TEXT, captioned_batch, tiny_pairing
from tests.support.masked import CHANNELS, MEAN, SIZE, STD
from tests.support.releases import make_release

NAMES = ("red {thing}", "t-shirt/top", "green")
PROMPTS = ("a photo of a {}.", "one {}")


def release(folder: Path, *, pool: str = "attention") -> ImageText:
    model, _ = tiny_pairing(pool=pool, pool_heads=2, prompts=PROMPTS)
    weights = model.state_dict()
    image, own = released_parts(model, weights)[""]
    companion = companion_of(model, weights)
    assert companion is not None
    folder.mkdir()
    save_for_timm(image, own, folder, input_size=(CHANNELS, SIZE, SIZE), mean=MEAN, std=STD, classes=())
    save_companion(companion, folder)
    return model.eval()


@pytest.mark.parametrize("pool", ["network", "attention"])
def test_a_release_has_both_towers_and_its_logits_are_scaled_cosines(tmp_path: Path, pool: str) -> None:
    model = release(tmp_path / "release", pool=pool)
    images = normalize(captioned_batch().images, MEAN, STD)
    classifier = load_classifier(str(tmp_path / "release"), names=NAMES)
    assert isinstance(classifier, ZeroShot) and classifier.num_classes == 3
    tokens = Tokenizer(TEXT.context_length)([p.replace("{}", name) for name in NAMES for p in PROMPTS])
    with torch.no_grad():
        seen, read, scale, _ = model(images, tokens)
        found = classifier(images).double().numpy()
        again, _, _, _ = load_image_text(str(tmp_path / "release"))(images)
    assert torch.equal(again, seen)
    directions = read.double().numpy().reshape(3, 2, -1).mean(axis=1)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = scale.item() * seen.double().numpy() @ directions.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_prompts_may_be_others_than_those_of_the_training(tmp_path: Path) -> None:
    model = release(tmp_path / "release")
    classifier = load_classifier(str(tmp_path / "release"), names=NAMES, prompts=["see the {}"])
    tokens = class_tokens(NAMES, ["see the {}"], Tokenizer(TEXT.context_length))
    assert tokens.shape == (3, 1, TEXT.context_length)
    with torch.no_grad():
        expected = class_directions(lambda part: model(None, part)[1], tokens)
    torch.testing.assert_close(classifier.directions, expected)


def test_the_tower_that_looks_is_a_folder_of_timm(tmp_path: Path) -> None:
    model = release(tmp_path / "release")
    images = torch.randn(2, CHANNELS, SIZE, SIZE)
    plain = timm.create_model(f"local-dir:{tmp_path / 'release'}", pretrained=True).eval()
    torch.testing.assert_close(plain(images), model.image(images))


def test_a_release_without_a_text_tower_is_taken_as_it_is(tmp_path: Path) -> None:
    run = str(make_release(tmp_path / "cnn"))
    assert load_classifier(run, names=NAMES).num_classes == 10
    with pytest.raises(ConfigError, match=r"cnn' has no text tower \(text.json and text.safetensors"):
        load_image_text(run)


def test_a_damaged_text_tower_is_an_error_that_says_so(tmp_path: Path) -> None:
    release(tmp_path / "release")
    weights, config = tmp_path / "release" / "text.safetensors", tmp_path / "release" / "text.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    with pytest.raises(ConfigError, match=r"text tower of .* cannot be loaded .* release it again"):
        load_image_text(str(tmp_path / "release"))
    weights.write_bytes(whole)
    config.write_text(config.read_text().replace('"layers": 1', '"layers": 2'))
    with pytest.raises(ConfigError, match=r"does not fit .*resblocks.1"):
        load_image_text(str(tmp_path / "release"))
    config.write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_image_text(str(tmp_path / "release"))
