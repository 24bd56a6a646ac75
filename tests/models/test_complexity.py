"""models.complexity: counts equal those done by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from configs.attention import DynamicConfig
from models.attention import use_attend
from models.complexity import count_flops, count_parameters, mean_flops, train_flops_per_image
from models.dynamic import set_threshold, use_dynamic


def test_a_convolution_and_a_linear_layer_cost_what_they_cost_on_paper() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 10 * 10, 5))
    assert count_parameters(model) == 8 * 3 * 9 + 8 + 800 * 5 + 5
    assert count_flops(model, (3, 10, 10)) == 2 * (8 * 100 * 27) + 2 * 800 * 5


def test_attention_is_counted_although_its_kernel_is_fused() -> None:
    n, d, depth = 17, 48, 2
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=d,
        depth=depth,
        num_heads=3,
        num_classes=5,
    ).train()
    per_block = 2 * n * d * 3 * d + 2 * (2 * n * n * d) + 2 * n * d * d + 2 * (2 * n * d * 4 * d)
    expected = 2 * (n - 1) * (3 * 64) * d + depth * per_block + 2 * d * 5
    for candidate in (model, use_attend(model)):
        assert count_flops(candidate, (3, 32, 32)) == expected
    assert model.training and next(model.parameters()).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    [("vit_base_patch16_224", 17.6e9), ("swin_tiny_patch4_window7_224", 4.5e9), ("resnet50", 4.1e9)],
)
def test_forward_and_training_cost_what_is_published(name: str, multiply_adds: float) -> None:
    """Touvron et al. 2021 (DeiT-B), Liu et al. 2021 table 1, He et al. 2016; a backward costs twice the forward."""
    model = timm.create_model(name)
    forward = count_flops(model, (3, 224, 224))
    assert forward == pytest.approx(2 * multiply_adds, rel=0.02)
    assert train_flops_per_image(model, (3, 224, 224), backward=False) == forward
    assert train_flops_per_image(model, (3, 224, 224)) == pytest.approx(3 * forward, rel=0.03)


def test_what_is_frozen_costs_no_gradient_of_its_weights() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    product = 2 * 10 * 10
    assert train_flops_per_image(model, (10,)) == 3 * product + (2 + 2 + 1) * product
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    assert train_flops_per_image(model, (10,)) == 3 * product + product
    assert all(parameter.grad is None for parameter in model.parameters())


def test_operations_on_images_are_those_of_shapes_where_they_do_not_follow_the_image() -> None:
    model = use_attend(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3))
    assert mean_flops(model, torch.rand(3, 3, 32, 32)) == count_flops(model, (3, 32, 32))


def test_attention_that_follows_the_image_is_counted_whatever_its_kernel() -> None:
    images, counts = torch.rand(3, 3, 32, 32), []
    for kernel in ("auto", "float8"):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
        use_dynamic(model, DynamicConfig(threshold=0.9), kernel=kernel)
        set_threshold(model, 2.0)  # nothing is merged, so that rounding decides nothing
        counts.append(mean_flops(model, images))
    assert counts[0] == counts[1]
