"""Two-stage attention for images of many tokens: each token attends to its window and to a global subset of all.

    patch token -> the w x w tokens of its window + S global tokens + class and register tokens   N (w^2 + S + P) scores
    class and register tokens -> all tokens                                                       P (N + P) scores

Local windows as in Swin (Liu et al. 2021), global tokens as in Longformer (Beltagy et al. 2020) and BigBird (Zaheer et
al. 2020): with w, S and P fixed, the cost is linear in the number of tokens. A token that is in the window and in the
subset counts once, so that with a window or a subset of all tokens this is full attention. No weights are added.

Shapes: B batch, H heads, D head width, P prefix tokens (class, registers), N = gh x gw patch tokens, W windows of
n = w x w places, S global tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from configs.attention import TwoStageConfig
from configs.base import ConfigError
from models.attention import Kernel, attend
from models.row_sums import row_of
from models.token_grid import TokenGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """A grid of tokens cut into windows; rows and columns that are missing at its end are padded."""

    grid: tuple[int, int]
    side: tuple[int, int]

    @classmethod
    def of(cls, grid: tuple[int, int], window: int) -> Windows:
        """Square windows, but none larger than the grid."""
        return cls(grid=grid, side=(min(window, grid[0]), min(window, grid[1])))

    @property
    def counts(self) -> tuple[int, int]:
        """Windows below and beside each other."""
        return (-(-self.grid[0] // self.side[0]), -(-self.grid[1] // self.side[1]))

    def cut(self, x_BHND: Tensor) -> Tensor:
        """[B, H, N, D] -> [B, W, H, n, D], zeros where the grid is padded."""
        (down, across), (height, width) = self.counts, self.side
        x = F.pad(x_BHND.unflatten(2, self.grid), (0, 0, 0, self._pad(1), 0, self._pad(0)))
        # [B, H, down, height, across, width, D] -> [B, down, across, H, height, width, D]
        x = x.unflatten(3, (across, width)).unflatten(2, (down, height)).permute(0, 2, 4, 1, 3, 5, 6)
        windows: Tensor = x.flatten(4, 5).flatten(1, 2)
        return windows

    def join(self, x_BWHnD: Tensor) -> Tensor:
        """What `cut` did, undone."""
        # [B, down, across, H, height, width, D] -> [B, H, down, height, across, width, D]
        x = x_BWHnD.unflatten(1, self.counts).unflatten(4, self.side).permute(0, 3, 1, 4, 2, 5, 6)
        rows: Tensor = x.flatten(4, 5).flatten(2, 3)
        return rows[:, :, : self.grid[0], : self.grid[1]].flatten(2, 3)

    def places(self, device: torch.device) -> Tensor:
        """Bool [W, n]: the places that hold a token."""
        return self.cut(torch.ones(1, 1, math.prod(self.grid), 1, device=device)).flatten(2)[0] > 0

    def window_of(self, ids: Tensor) -> Tensor:
        """The window of each token number."""
        row, column = ids // self.grid[1], ids % self.grid[1]
        return row // self.side[0] * self.counts[1] + column // self.side[1]

    def _pad(self, axis: int) -> int:
        return self.counts[axis] * self.side[axis] - self.grid[axis]


def attend_in_two_stages(
    q: Tensor, k: Tensor, v: Tensor, ids_BS: Tensor, windows: Windows, *, kernel: Kernel = "auto"
) -> Tensor:
    """Attention [B, H, P + N, D] of tokens, prefix first, to their windows, the prefix and the global tokens `ids_BS`.

    `ids_BS` are numbers of patch tokens, one row of them or one per image; none twice.
    """
    num_prefix = q.shape[2] - math.prod(windows.grid)
    prefixes, patches = zip(*(x.tensor_split([num_prefix], dim=2) for x in (q, k, v)), strict=True)
    shared_k, shared_v = (
        torch.cat([prefix, _gather(patch, ids_BS)], dim=2)
        for prefix, patch in zip(prefixes[1:], patches[1:], strict=True)
    )
    local_q, local_k, local_v = (windows.cut(patch) for patch in patches)
    mixed = attend(
        local_q.flatten(0, 1),
        _beside(local_k, shared_k).flatten(0, 1),
        _beside(local_v, shared_v).flatten(0, 1),
        _bias(ids_BS, windows, num_prefix, like=local_q),
        kernel=kernel,
    )
    mixed = windows.join(mixed.unflatten(0, local_q.shape[:2]))
    if num_prefix == 0:
        return mixed
    return torch.cat([attend(prefixes[0], k, v, kernel=kernel), mixed], dim=2)


def strided_ids(grid: tuple[int, int], num_global: int, device: torch.device) -> Tensor:
    """Token numbers [1, S] of a square lattice at equal distances; of all rows or columns where there are fewer."""
    side = math.isqrt(num_global)
    rows, columns = (_middles(length, min(side, length), device) for length in grid)
    return (rows.unsqueeze(1) * grid[1] + columns).flatten().unsqueeze(0)


def use_two_stage(model: nn.Module, config: TwoStageConfig, *, kernel: Kernel = "auto") -> nn.Module:
    """Lets the attention of a timm ViT go in two stages, in place; parameters and their names stay as they are."""
    blocks = _attention_of(model)
    vit = cast(Any, model)
    grid = TokenGrid(vit.patch_embed)
    grid.listen()
    for attention in blocks:
        attention.__class__ = TwoStageAttention
        attention.config, attention.kernel, attention.grid = config, kernel, grid
        attention.reads_class_token = vit.has_class_token and vit.global_pool == "token"
        attention.num_prefix_tokens = int(vit.num_prefix_tokens)
    return model


class TwoStageAttention(Attention):
    """timm's attention with `attend_in_two_stages` between its projections."""

    config: TwoStageConfig
    kernel: Kernel
    grid: TokenGrid
    reads_class_token: bool
    num_prefix_tokens: int

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, P + N, C] -> the same."""
        if attn_mask is not None or is_causal:
            raise ValueError("two-stage attention takes no mask: its windows and its subset are all it has")
        batch, num_tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, num_tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        windows = Windows.of(self._grid_of(num_tokens), self.config.window)
        ids = self._global_ids(q, k, windows.grid)
        mixed = attend_in_two_stages(q, k, v, ids, windows, kernel=self.kernel)
        mixed = self.norm(mixed.transpose(1, 2).reshape(batch, num_tokens, self.attn_dim))
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(mixed))
        return projected

    def _grid_of(self, num_tokens: int) -> tuple[int, int]:
        grid = self.grid.of(num_tokens - self.num_prefix_tokens)
        if grid is None:
            raise ConfigError(
                f"model.attention.two_stage: {num_tokens - self.num_prefix_tokens} patch tokens do not fill the "
                "model's grid, and windows need all of them: leave out what drops tokens (objective.name: mae)"
            )
        return grid

    @torch.no_grad()
    def _global_ids(self, q: Tensor, k: Tensor, grid: tuple[int, int]) -> Tensor:
        num_global, prefix = self.config.num_global, self.num_prefix_tokens
        if self.config.subset == "strided":
            return strided_ids(grid, num_global, k.device)
        query = q[:, :, 0] if self.reads_class_token else q[:, :, prefix:].mean(dim=2)
        row_BN = row_of(query, k[:, :, prefix:], scale=self.scale)
        return row_BN.topk(min(num_global, row_BN.shape[1]), dim=1).indices


def _attention_of(model: nn.Module) -> list[Any]:
    what = "model.attention.two_stage"
    if not isinstance(model, VisionTransformer):
        raise ConfigError(
            f"{what}: {type(model).__name__} has no attention over all tokens to replace; use a ViT of timm (vit_*, "
            "deit_*), or leave two_stage out"
        )
    found = [module for module in model.blocks.modules() if isinstance(module, Attention)]
    if len(found) < len(model.blocks):
        raise ConfigError(
            f"{what}: {len(found)} of {len(model.blocks)} blocks have timm's plain attention, which is what can go in "
            "two stages; take another attention out of model.args (attn_layer, block_fn), or leave two_stage out"
        )
    obstacles = {
        "model.args.attn_drop_rate": any(module.attn_drop.p > 0 for module in found),
        "model.args.patch_drop_rate": not isinstance(model.patch_drop, nn.Identity),
    }
    wrong = [name for name, is_there in obstacles.items() if is_there]
    if wrong:
        raise ConfigError(
            f"{what} goes with neither dropped scores nor dropped tokens: leave {' and '.join(wrong)} out"
        )
    return found


def _middles(length: int, count: int, device: torch.device) -> Tensor:
    """The middle of each of `count` equal parts of 0 ... length - 1."""
    return (2 * torch.arange(count, device=device) + 1) * length // (2 * count)


def _gather(x_BHND: Tensor, ids_BS: Tensor) -> Tensor:
    batch, heads, _, width = x_BHND.shape
    return x_BHND.gather(2, ids_BS[:, None, :, None].expand(batch, heads, -1, width))


def _beside(local_BWHnD: Tensor, shared_BHSD: Tensor) -> Tensor:
    """The keys of each window, and behind them those that all windows share."""
    shared = shared_BHSD.unsqueeze(1).expand(-1, local_BWHnD.shape[1], -1, -1, -1)
    return torch.cat([local_BWHnD, shared], dim=3)


def _bias(ids_BS: Tensor, windows: Windows, num_prefix: int, *, like: Tensor) -> Tensor:
    """[W or B W, 1, 1, n + P + S] for the keys of `_beside`: -inf for padding, and for global tokens of the own window.

    One for all images where they share their global tokens.
    """
    (batch, _), num_windows, device = ids_BS.shape, like.shape[1], like.device
    own = torch.arange(num_windows, device=device)
    seen = [
        windows.places(device).expand(batch, -1, -1),
        torch.ones(batch, num_windows, num_prefix, dtype=torch.bool, device=device),
        windows.window_of(ids_BS).unsqueeze(1) != own.unsqueeze(1),
    ]
    visible = torch.cat(seen, dim=2).flatten(0, 1)[:, None, None]
    return torch.zeros(visible.shape, dtype=like.dtype, device=device).masked_fill(~visible, -math.inf)
