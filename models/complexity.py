"""What a network costs: its parameters, and the floating point operations of a forward and of a training step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.attention import any_kernel
from models.build import input_spec
from models.dry_step import Forward, call_model, dry_step

_BATCH = 2
"""Batch norm cannot train on a single image."""


def count_parameters(model: nn.Module) -> int:
    """Learned numbers, frozen or not; a weight shared by two layers counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_flops(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Operations of one image's forward (`input_shape` is C, H, W); a multiply-add counts as two.

    Matrix products and convolutions, attention among them, as torch's own counter sees them; element-wise work is not.
    The model is copied to the meta device, so nothing is computed and the original is not touched.
    """
    shapes = (
        copy.deepcopy(model).to("meta").float().eval()
    )  # matrices may be kept in bf16, and inputs are not
    counter = FlopCounterMode(display=False)
    # Fused kernels on the CPU have no formula in torch's counter: attention is counted as the two products it is.
    with sdpa_kernel(SDPBackend.MATH), counter:
        shapes(torch.zeros(1, *input_shape, device="meta"))
    return int(counter.get_total_flops())


@torch.no_grad()
def mean_flops(model: nn.Module, images: Tensor) -> int:
    """Operations of an image's forward, mean over these [B, C, H, W]: of a network in which they follow the image.

    They are computed; what pads a batch counts too.
    """
    counter = FlopCounterMode(display=False)
    # Kernels of ours have no formula either: attention runs on torch's, whatever was wished for.
    with any_kernel(), sdpa_kernel(SDPBackend.MATH), counter:
        model(images)
    return int(counter.get_total_flops()) // len(images)


def count_own_flops(model: nn.Module) -> int:
    """The same for images of the kind and size that the network was trained on."""
    spec = input_spec(model)
    return count_flops(model, (spec.channels, spec.size, spec.size))


def train_flops_per_image(
    model: nn.Module, input_shape: tuple[int, ...], *, forward: Forward = call_model, backward: bool = True
) -> int:
    """Operations of one image's forward and backward, counted as in `count_flops`: what "perf/mfu" is made of.

    About three times the forward; what is frozen needs no gradient and costs less. What activation checkpointing
    computes again counts again: turn it off before, as the definition of MFU wants (Chowdhery et al. 2022).
    """
    counter = FlopCounterMode(display=False)
    images = torch.zeros(_BATCH, *input_shape, device="meta")
    with sdpa_kernel(SDPBackend.MATH), counter:
        dry_step(model, images, forward=forward, backward=backward)
    return int(counter.get_total_flops()) // _BATCH
