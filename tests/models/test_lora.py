"""models.lora: updates of every projection in attention, merged into weights that plain timm reads."""

from __future__ import annotations

import copy
import sys
from typing import Any

import peft
import pytest
import timm
import torch
from torch import nn

from configs.base import ConfigError
from models.attention import use_attend
from models.freezing import train_only
from models.lora import add_lora, merge_lora

NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4,
    },
    "cait_xxs24_224": {"img_size": 32, "embed_dim": 16, "depth": 1, "depth_token_only": 1, "num_heads": 2,
        "init_values": 1.0,
    },
}  # fmt: skip


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **NETWORKS[name])
    model.pretrained_cfg["input_size"] = (3, NETWORKS[name]["img_size"], NETWORKS[name]["img_size"])
    return model


def images_of(name: str) -> torch.Tensor:
    side = NETWORKS[name]["img_size"]
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(5))


def trained(name: str) -> nn.Module:
    """With updates that are no longer zero."""
    model = make(name)
    train_only(model, add_lora(use_attend(model), rank=4, alpha=8.0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images_of(name)).square().sum().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_begins_as_the_network_that_it_is_put_into(name: str) -> None:
    plain = make(name).eval()
    model = make(name).eval()
    names = add_lora(model, rank=4, alpha=8.0)
    assert torch.equal(model(images_of(name)), plain(images_of(name)))
    layers = {name.split(".lora_")[0] for name in names}
    linear = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and ".attn." in f".{n}."}
    assert layers == linear and len(names) == 2 * len(layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_weights_are_plain_timms_and_give_the_same_logits(name: str) -> None:
    model = trained(name)
    merged = merge_lora(model, model.state_dict())
    plain = make(name).eval()
    assert not torch.allclose(plain(images_of(name)), model(images_of(name)), atol=1e-4)
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(images_of(name)), model(images_of(name)), rtol=1e-4, atol=1e-5)


def test_merging_is_what_peft_does() -> None:
    model = trained("vit_tiny_patch16_224")
    merged = merge_lora(model, model.state_dict())
    by_peft = copy.deepcopy(model)
    for module in by_peft.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    for key, value in by_peft.state_dict().items():
        if ".base_layer." in key:
            torch.testing.assert_close(merged[key.replace(".base_layer", "")], value)


def test_only_the_updates_are_trained() -> None:
    model = trained("vit_tiny_patch16_224")
    before = make("vit_tiny_patch16_224").state_dict()
    merged = merge_lora(model, model.state_dict())
    moved = {key for key in before if not torch.equal(before[key], merged[key])}
    assert moved == {f"blocks.{i}.attn.{p}.weight" for i in range(2) for p in ("qkv", "proj")}


def test_a_network_without_adapters_is_given_back_as_it_is() -> None:
    model = make("vit_tiny_patch16_224")
    assert merge_lora(model, model.state_dict()).keys() == model.state_dict().keys()


def test_a_cnn_has_no_projections_and_the_error_says_what_it_has() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'resnet18' has no attention layer with linear projections \(it is made of 20 Conv2d, .* linear_probe",
    ):
        add_lora(timm.create_model("resnet18"), rank=4, alpha=8.0)


def test_a_layer_that_reads_weights_behind_the_updates_back_is_an_error() -> None:
    model = timm.create_model(
        "swinv2_tiny_window8_256", img_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4
    )
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    with pytest.raises(ConfigError, match=r"reads the weights of 'qkv' itself, .* last_blocks or full"):
        add_lora(model, rank=4, alpha=8.0)


def test_without_peft_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ConfigError, match=r"optional package peft is not there .*: pip install 'mirada\[lora\]'"
    ):
        add_lora(make("vit_tiny_patch16_224"), rank=4, alpha=8.0)
