"""Gates: an attention layer at the end of every residual branch of the ResNet stages asked for.

timm's ResNets have this place and call it `se`: weights of timm's networks with the same layer fit, name by name, and
so do those of networks without one. A gate in the stem stands behind its activation, where AlexNet normalizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from timm.layers.cbam import ChannelAttn, LightSpatialAttn, SpatialAttn
from timm.layers.create_attn import get_attn
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from configs.attention import GateConfig, GatesConfig, Stages
from configs.base import ConfigError
from models.local_response import LocalResponse
from models.stage_attention import MapAttention, WindowAttention

_TIMM_NAMES = ("se", "ese", "eca", "ceca", "gc", "cbam", "lcbam", "coord", "scoord", "ela", "strip", "nl")

GATES: frozenset[type[nn.Module]] = frozenset(
    [*map(get_attn, _TIMM_NAMES), SqueezeExcite, LocalResponse, MapAttention, WindowAttention]
)
"""The layers that stand in a gate's place, in ResNets and in EfficientNets."""

_PARTS_OF_GATES = (ChannelAttn, SpatialAttn, LightSpatialAttn)
_CHANNELS_PER_HEAD = 32
_ROUNDING = 8
"""Of hidden widths, timm's for squeeze-and-excitation; with its own of other gates equal reductions would differ."""
_WINDOW = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How one of the gates is made."""

    make: Callable[[GateConfig, int, int], nn.Module]
    """Config, channels, and how many gates there are before it -> the layer."""
    options: frozenset[str] = field(default=frozenset())
    """The settings it takes."""


def use_gates(model: nn.Module, groups: Sequence[GatesConfig]) -> nn.Module:
    """Puts the gates in, in place; raises ConfigError for what the network, or a gate, has no place for."""
    mistakes = []
    for number, group in enumerate(groups):
        where = "model.attention.gates" + (f".{number}" if len(groups) > 1 else "")
        mistakes += gate_mistakes(model, group, group.stages, where=where)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    for group in groups:
        count = 0
        for stage in stages_of(model, group.stages):
            gates = [
                new_gate(group, place, count + index) for index, place in enumerate(places(model, stage))
            ]
            put_gates(model, stage, gates)
            count += len(gates)
    return model


def gate_mistakes(model: nn.Module, gate: GateConfig, stages: Stages, *, where: str) -> list[str]:
    """Why a gate cannot stand in these stages; `where` is the section that asks for it."""
    mistakes = _unused_options(gate, where)
    if not isinstance(model, ResNet):
        return [
            *mistakes,
            f"{where}: {type(model).__name__} has no ResNet stages to put {gate.name!r} in; use a ResNet of timm "
            "(resnet18, resnet50d, resnext50_32x4d ...), or leave it out",
        ]
    wanted = range(1, 1 + len(_stages(model))) if stages == "all" else stages
    return mistakes + _missing_places(model, wanted, gate, where)


def stages_of(model: nn.Module, stages: Stages) -> list[int]:
    """The numbers of the stages meant, in the order of the network."""
    return list(range(1, 1 + len(_stages(model)))) if stages == "all" else sorted(set(stages))


def places(model: nn.Module, stage: int) -> list[int]:
    """The channels at each place for a gate in a stage: of its blocks, or of the stem."""
    if stage == 0:
        features: Any = model.feature_info
        return [int(features[0]["num_chs"])]
    return [_out_channels(block) for block in _stages(model)[stage - 1]]


def new_gate(config: GateConfig, channels: int, count: int) -> nn.Module:
    """A fresh gate for `channels`; `count` of its kind stand before it."""
    gate = _KINDS[config.name].make(config, channels, count)
    for module in gate.modules():
        if isinstance(module, nn.Conv2d):  # as timm's ResNets initialize the convolutions of all their gates
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return gate


def put_gates(model: nn.Module, stage: int, gates: Sequence[nn.Module]) -> None:
    """Gives each place of a stage its gate."""
    network: Any = model
    if stage == 0:
        network.act1 = nn.Sequential(network.act1, *gates)
        return
    for block, gate in zip(_stages(model)[stage - 1], gates, strict=True):
        block.se = gate


def gate_values(model: nn.Module) -> list[nn.Module]:
    """The activations whose outputs multiply features: what SE, CBAM, ECA and their like call `gate`."""
    kinds = (*GATES, *_PARTS_OF_GATES)
    found = [getattr(module, "gate", None) for module in model.modules() if isinstance(module, kinds)]
    return [gate for gate in found if isinstance(gate, nn.Module)]


def _stages(model: Any) -> list[Any]:
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def _out_channels(block: Any) -> int:
    last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
    return int(last.out_channels)


def _missing_places(model: ResNet, stages: Sequence[int], config: GateConfig, where: str) -> list[str]:
    layers = _stages(model)
    unknown = sorted({stage for stage in stages if stage > len(layers)})
    mistakes = []
    if unknown:
        mistakes.append(
            f"{where}.stages: {_listed(unknown)}, but the network has stages 1 to {len(layers)} "
            "(and 0, the stem)"
        )
    wanted = [layers[stage - 1] for stage in stages if 1 <= stage <= len(layers)]
    blocks = [block for layer in wanted for block in layer]
    strange = sorted({type(b).__name__ for b in blocks if not isinstance(b, BasicBlock | Bottleneck)})
    if strange:
        mistakes.append(
            f"{where}: blocks of the kind {_listed(strange)} have no place for a gate; use a plain ResNet"
        )
    taken = sorted({type(block.se).__name__ for block in blocks if getattr(block, "se", None) is not None})
    if taken:
        mistakes.append(
            f"{where}: the network has {_listed(taken)} already where {config.name!r} would stand; use "
            "the plain ResNet of the same size, or leave gates out"
        )
    return mistakes + _bad_heads(blocks, config, where)


def _bad_heads(blocks: Sequence[Any], config: GateConfig, where: str) -> list[str]:
    if "heads" not in _KINDS[config.name].options:
        return []
    widths = sorted({_out_channels(b) for b in blocks if isinstance(b, BasicBlock | Bottleneck)})
    odd = [width for width in widths if width % _num_heads(config, width)]
    if not odd:
        return []
    return [
        f"{where}.heads: {_num_heads(config, odd[0])} do not divide the {odd[0]} channels of a stage; "
        "set heads to a divisor"
    ]


def _unused_options(config: GateConfig, where: str) -> list[str]:
    kind = _KINDS[config.name]
    settings = ("reduction", "kernel_size", "heads", "window")
    given = [name for name in settings if getattr(config, name) is not None]
    mistakes = [
        f"{where}.{name}: {config.name!r} has no such setting "
        f"({f'it takes {_listed(sorted(kind.options))}' if kind.options else 'it takes none'}); leave it out"
        for name in given
        if name not in kind.options
    ]
    if config.kernel_size is not None and "kernel_size" in kind.options and config.kernel_size % 2 == 0:
        mistakes.append(f"{where}.kernel_size: {config.kernel_size} has no middle; use an odd number")
    return mistakes


def _num_heads(config: GateConfig, channels: int) -> int:
    return config.heads or max(1, channels // _CHANNELS_PER_HEAD)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _of_timm(config: GateConfig, channels: int, count: int, **given: Any) -> nn.Module:
    """A layer of timm's by its name."""
    if config.reduction is not None:
        given["rd_ratio"] = 1.0 / config.reduction
    if config.kernel_size is not None:
        given["spatial_kernel_size"] = config.kernel_size
    gate: nn.Module = get_attn(config.name)(channels, **given)
    return gate


def _eca(config: GateConfig, channels: int, count: int) -> nn.Module:
    """timm computes the width from the channels, as in the paper, unless it is given no channels."""
    if config.kernel_size is None:
        return _of_timm(config, channels, count)
    gate: nn.Module = get_attn(config.name)(None, kernel_size=config.kernel_size)
    return gate


def _local_response(config: GateConfig, channels: int, count: int) -> nn.Module:
    return LocalResponse() if config.kernel_size is None else LocalResponse(size=config.kernel_size)


def _map_attention(config: GateConfig, channels: int, count: int) -> nn.Module:
    return MapAttention(channels, heads=_num_heads(config, channels))


def _windows(config: GateConfig, channels: int, count: int, *, alternate: bool) -> nn.Module:
    heads, shifted = _num_heads(config, channels), alternate and count % 2 == 1
    return WindowAttention(channels, heads=heads, window=config.window or _WINDOW, shifted=shifted)


_reduced = partial(_of_timm, rd_divisor=_ROUNDING)

_REDUCED = frozenset({"reduction"})
_SIZED = frozenset({"kernel_size"})
_HEADED = frozenset({"heads"})

_KINDS = {
    **{name: _Kind(make=_of_timm) for name in ("ese", "ela", "strip")},
    **{
        name: _Kind(make=_reduced, options=_REDUCED)
        for name in ("se", "ecam", "gc", "gca", "coord", "scoord", "nl")
    },
    **{name: _Kind(make=_reduced, options=_REDUCED | _SIZED) for name in ("cbam", "lcbam")},
    **{name: _Kind(make=_eca, options=_SIZED) for name in ("eca", "ceca")},
    "lrn": _Kind(make=_local_response, options=_SIZED),
    "mhsa": _Kind(make=_map_attention, options=_HEADED),
    "window": _Kind(make=partial(_windows, alternate=False), options=_HEADED | {"window"}),
    "shifted_window": _Kind(make=partial(_windows, alternate=True), options=_HEADED | {"window"}),
}
