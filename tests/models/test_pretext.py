"""What is released of a network that learned without labels is its encoder, and plain timm loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from models.build import load_release
from models.carrier import released_parts
from models.pretext import Pretext
from models.release import save_for_timm
from models.surgery import build_from_source
from models.weight_source import open_source
from tests.support.masked import CHANNELS, MEAN, SIZE, STD, TASKS, tiny_batch, tiny_encoder, tiny_task


def release(name: str, folder: Path) -> Pretext:
    model, _ = tiny_task(name)
    assert isinstance(model, Pretext)
    encoder, weights = released_parts(model, model.state_dict())[""]
    save_for_timm(encoder, weights, folder, input_size=(CHANNELS, SIZE, SIZE), mean=MEAN, std=STD, classes=())
    return model


@pytest.mark.parametrize("name", TASKS)
def test_the_encoder_has_the_names_that_timm_gives_it(name: str) -> None:
    model, _ = tiny_task(name)
    plain = tiny_encoder(TASKS[name][0]).state_dict()
    encoder, weights = released_parts(model, model.state_dict())[""]
    without_head = {key: tensor.shape for key, tensor in plain.items() if not key.startswith("head.")}
    assert {key: tensor.shape for key, tensor in weights.items()} == without_head
    assert encoder.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("name", TASKS)
def test_timm_loads_the_release_as_features_or_under_a_fresh_classifier(name: str, tmp_path: Path) -> None:
    model = release(name, tmp_path)
    model.eval()
    images = torch.rand(2, CHANNELS, SIZE, SIZE)
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    classifier = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).eval()
    # timm's Swin computes its attention unfused.
    torch.testing.assert_close(features(images), model(images), rtol=0, atol=1e-5)
    pooled = classifier.forward_head(classifier.forward_features(images), pre_logits=True)
    torch.testing.assert_close(pooled, model(images), rtol=0, atol=1e-5)
    assert classifier(images).shape == (2, 7)


@pytest.mark.parametrize("name", TASKS)
def test_it_is_fine_tuned_at_another_image_size(name: str, tmp_path: Path) -> None:
    model = release(name, tmp_path)
    tuned, _ = build_from_source(
        TASKS[name][0], open_source(str(tmp_path)), num_classes=7, in_chans=CHANNELS, image_size=2 * SIZE
    )
    assert tuned(torch.rand(1, CHANNELS, 2 * SIZE, 2 * SIZE)).shape == (1, 7)
    key = "patch_embed.proj.weight"
    assert torch.equal(tuned.state_dict()[key], model.encoder.state_dict()[key])
    assert load_release(str(tmp_path)).pretrained_cfg["num_classes"] == 0


def test_a_classifier_is_released_whole() -> None:
    model = tiny_encoder()
    weights = model.state_dict()
    assert released_parts(model, weights) == {"": (model, weights)}


@pytest.mark.parametrize("name", TASKS)
def test_mask_token_and_what_the_encoder_names_take_no_weight_decay(name: str) -> None:
    model, _ = tiny_task(name)
    assert isinstance(model, Pretext)
    free = model.no_weight_decay()
    assert "mask_token" in free
    assert {f"encoder.{key}" for key in model.encoder.no_weight_decay()} < free


@pytest.mark.parametrize("name", TASKS)
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for enable in (False, True):
        model, objective = tiny_task(name)
        assert isinstance(model, Pretext)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        objective(model, tiny_batch()).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
