"""A Transformer in numpy, float64, one image and one head at a time: what fast code is compared with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
Weights = dict[str, Array]


def weights_of(module: nn.Module) -> Weights:
    """Everything a module would save, and its tables, in float64."""
    named = dict(module.named_buffers()) | dict(module.state_dict())
    return {name: tensor.detach().numpy().astype(np.float64) for name, tensor in named.items()}


def linear(x: Array, w: Weights, name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x: Array, w: Weights, name: str, *, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * w[f"{name}.weight"]
        + w[f"{name}.bias"]
    )


def block(x: Array, w: Weights, name: str, *, num_heads: int, epsilon: float) -> Array:
    """x [N, D]: x + attention(norm(x)), then x + mlp(norm(x))."""
    normed = layer_norm(x, w, f"{name}.norm1", epsilon=epsilon)
    queries, keys, values = np.split(linear(normed, w, f"{name}.attn.qkv"), 3, axis=1)
    width = queries.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(width)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(shares / shares.sum(1, keepdims=True) @ values[:, part])
    x = x + linear(np.concatenate(heads, 1), w, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, w, f"{name}.norm2", epsilon=epsilon), w, f"{name}.mlp.fc1")
    gelu = 0.5 * hidden * (1.0 + np.vectorize(math.erf)(hidden / math.sqrt(2.0)))
    return x + linear(gelu, w, f"{name}.mlp.fc2")


def embed_patch(pixels: Array, w: Weights, name: str) -> Array:
    """Pixels [C, S, S] through the convolution whose kernel is the patch."""
    return np.array([(kernel * pixels).sum() for kernel in w[f"{name}.weight"]]) + w[f"{name}.bias"]
