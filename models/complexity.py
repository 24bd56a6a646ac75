"""What a network costs: its parameters and the floating point operations of one forward."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Learned numbers, frozen or not; a weight shared by two layers counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_flops(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Operations of one image's forward (`input_shape` is C, H, W); a multiply-add counts as two.

    Matrix products and convolutions, attention among them, as torch's own counter sees them; element-wise work is not.
    The model is copied to the meta device, so nothing is computed and the original is not touched.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    # Fused kernels on the CPU have no formula in torch's counter: attention is counted as the two products it is.
    with sdpa_kernel(SDPBackend.MATH), counter:
        shapes(torch.zeros(1, *input_shape, device="meta"))
    return int(counter.get_total_flops())
