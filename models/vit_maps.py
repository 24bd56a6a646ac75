"""Where a Vision Transformer looks: the row of its pooled query, its column mass, or attention rolled out over layers.

A fused kernel never forms the N x N attention matrix, and nothing here does either. Hooks on the q_norm and k_norm of a
block see the q and k that it computes anyway, and sums of rows come from those.

Shapes: B batch, H heads, N tokens (prefix tokens first), D head width, gh x gw token grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import VisionTransformer
from timm.models.eva import Eva, EvaAttention
from torch import Tensor, nn

from configs.base import ConfigError
from models.energy_maps import stage_names
from models.map_hooks import MapHooks, pick
from models.row_sums import row_of_heads, sum_of_rows
from models.token_grid import TokenGrid
from models.token_merging import Tokens, spread
from models.two_stage import TwoStageAttention

if TYPE_CHECKING:
    from typing_extensions import Self

Query = Literal["auto", "cls", "mean"]

_KINDS = (Attention, AttentionRope, EvaAttention)


class TokenMaps(MapHooks):
    """What ViT maps share: q and k of the blocks asked for, and the way from a row over tokens to a map of places."""

    kind = "attention"

    def __init__(self, model: nn.Module, layers: Sequence[int], *, query: Query = "auto") -> None:
        super().__init__(pick(attention_blocks(model), layers, what="attention in layers"))
        self._model = cast(Any, model)
        has_class_token = getattr(model, "cls_token", None) is not None
        reads_it = has_class_token and self._model.global_pool == "token"
        self._use_cls = reads_it if query == "auto" else query == "cls"
        if self._use_cls and not has_class_token:
            raise ConfigError(
                "a class token's attention is asked for, but the model has none: use query 'mean'"
            )
        self._prefix = int(self._model.num_prefix_tokens)
        self._token_grid = TokenGrid(self._model.patch_embed)
        self._rotations: dict[int, Tensor | None] = {}
        self._owners: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        self._keep(self._token_grid.listen())
        return super().__enter__()

    def _attach(self, index: int, module: nn.Module) -> None:
        attention: Any = module
        self._keep(attention.register_forward_pre_hook(partial(self._on_call, index), with_kwargs=True))
        self._keep(attention.q_norm.register_forward_hook(partial(self._on_output, self._on_queries, index)))
        self._keep(attention.k_norm.register_forward_hook(partial(self._on_output, self._on_keys, index)))

    @abstractmethod
    def _on_queries(self, index: int, q_BHND: Tensor) -> None:
        """What is needed of a layer's queries; comes before its keys."""

    @abstractmethod
    def _on_keys(self, index: int, k_BHND: Tensor) -> None:
        """Makes the layer's map."""

    def _scale(self, index: int) -> float:
        return float(cast(Any, self._modules[index]).scale)

    def _map(self, row_BN: Tensor) -> Tensor:
        """Without prefix tokens, to sum 1, as [B, gh, gw]."""
        patches = row_BN[:, self._prefix :]
        grid = self._token_grid.of(patches.shape[1])
        if grid is None:
            raise RuntimeError(
                f"{patches.shape[1]} patch tokens do not fill the grid {self._model.patch_embed.grid_size}: patch "
                "dropout is on; maps need eval mode"
            )
        shares: Tensor = (patches / patches.sum(dim=1, keepdim=True)).unflatten(1, grid)
        return shares

    def _on_call(self, index: int, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if isinstance(inputs[0], Tokens):
            self._owners[index] = inputs[0].owners_BN
        takes_rotation = isinstance(module, AttentionRope | EvaAttention)
        given = inputs[1] if takes_rotation and len(inputs) > 1 else named.get("rope")
        self._rotations[index] = given

    def _on_output(
        self, use: Any, index: int, module: nn.Module, inputs: tuple[Tensor, ...], x_BHND: Tensor
    ) -> None:
        if index in self._owners:
            # A token that stands for s places counts s times: as each of them, with its query and its key.
            x_BHND = spread(x_BHND, self._owners[index]).transpose(1, 2)
        use(index, self._rotated(index, x_BHND))

    def _rotated(self, index: int, x_BHND: Tensor) -> Tensor:
        """With the rotary position embedding that the block adds behind its norms, where it has one."""
        rotation, attention = self._rotations[index], cast(Any, self._modules[index])
        if rotation is None:
            return x_BHND
        prefix = attention.num_prefix_tokens
        turned = apply_rot_embed_cat(x_BHND[:, :, prefix:], rotation, half=attention.rotate_half)
        return torch.cat([x_BHND[:, :, :prefix], turned.to(x_BHND.dtype)], dim=2)


class AttentionMaps(TokenMaps):
    """What the pooled output attends to: the row of the class token where the head reads it, else of the mean query.

    Averaged over heads; costs O(N D) where the block's attention costs O(N^2 D).
    """

    def __init__(self, model: nn.Module, layers: Sequence[int] = (-1,), *, query: Query = "auto") -> None:
        super().__init__(model, layers, query=query)
        self._queries: dict[int, Tensor] = {}

    def _on_queries(self, index: int, q_BHND: Tensor) -> None:
        self._queries[index] = (
            q_BHND[:, :, 0] if self._use_cls else q_BHND[:, :, self._prefix :].float().mean(dim=2)
        )

    def _on_keys(self, index: int, k_BHND: Tensor) -> None:
        row_BHN = row_of_heads(self._queries.pop(index), k_BHND, scale=self._scale(index))
        self._seen[index] = self._summed_up(row_BHN)

    def _summed_up(self, row_BHN: Tensor) -> Tensor:
        return self._map(row_BHN.mean(dim=1))


class HeadMaps(AttentionMaps):
    """The same head by head: [B, H, gh, gw], each of which sums to 1."""

    def _summed_up(self, row_BHN: Tensor) -> Tensor:
        maps: Tensor = self._map(row_BHN.flatten(0, 1)).unflatten(0, row_BHN.shape[:2])
        return maps


class ColumnMassMaps(TokenMaps):
    """Mean attention that each token receives from all tokens, averaged over heads."""

    def __init__(self, model: nn.Module, layers: Sequence[int] = (-1,)) -> None:
        super().__init__(model, layers)
        _refuse_two_stages(model, "column mass")
        self._queries: dict[int, Tensor] = {}

    def _on_queries(self, index: int, q_BHND: Tensor) -> None:
        self._queries[index] = q_BHND

    def _on_keys(self, index: int, k_BHND: Tensor) -> None:
        weights_BN = k_BHND.new_ones(len(k_BHND), k_BHND.shape[2], dtype=torch.float32)
        mass_BN = sum_of_rows(weights_BN, self._queries.pop(index), k_BHND, scale=self._scale(index))
        self._seen[index] = self._map(mass_BN)


class RolloutMaps(TokenMaps):
    """Attention rolled out (Abnar & Zuidema 2020) from the layers asked for down to the first.

    The paper multiplies the matrices (A_l + 1) / 2, A_l being averaged over heads. What the pooled output reads is one
    row of that product, which is carried from the top to the bottom here: q and k of all layers wait for it, O(L N D).
    """

    def __init__(self, model: nn.Module, layers: Sequence[int] = (-1,)) -> None:
        _refuse_two_stages(model, "rollout")
        blocks = attention_blocks(model)
        asked = [name for name, _ in pick(blocks, layers, what="attention in layers")]
        self._asked = [[name for name, _ in blocks].index(name) for name in asked]
        super().__init__(model, range(max(self._asked) + 1))
        self._below, self.names = self.names, tuple(asked)
        self._queries: dict[int, Tensor] = {}
        self._keys: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        for waiting in (self._queries, self._keys):
            self._hooks.callback(waiting.clear)
        return super().__enter__()

    def _on_queries(self, index: int, q_BHND: Tensor) -> None:
        self._queries[index] = q_BHND

    def _on_keys(self, index: int, k_BHND: Tensor) -> None:
        self._keys[index] = k_BHND
        for place, top in enumerate(self._asked):
            if top == index:
                self._seen[place] = self._map(self._roll(top, k_BHND))

    def _roll(self, top: int, k_BHND: Tensor) -> Tensor:
        skipped = [name for index, name in enumerate(self._below[:top]) if index not in self._keys]
        if skipped:
            raise RuntimeError(f"no rollout through {', '.join(skipped)}: attention is switched off there")
        row_BN = k_BHND.new_zeros(len(k_BHND), k_BHND.shape[2], dtype=torch.float32)
        row_BN[:, slice(0, 1) if self._use_cls else slice(self._prefix, None)] = 1.0
        row_BN = row_BN / row_BN.sum(dim=1, keepdim=True)
        for index in range(top, -1, -1):
            mixed_BN = sum_of_rows(row_BN, self._queries[index], self._keys[index], scale=self._scale(index))
            row_BN = (row_BN + mixed_BN) / 2
        return row_BN


def attention_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attention of a ViT's blocks by name, from the input to the output; ConfigError where there is none."""
    if not isinstance(model, VisionTransformer | Eva):
        raise ConfigError(
            f"{type(model).__name__} has no attention row to show: a ViT of timm is needed; "
            f"its stages ({', '.join(stage_names(model)) or 'none'}) have energy maps"
        )
    inside = list(model.blocks.named_modules(prefix="blocks"))
    found: list[tuple[str, nn.Module]] = [
        (name, module) for name, module in inside if isinstance(module, _KINDS)
    ]
    if not found:
        kinds = sorted({type(module).__name__ for _, module in inside if "Att" in type(module).__name__})
        raise ConfigError(
            f"no attention of timm's plain kind in the model's blocks; there is {', '.join(kinds) or 'none at all'}"
        )
    return found


def _refuse_two_stages(model: nn.Module, what: str) -> None:
    if any(isinstance(module, TwoStageAttention) for module in model.modules()):
        raise ConfigError(
            f"{what} adds up the rows of all tokens, which two-stage attention does not have; its class token, or mean "
            "query, attends to everything: ask for the row"
        )
