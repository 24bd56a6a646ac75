"""A forward and backward of a network in shapes only: the weights are not touched, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

Forward = Callable[[nn.Module, Tensor], Tensor]
"""(model, images [B, C, H, W]) -> whatever the loss is made of."""


def call_model(model: nn.Module, images: Tensor) -> Tensor:
    """The usual forward: images in, logits out."""
    output: Tensor = model(images)
    return output


def dry_step(
    model: nn.Module, images: Tensor, *, forward: Forward = call_model, backward: bool = True
) -> None:
    """One forward and backward on tensors like the model's where `images` are: on meta, or fake ones.

    Gradients are dropped as soon as they are there, so that a memory trace sees activations and nothing else.
    """
    step = _Step(model, forward, backward=backward)
    likenesses = {name: _likeness(tensor, images) for name, tensor in step.named_parameters()}
    likenesses |= {name: _likeness(tensor, images) for name, tensor in step.named_buffers()}
    functional_call(step, likenesses, (images,))


class _Step(nn.Module):
    """The backward belongs within the call: checkpointed blocks compute again, and need the exchanged parameters."""

    def __init__(self, model: nn.Module, forward: Forward, *, backward: bool) -> None:
        super().__init__()
        self.model = model
        self._forward = forward
        self._backward = backward

    def forward(self, images: Tensor) -> None:
        output = self._forward(self.model, images)
        if self._backward and output.requires_grad:
            output.float().sum().backward()


def _likeness(tensor: Tensor, images: Tensor) -> Tensor:
    likeness = torch.empty(
        tensor.shape, dtype=tensor.dtype, device=images.device, requires_grad=tensor.requires_grad
    )
    if tensor.requires_grad:
        likeness.register_post_accumulate_grad_hook(_drop_gradient)
    return likeness


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
