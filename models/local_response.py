"""Local response normalization: each activation divided by the energy of its neighbours among the channels.

Krizhevsky, Sutskever & Hinton 2012, section 3.3, there behind the rectified first convolutions:

    b_i = a_i / (k + alpha * sum of a_j^2 over the n channels j around i) ^ beta
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.full_precision import without_autocast


class LocalResponse(nn.Module):
    """[B, C, H, W] -> the same shape and type, without weights; the constants are the paper's."""

    def __init__(self, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, maps: Tensor) -> Tensor:
        # torch takes the mean over the channels where the paper takes the sum (and Caffe, with the same constants,
        # the mean: its AlexNet normalizes five times less).
        # In float32 under autocast too: squares and roots of 16-bit numbers lose too much.
        with without_autocast(maps):
            whole = F.local_response_norm(maps.float(), self.size, self.alpha * self.size, self.beta, self.k)
        return whole.to(maps.dtype)

    def extra_repr(self) -> str:
        """The constants, as torch's layers show theirs."""
        return f"size={self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"
