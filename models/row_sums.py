"""Rows of softmax attention without its matrix: of one query, and weighted sums over all of them, in float32.

Shapes: B batch, H heads, N queries, M keys, D head width; `...` stands for more batch dimensions (Swin's windows).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.full_precision import without_autocast

_MOST_SCORES = 1 << 22
"""Scores formed at once: 16 MiB of float32, whatever the number of tokens."""


def row_of(q_BHD: Tensor, k_BHMD: Tensor, *, scale: float) -> Tensor:
    """What one query attends to, mean over heads: softmax(scale q k^T) as [B, M] float32, in O(M D) operations."""
    return row_of_heads(q_BHD, k_BHMD, scale=scale).mean(dim=1)


def row_of_heads(q_BHD: Tensor, k_BHMD: Tensor, *, scale: float) -> Tensor:
    """The same head by head, [B, H, M]."""
    with without_autocast(k_BHMD):
        q_BHD1 = q_BHD.float().unsqueeze(-1) * scale
        scores_BHM = (k_BHMD.float() @ q_BHD1).squeeze(-1)
    row_BHM: Tensor = scores_BHM.softmax(dim=-1)
    return row_BHM


def sum_of_rows(
    weights_N: Tensor, q_HND: Tensor, k_HMD: Tensor, *, scale: float | Tensor, biases: Sequence[Tensor] = ()
) -> Tensor:
    """The rows softmax(scale q k^T + biases) of all queries, weighted, summed, and averaged over heads: [..., M].

    `weights_N` is [..., N], q [..., H, N, D], k [..., H, M, D], each bias broadcasts to [..., H, N, M]. With weights of
    1 / N this is the column mass. Rows are formed a few queries at a time and, where gradients are wanted, formed again
    in the backward: the memory is O(N + M) beside a constant.
    """
    heads, num_queries = q_HND.shape[-3:-1]
    per_query = q_HND.shape[:-3].numel() * heads * k_HMD.shape[-2]
    size = max(1, _MOST_SCORES // per_query)
    with without_autocast(q_HND):
        q_HND, k_HDM = q_HND.float() * scale, k_HMD.float().transpose(-2, -1)
        needs_gradient = torch.is_grad_enabled() and (q_HND.requires_grad or k_HDM.requires_grad)
        form = partial(checkpoint, _sum_some, use_reentrant=False) if needs_gradient else _sum_some
        total_M = q_HND.new_zeros(*q_HND.shape[:-3], k_HDM.shape[-1])
        for start in range(0, num_queries, size):
            part = slice(start, start + size)
            added = [bias[..., part, :] for bias in biases]
            total_M = total_M + form(weights_N[..., part], q_HND[..., part, :], k_HDM, *added)
    return total_M / heads


def _sum_some(weights_n: Tensor, q_HnD: Tensor, k_HDM: Tensor, *biases: Tensor) -> Tensor:
    scores_HnM = q_HnD @ k_HDM
    for bias in biases:
        scores_HnM = scores_HnM + bias.float()
    rows_HnM = scores_HnM.softmax(dim=-1)
    weighted_M: Tensor = torch.einsum("...n,...hnm->...m", weights_n.float(), rows_HnM)
    return weighted_M
