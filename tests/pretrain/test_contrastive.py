"""Learning from captions: one loss however the batch is cut, every weight learns, and what does not fit is refused."""

from __future__ import annotations

import socket
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from configs.base import ConfigError
from configs.training import ModelConfig
from data_pipeline.batch import normalize
from engine.sharding.optim import parameter_groups
from engine.world import ALONE
from models.activation_memory import peak_activations
from models.image_text import ImageText
from models.kernel_report import report_kernels
from pretrain.contrastive import Contrastive, build_siglip
from pretrain.dry_forward import dry_forward
from tests.support.captioned import SIGLIP, TEXT, captioned_batch, tiny_pairing
from tests.support.masked import MEAN, SIZE, STD, SWIN, VIT, tiny_encoder
from tests.support.tiny_run import tiny_config

RESNET = ModelConfig(name="resnet10t", args={"zero_init_last": False})
POOLS = [
    (VIT, "network"),
    (VIT, "attention"),
    (SWIN, "attention"),
    (RESNET, "network"),
    (RESNET, "attention"),
]


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_loss(model: ImageText, objective: Contrastive, count: int) -> torch.Tensor:
    """By open_clip's loss and autograd, from the vectors of both towers."""
    batch = captioned_batch(count)
    seen, read, scale, bias = model(
        normalize(batch.images, MEAN, STD), objective.tokenizer(batch.captions or ())
    )
    loss: torch.Tensor = open_clip.loss.SigLipLoss()(seen, read, scale, bias)
    return loss


def test_loss_and_gradients_are_those_of_autograd_through_open_clips_loss() -> None:
    model, objective = tiny_pairing()
    loss = objective(model, captioned_batch(6))
    loss.total.backward()
    ours = gradients(model)
    model.zero_grad()
    expected = plain_loss(model, objective, 6)
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (loss.parts["pair_scale"].item(), loss.parts["pair_bias"].item()) == (pytest.approx(10.0), -10.0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("size", [2, 4])
def test_micro_batches_that_were_seen_ahead_have_the_loss_and_gradients_of_the_whole_batch(size: int) -> None:
    model, objective = tiny_pairing()
    batch = captioned_batch(8)
    torch.manual_seed(5)
    objective.look_ahead(model, [batch])  # which has nothing to do
    whole = objective(model, batch).total
    whole.backward()
    expected = gradients(model)
    model.zero_grad()
    parts = batch.split(size)
    objective.look_ahead(model, parts)
    total = 0.0
    for part in parts:
        loss = objective(model, part).total / len(parts)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-6)
    for name, gradient in gradients(model).items():
        rounding = 1e-6 * float(expected[name].abs().max().clamp(min=1.0))  # sums of large terms may be small
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=rounding, msg=name)


def test_stochastic_depth_draws_the_same_when_a_micro_batch_comes_as_when_it_was_seen_ahead() -> None:
    stochastic = ModelConfig(name=VIT.name, args={**VIT.args, "drop_path_rate": 0.5})
    model, objective = tiny_pairing(stochastic)
    parts = captioned_batch(8).split(2)
    seen: list[torch.Tensor] = []
    model.image_projection.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    torch.manual_seed(7)
    objective.look_ahead(model, parts)
    for part in parts:
        objective(model, part)
    objective.look_ahead(model, parts)
    for ahead, later, again in zip(seen[:4], seen[4:8], seen[8:], strict=True):
        torch.testing.assert_close(ahead, later)
        assert not torch.allclose(ahead, again)


@pytest.mark.parametrize(("model", "pool"), POOLS)
def test_every_weight_learns(model: ModelConfig, pool: str) -> None:
    towers, objective = tiny_pairing(model, pool=pool, pool_heads=2)
    objective(towers, captioned_batch()).total.backward()
    still = [n for n, p in towers.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert still == []


def test_scale_bias_positions_and_queries_are_not_decayed() -> None:
    model, _ = tiny_pairing(pool="attention", pool_heads=2)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, tiny_config().optim)
    free = {names[id(p)] for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert {"log_scale", "bias", "pool.latent", "text.positional_embedding", "image.pos_embed"} <= free
    assert "image_projection.weight" not in free and "text.token_embedding.weight" not in free


def test_what_is_planned_has_the_shape_of_what_is_trained_and_both_towers_attend() -> None:
    model, objective = tiny_pairing()
    forward = dry_forward(objective)
    assert forward(model, torch.zeros(4, 3, SIZE, SIZE)).shape == (4, 4)
    few, many = (
        peak_activations(model, (count, 3, SIZE, SIZE), precision="bf16", forward=forward)
        for count in (8, 16)
    )
    assert 0 < few < many
    kernels = report_kernels(
        model, (3, SIZE, SIZE), device=torch.device("cpu"), precision="fp32", forward=forward
    )
    assert {name.split(".")[0] for name in kernels} == {"image", "text"}


def test_activation_checkpointing_keeps_gradients_in_both_towers() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        options = {"world": ALONE, "activation_checkpointing": checkpointing}
        model, objective = build_siglip(tiny_encoder(), SIGLIP, mean=MEAN, std=STD, **options)
        assert model.text.transformer.grad_checkpointing == checkpointing
        model.set_grad_checkpointing(checkpointing)
        objective(model, captioned_batch()).total.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    tokens = tiny_pairing()[1].tokenizer(
        ["A photo of a Sneaker.", "", "one two three four five six seven eight"]
    )
    assert tokens.shape == (3, TEXT.context_length)
    assert tokens[0].tolist() == [49406, 320, 1125, 539, 320, 24781, 269, 49407]
    assert tokens[1].tolist() == [49406, 49407, 0, 0, 0, 0, 0, 0]
    assert tokens[2, -1] == 49407


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (ModelConfig(name="efficientnet_b0"), {"pool": "attention"}, "ViT, Swin or ResNet of timm; Eff"),
        ({"global_pool": "map"}, {"pool": "attention"}, "pools by attention itself"),
        ({"fc_norm": True}, {"pool": "attention"}, "set model.args.fc_norm to false"),
        ({}, {"pool": "attention", "pool_heads": 5}, "pool_heads 5 does not divide 24"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_pooled_by_attention_is_an_error_that_says_why(
    model: ModelConfig | dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    if isinstance(model, dict):
        model = ModelConfig(name=VIT.name, args={**VIT.args, **model})
    with pytest.raises(ConfigError, match=message):
        tiny_pairing(model, **changes)


def test_without_open_clip_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"open_clip, which is not there .*: pip install 'mirada\[text\]'"):
        tiny_pairing()
