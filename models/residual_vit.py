"""residual_vit: a Vision Transformer that reads the feature map of a small residual CNN, for images of few pixels.

Dosovitskiy et al. 2021, section 3.1 ("hybrid architecture"), with convolutions that begin at full resolution and few
channels (Xiao et al. 2021, "Early convolutions help Transformers see better"); timm's hybrids have ImageNet's stems.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from timm.models import VisionTransformer, build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

default_cfgs = {
    "residual_vit": {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "num_classes": 1000,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.backbone.0",
        "classifier": "head",
    }
}


@register_model
def residual_vit(
    pretrained: bool = False,
    *,
    stem_channels: tuple[int, ...] = (32, 64, 128),
    in_chans: int = 3,
    **kwargs: Any,
) -> VisionTransformer:
    """timm's VisionTransformer of width ``stem_channels[-1]`` on the map of `residual_stem`, one token per place.

    Remaining arguments are VisionTransformer's (``depth``, ``num_heads``, ``init_values`` ...).
    """
    embed = partial(HybridEmbed, backbone=residual_stem(in_chans, stem_channels), proj=False)
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "residual_vit",
        pretrained,
        in_chans=in_chans,
        embed_dim=stem_channels[-1],
        patch_size=1,
        embed_layer=embed,
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )
    return model


def residual_stem(in_chans: int, channels: tuple[int, ...]) -> nn.Sequential:
    """[B, in_chans, H, W] -> [B, channels[-1], ceil(H / 2^(n-1)), ...]: a 3x3 convolution, n - 1 residual blocks.

    Each block halves both sides, the first convolution keeps them.
    """
    first = channels[0]
    return nn.Sequential(
        nn.Conv2d(in_chans, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        *(_halving_block(before, after) for before, after in pairwise(channels)),
    )


def _halving_block(before: int, after: int) -> nn.Module:
    shortcut = nn.Sequential(
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(before, after, 1, bias=False),
        nn.BatchNorm2d(after),
    )
    block = BasicBlock(before, after, stride=2, downsample=shortcut)
    block.zero_init_last()
    return block
