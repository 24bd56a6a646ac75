"""What an objective has its model do with images, without the pixels: for counting operations and memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.objective import Objective
from models.dry_step import Forward, call_model
from pretrain.contrastive import Contrastive
from pretrain.masked import MaskedAutoencoding, SimpleMasking


def dry_forward(objective: Objective) -> Forward:
    """The forward with masks of the right size; which patches they hide costs nothing."""
    match objective:
        case MaskedAutoencoding(num_patches=num_patches, num_visible=num_visible):
            return _autoencoding(num_visible, num_patches - num_visible)
        case SimpleMasking(grid_size=grid_size):
            return _simple_masking(grid_size)
        case Contrastive():
            return _pairing(objective.tokenizer.context_length)
    return call_model


def _autoencoding(num_visible: int, num_masked: int) -> Forward:
    def forward(model: nn.Module, images: Tensor) -> Tensor:
        visible, masked = (
            torch.zeros(len(images), count, dtype=torch.int64, device=images.device)
            for count in (num_visible, num_masked)
        )
        output: Tensor = model(images, visible, masked)
        return output

    return forward


def _simple_masking(grid_size: int) -> Forward:
    def forward(model: nn.Module, images: Tensor) -> Tensor:
        mask = torch.zeros(len(images), grid_size, grid_size, dtype=torch.bool, device=images.device)
        output: Tensor = model(images, mask)
        return output

    return forward


def _pairing(context_length: int) -> Forward:
    def forward(model: nn.Module, images: Tensor) -> Tensor:
        tokens = torch.zeros(len(images), context_length, dtype=torch.int64, device=images.device)
        seen, read, scale, bias = model(images, tokens)
        output: Tensor = scale * seen @ read.T + bias
        return output

    return forward
