"""Dynamic attention: the number of tokens follows the image. Between attention and MLP of each block of a ViT, tokens
that say the same are merged (models/token_merging.py): all that follows has fewer of them, and easy images cost less.

    block: x + attention(norm(x), sizes) -> merged -> x + mlp(norm(x)) -> the next block -> ... -> spread to all places

A token that stands for s places counts s times in attention: log s is added to its scores ("proportional attention" of
the paper). Behind the last block each place has its token again: what follows (pooling, a head, feature maps) sees as
many as ever. There are no weights of its own. All images' tokens lie in one sequence (models/token_pack.py).

Shapes: B images, N places, T tokens of all images, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from configs.attention import DynamicConfig
from configs.base import ConfigError
from models.attention import Kernel, is_plain
from models.token_merging import Tokens, merge_alike
from models.token_pack import TokenPack, attend_packed


def use_dynamic(model: nn.Module, config: DynamicConfig, *, kernel: Kernel = "auto") -> nn.Module:
    """Lets the blocks of a timm ViT merge tokens, in place; parameters and their names stay as they are."""
    blocks = _blocks_of(model)
    for block in blocks:
        block.__class__ = DynamicBlock
        block.num_prefix_tokens = int(model.num_prefix_tokens)  # type: ignore[arg-type]
        block.is_last = block is blocks[-1]
        block.counts = ()
        block.attn.__class__ = DynamicAttention
        block.attn.kernel = kernel
    set_threshold(model, config.threshold)
    return model


def set_threshold(model: nn.Module, threshold: float) -> None:
    """Another likeness above which tokens are merged; above 1 none are, and the network is the plain one."""
    for block in dynamic_blocks(model):
        block.threshold = threshold


def dynamic_blocks(model: nn.Module) -> list[DynamicBlock]:
    """The blocks that merge tokens, from the input on; none where `use_dynamic` was not called."""
    return [module for module in model.modules() if isinstance(module, DynamicBlock)]


def check_static(model: nn.Module, *, what: str) -> None:
    """Raises ConfigError for a network whose tokens follow the image, where shapes must be known before."""
    if dynamic_blocks(model):
        raise ConfigError(
            f"{what} has fixed shapes, and with model.attention.dynamic the number of tokens follows the image; take "
            "'dynamic' out of 'mirada.attention' in the release's config.json, and the network that merges nothing is "
            "exported, from the same weights"
        )


class DynamicAttention(Attention):
    """timm's attention over packed tokens, each of which counts for as many places as it stands for."""

    kernel: Kernel

    def forward(self, tokens: Tokens, pack: TokenPack) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """What the tokens attend to [T, D], and their keys [T, E], mean over heads."""
        qkv = self.qkv(tokens.x_TD).unflatten(1, (3, self.num_heads, self.head_dim))
        q_THE, k_THE, v_THE = qkv.unbind(1)
        q_THE, k_THE = self.q_norm(q_THE), self.k_norm(k_THE)
        bias_T = tokens.sizes_T.log().to(q_THE.dtype) if tokens.are_merged else None
        mixed = attend_packed(q_THE, k_THE, v_THE, pack, bias_T, kernel=self.kernel, scale=self.scale)
        mixed_TD = self.norm(mixed.flatten(1))
        if self.gate is not None:
            mixed_TD = mixed_TD * self.gate(tokens.x_TD).sigmoid()
        return self.proj_drop(self.proj(mixed_TD)), k_THE.detach().mean(dim=1)


class DynamicBlock(Block):
    """timm's ViT block: [B, N, D] to the first, packed tokens from block to block, [B, N, D] from the last."""

    threshold: float
    num_prefix_tokens: int
    is_last: bool
    counts: tuple[int, ...]
    """Tokens of each image behind the attention of the latest forward, prefix tokens among them."""

    # NOTE: numbers of tokens are new in every batch, and a graph would be made for each: the compiler leaves blocks as
    # they are, and has what comes before and behind them.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self, x: Tensor | Tokens, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor | Tokens:
        """Tokens of whole images, or of the block before."""
        if attn_mask is not None or is_causal:
            raise ValueError("dynamic attention takes no mask: tokens that are merged have no place in it")
        tokens = self.attended(x if isinstance(x, Tokens) else Tokens.of(x))
        self.counts = tokens.counts
        mixed_TD = self.mlp(self.norm2(tokens.x_TD))
        tokens = _add(tokens, self.ls2(mixed_TD), self.drop_path2)
        return tokens.spread() if self.is_last else tokens

    def attended(self, tokens: Tokens, share: Tensor | None = None) -> Tokens:
        """Tokens with what they attend to added, times `share` where it is given, and then merged."""
        pack = TokenPack(tokens.counts, tokens.x_TD.device)
        mixed_TD, keys_TE = self.attn(tokens._replace(x_TD=self.norm1(tokens.x_TD)), pack)
        mixed_TD = self.ls1(mixed_TD)
        tokens = _add(tokens, mixed_TD if share is None else share * mixed_TD, self.drop_path1)
        return merge_alike(tokens, keys_TE, pack, threshold=self.threshold, num_prefix=self.num_prefix_tokens)


def _add(tokens: Tokens, branch_TD: Tensor, drop_path: nn.Module) -> Tokens:
    """Tokens plus a branch, which stochastic depth leaves out of whole images."""
    if drop_path.training and not isinstance(drop_path, nn.Identity):
        factors = drop_path(branch_TD.new_ones(len(tokens.counts), 1))
        pack = TokenPack(tokens.counts, branch_TD.device)
        branch_TD = branch_TD * factors[pack.image_of_token()]
    return tokens._replace(x_TD=tokens.x_TD + branch_TD)


def _blocks_of(model: nn.Module) -> list[Any]:
    what = "model.attention.dynamic"
    if not isinstance(model, VisionTransformer):
        raise ConfigError(
            f"{what}: {type(model).__name__} has no attention over all tokens of which some could be merged; use a ViT "
            "of timm (vit_*, deit_*), or leave dynamic out"
        )
    blocks: list[Any] = list(model.blocks)
    plain = [block for block in blocks if type(block) is Block and is_plain(block.attn)]
    if len(plain) < len(blocks):
        raise ConfigError(
            f"{what}: {len(plain)} of {len(blocks)} blocks are timm's plain ones, whose tokens can be merged; take "
            "another block or attention out (model.args block_fn, attn_layer; model.attention.two_stage), or leave "
            "dynamic out"
        )
    if any(block.attn.attn_drop.p > 0 for block in blocks):
        raise ConfigError(f"{what} does not go with dropped scores: leave model.args.attn_drop_rate out")
    return blocks
