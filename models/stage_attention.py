"""Self-attention among the places of a CNN's map, over the whole map or within windows: a layer of a residual branch.

Both are the attention half of a Transformer block, maps + attention(norm(maps)), with timm's own attention inside. The
last projection begins at zero, so that such a layer begins as the identity and a trained CNN may be given one.

Shapes: B batch, C channels, H x W map.
"""

from __future__ import annotations

from timm.layers.attention import Attention
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn


class MapAttention(nn.Module):
    """Every place attends to every place, as the tokens of a ViT do (Dosovitskiy et al. 2021)."""

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn = Attention(channels, num_heads=heads, qkv_bias=True)
        _begin_at_zero(self.attn.proj)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        tokens_BNC = maps_BCHW.flatten(2).transpose(1, 2)
        mixed_BNC = self.attn(self.norm(tokens_BNC))
        mixed: Tensor = maps_BCHW + mixed_BNC.transpose(1, 2).reshape(maps_BCHW.shape)
        return mixed


class WindowAttention(SwinTransformerBlock):
    """Places attend within windows, in every other layer shifted by half a window (Liu et al. 2021).

    Swin's block without its MLP: the convolutions of the CNN are there for that. A map that windows do not divide is
    padded, as Swin does it.
    """

    def __init__(self, channels: int, *, heads: int, window: int, shifted: bool) -> None:
        super().__init__(
            channels,
            input_resolution=(
                window,
                window,
            ),  # unused: windows are always cut, and masks made for the map that comes
            num_heads=heads,
            window_size=window,
            shift_size=window // 2 if shifted else 0,
            always_partition=True,
            dynamic_mask=True,
        )
        del self.norm2, self.mlp, self.drop_path1, self.drop_path2
        _begin_at_zero(self.attn.proj)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        normed_BHWC = self.norm1(maps_BCHW.permute(0, 2, 3, 1))
        mixed_BHWC: Tensor = self._attn(normed_BHWC)  # type: ignore[no-untyped-call]
        return maps_BCHW + mixed_BHWC.permute(0, 3, 1, 2)


def _begin_at_zero(projection: nn.Linear) -> None:
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
