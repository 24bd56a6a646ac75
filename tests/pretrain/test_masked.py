"""Losses against slow float64 arithmetic of one image at a time; what is hidden stays hidden."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from configs.base import ConfigError
from configs.training import ModelConfig
from data_pipeline.batch import Batch, normalize
from models.simmim import SimMim
from pretrain.config import MaeConfig, SimMimConfig
from pretrain.masked import MaskedAutoencoding, SimpleMasking, build_mae, build_simmim, count_masked
from tests.support.masked import (
    CHANNELS,
    MAE,
    MEAN,
    SIMMIM,
    SIZE,
    STD,
    SWIN,
    TASKS,
    VIT,
    tiny_batch,
    tiny_encoder,
    tiny_task,
)
from tests.support.slow_vit import block, embed_patch, layer_norm, linear, weights_of

PATCH, GRID = 4, SIZE // 4
Array = NDArray[np.float64]


def pixels(batch: Batch, index: int) -> Array:
    """An image [C, H, W] as a model sees it."""
    image = batch.images[index].numpy().astype(np.float64) / 255
    return (image - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]


def square(image: Array, position: int, side: int = PATCH) -> Array:
    row, column = divmod(position, image.shape[2] // side)
    return image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]


def slow_mae(model: Any, image: Array, visible: list[int], masked: list[int]) -> float:
    """Squared distance to the hidden patches of one image."""
    w = weights_of(model)
    prefix = [w["encoder.cls_token"][0, 0] + w["encoder.pos_embed"][0, 0]]
    seen = [
        embed_patch(square(image, position), w, "encoder.patch_embed.proj")
        + w["encoder.pos_embed"][0, 1 + position]
        for position in visible
    ]
    tokens = np.stack(prefix + seen)
    for depth in range(2):
        tokens = block(tokens, w, f"encoder.blocks.{depth}", num_heads=2, epsilon=1e-6)
    latent = linear(layer_norm(tokens, w, "encoder.norm", epsilon=1e-6), w, "decoder_embed")
    drawn = np.stack([w["mask_token"][0, 0]] * GRID**2)
    for place, position in enumerate(visible):
        drawn[position] = latent[1 + place]
    drawn = np.concatenate([latent[:1], drawn + w["decoder_positions"]])
    drawn = block(drawn, w, "decoder_blocks.0", num_heads=2, epsilon=1e-6)
    drawn = linear(layer_norm(drawn, w, "decoder_norm", epsilon=1e-5), w, "decoder_pred")[1:]
    losses = []
    for position in masked:
        truth = square(image, position).transpose(1, 2, 0).flatten()
        truth = (truth - truth.mean()) / np.sqrt(truth.var(ddof=1) + 1e-6)
        losses.append(((drawn[position] - truth) ** 2).mean())
    return float(np.mean(losses))


def test_mae_is_the_slow_float64_loss_of_each_image() -> None:
    model, objective = tiny_task("mae")
    assert isinstance(objective, MaskedAutoencoding)
    batch = tiny_batch()
    visible, masked = objective.split(batch)
    assert (visible.shape, masked.shape) == ((6, 4), (6, 12))
    expected = [
        slow_mae(model, pixels(batch, i), visible[i].tolist(), masked[i].tolist()) for i in range(len(batch))
    ]
    assert objective(model, batch).total.item() == pytest.approx(np.mean(expected), rel=1e-5)


def slow_simmim(model: Any, image: Array, mask: NDArray[np.bool_]) -> float:
    """Absolute distance to the hidden pixels of one image; the model is a ViT of patches as large as mask patches."""
    w = weights_of(model)
    tokens = [w["encoder.cls_token"][0, 0]]
    for position in range(GRID**2):
        embedded = embed_patch(square(image, position), w, "encoder.patch_embed.proj")
        tokens.append(w["mask_token"][0, 0] if mask.flat[position] else embedded)
    x = np.stack(tokens) + w["encoder.pos_embed"][0]
    for depth in range(2):
        x = block(x, w, f"encoder.blocks.{depth}", num_heads=2, epsilon=1e-6)
    x = layer_norm(x, w, "encoder.norm", epsilon=1e-6)[1:]
    head = w["head.weight"][:, :, 0, 0]
    distances = []
    for position in np.flatnonzero(mask).tolist():
        values = (head @ x[position] + w["head.bias"]).reshape(CHANNELS, PATCH, PATCH)
        distances += np.abs(values - square(image, position)).flatten().tolist()
    return float(np.mean(distances))


def test_simmim_is_the_slow_float64_loss_of_each_image() -> None:
    model, objective = tiny_task("simmim_vit")
    assert isinstance(objective, SimpleMasking)
    batch = tiny_batch()
    masks = objective.mask(batch).numpy()
    assert masks.sum((1, 2)).tolist() == [10] * 6
    expected = [slow_simmim(model, pixels(batch, i), masks[i]) for i in range(len(batch))]
    assert objective(model, batch).total.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_simmim_of_a_swin_is_the_mean_distance_over_hidden_pixels_and_covers_whole_mask_patches() -> None:
    model, objective = tiny_task("simmim_swin")
    assert isinstance(objective, SimpleMasking)
    batch = tiny_batch()
    mask, images = objective.mask(batch), normalize(batch.images, MEAN, STD)
    drawn, total, count = model.eval()(images, mask).detach().double(), 0.0, 0
    for image, row, column in mask.nonzero().tolist():
        place = (image, slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        total += float((drawn[place] - images[place].double()).abs().sum())
        count += 4 * 4 * CHANNELS
    assert objective(model, batch).total.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_hidden_changes_the_target_and_nothing_that_is_drawn(name: str) -> None:
    model, objective = tiny_task(name)
    model.eval()
    batch = tiny_batch()
    if isinstance(objective, MaskedAutoencoding):
        masks = objective.split(batch)
        hidden = torch.zeros(6, GRID**2).scatter(1, masks[1], 1.0).unflatten(1, (GRID, GRID)) > 0
    else:
        masks = (objective.mask(batch),)
        hidden = masks[0]
    images = normalize(batch.images, MEAN, STD)
    of_pixels = hidden.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).unsqueeze(1)
    drawn = model(images, *masks)
    assert torch.equal(model(torch.where(of_pixels, 9.0, images), *masks), drawn)
    assert not torch.equal(model(torch.where(of_pixels, images, 9.0), *masks), drawn)


@pytest.mark.parametrize("name", TASKS)
def test_every_weight_learns(name: str) -> None:
    model, objective = tiny_task(name)
    objective(model, tiny_batch()).total.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert still == []


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(name: str) -> None:
    model, objective = tiny_task(name)
    model.eval()
    batch = tiny_batch(8)
    parts = [objective(model, part).total for part in batch.split(2)]
    assert torch.stack(parts).mean().item() == pytest.approx(objective(model, batch).total.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("count", "ratio", "masked"),
    [(196, 0.75, 147), (49, 0.75, 37), (36, 0.6, 22), (5, 0.6, 3), (2, 0.01, 1), (2, 0.99, 1)],
)
def test_the_part_that_is_hidden_is_rounded_up_and_never_everything(
    count: int, ratio: float, masked: int
) -> None:
    assert count_masked(count, ratio) == masked


def build(model: dict[str, Any], task: MaeConfig | SimMimConfig, size: int = SIZE) -> None:
    encoder = tiny_encoder(ModelConfig.model_validate(model), size=size)
    if isinstance(task, MaeConfig):
        build_mae(encoder, task, mean=MEAN, std=STD, seed=0)
    else:
        build_simmim(encoder, task, mean=MEAN, std=STD, seed=0)


def with_args(config: ModelConfig, **args: Any) -> dict[str, Any]:
    return {"name": config.name, "args": {**config.args, **args}}


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (SWIN.model_dump(), MAE, "'mae' takes a ViT of timm; SwinTransformer is none"),
        ({"name": "resnet10t"}, SIMMIM, "takes a ViT or Swin of timm; ResNet is none"),
        ({"name": "residual_vit", "args": {"num_heads": 4, "depth": 1}}, MAE, "HybridEmbed, which lets masked pixels"),
        (with_args(VIT, fc_norm=True), MAE, "set model.args.fc_norm to false"),
        (with_args(VIT, global_pool="map"), MAE, "global_pool 'map' has weights of its own"),
        (with_args(VIT, pos_embed="none"), SIMMIM, "no position embedding"),
        (VIT.model_dump(), MAE.model_copy(update={"decoder_heads": 3}), "multiple of its 3 heads"),
        (VIT.model_dump(), SIMMIM.model_copy(update={"mask_patch": 6}), "mask_patch is 6 pixels: it must be"),
        (VIT.model_dump(), SIMMIM.model_copy(update={"mask_patch": 16}), "cannot show one and hide another"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_an_error_that_says_why(
    model: dict[str, Any], task: MaeConfig | SimMimConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(model, task)


def test_a_mask_patch_may_be_several_patches_of_a_vit() -> None:
    model, objective = build_simmim(
        tiny_encoder(), SIMMIM.model_copy(update={"mask_patch": 8}), mean=MEAN, std=STD, seed=0
    )
    assert isinstance(model, SimMim) and model.tokens_per_patch == 2
    assert objective.mask(tiny_batch()).shape == (6, 2, 2)
    assert torch.isfinite(objective(model, tiny_batch()).total)
    assert replace(objective, num_masked=1).mask(tiny_batch()).sum() == 6
