"""small_resnet: a ResNet for images of 28 to 64 pixels, whose stem keeps their size.

He et al. 2016, section 4.2, begin so on CIFAR: one 3 x 3 convolution and no pooling. timm's ResNets quarter an image
before their first stage, which leaves little of a small one. With ``stem_stride: 2`` the stem halves it: a third of the
time, for networks of the same stages.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

default_cfgs = {
    "small_resnet": {
        "input_size": (3, 32, 32),
        "num_classes": 10,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
    }
}

_TIMM_STEM = 4
"""What timm's stem divides the sides by."""


class SmallResNet(ResNet):
    """timm's ResNet behind one 3 x 3 convolution; its stages, with gates or without, are where timm's are."""

    def __init__(
        self, *, channels: tuple[int, ...], in_chans: int = 3, stem_stride: int = 1, **kwargs: Any
    ) -> None:
        # Of timm's stems it is the deep one whose width can be chosen.
        kwargs |= {"block": BasicBlock, "stem_type": "deep", "stem_width": channels[0] // 2}
        super().__init__(channels=channels, in_chans=in_chans, **kwargs)
        first = nn.Conv2d(in_chans, channels[0], 3, stride=stem_stride, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        stem: Any = self
        stem.conv1, stem.maxpool = first, nn.Identity()
        features: Any = self.feature_info
        features[0]["reduction"] = stem_stride
        for stage in features[1:]:
            stage["reduction"] = stage["reduction"] * stem_stride // _TIMM_STEM


@register_model
def small_resnet(
    pretrained: bool = False,
    *,
    layers: tuple[int, ...] = (1, 1, 1, 1),
    channels: tuple[int, ...] = (16, 32, 64, 128),
    stem_stride: int = 1,
    **kwargs: Any,
) -> SmallResNet:
    """So many residual blocks of so many channels (even numbers) in each of four stages; all but the first halve the
    sides, and so does the stem where its stride is 2. Remaining arguments are ResNet's (``drop_path_rate`` ...).
    """
    model: SmallResNet = build_model_with_cfg(
        SmallResNet,
        "small_resnet",
        pretrained,
        layers=layers,
        channels=channels,
        stem_stride=stem_stride,
        **kwargs,
    )
    return model
