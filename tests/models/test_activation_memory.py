"""The memory of activations, counted in fake tensors: by hand where that can be done, against a real run where not."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from models.activation_memory import checkpointing, peak_activations
from models.attention import Kernel, use_attend

SHAPE = (3, 32, 32)


def tiny_vit(kernel: Kernel = "auto") -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=64, depth=6, num_heads=2, num_classes=10
    )
    return use_attend(model, kernel)


def test_a_chain_of_layers_keeps_what_its_backward_needs() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU())
    batch = 1000
    peak = peak_activations(model, (batch, 100), precision="fp32")
    kept = 3 * batch * 100 * 4  # input and both ReLUs' results
    assert kept < peak < 2.5 * kept  # and what one layer works on


def test_the_peak_is_a_line_in_the_batch() -> None:
    peaks = [peak_activations(tiny_vit(), (batch, *SHAPE), precision="fp32") for batch in (8, 16, 32)]
    assert abs((peaks[2] - peaks[1]) / (2 * (peaks[1] - peaks[0])) - 1) < 0.02


def test_checkpointing_and_autocast_save_memory_and_leave_the_model_as_it_was() -> None:
    model = tiny_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with checkpointing(model, enabled=False) as can:
        whole = peak_activations(model, (32, *SHAPE), precision="fp32")
        lower = peak_activations(model, (32, *SHAPE), precision="bf16")
    with checkpointing(model, enabled=True):
        checkpointed = peak_activations(model, (32, *SHAPE), precision="fp32")
    assert can
    assert checkpointed < 0.5 * whole
    assert lower < 0.8 * whole
    assert not model.grad_checkpointing
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_attention_does_not_form_its_map() -> None:
    """257 tokens and 12 heads: maps would be most of it."""
    model = use_attend(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=64, patch_size=4, embed_dim=48, depth=2, num_heads=12
        )
    )
    batch, tokens = 4, 257
    fused = peak_activations(model, (batch, 3, 64, 64), precision="fp32")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    formed = peak_activations(model, (batch, 3, 64, 64), precision="fp32")
    assert formed - fused > 2 * batch * 12 * tokens * tokens * 4


@pytest.mark.parametrize("kernel", ["auto", "float8"])
def test_what_is_kept_for_the_backward_is_what_a_real_run_keeps(kernel: Kernel) -> None:
    model = tiny_vit(kernel)
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.randn(16, *SHAPE))
    real = sum(num_bytes for _, num_bytes in kept.values())
    assert output.requires_grad
    peak = peak_activations(model, (16, *SHAPE), precision="fp32")
    assert real < peak < 1.3 * real  # the peak has what the last layers work on besides
