"""Surgery: the weights of a checkpoint into a network of other classes, images, channels, patches or pooling.

checkpoint -> timm's conversion for the architecture (positions, bias tables and patches resampled)
           -> head that does not fit left out -> input channels folded -> network, and a KeyReport
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm
from timm.models import adapt_input_conv, get_arch_name, get_model_traits
from torch import Tensor, nn

from configs.base import ConfigError
from configs.training import ModelConfig
from models.build import BUILD_ERRORS, build_model, first_line
from models.key_report import KeyReport
from models.weight_source import WeightSource

Weights = dict[str, Tensor]
_Filter = Callable[[Weights, nn.Module], Mapping[str, Tensor]]

# What timm's modules call their conversion of a checkpoint to the weights of a network that was built.
_FILTERS = (
    *("checkpoint_filter_fn", "checkpoint_filter_fn_classifier"),
    *("_filter_fn", "_filter_torchvision_pretrained"),
)
_SHOWN = 3
_NOT_INHERITED = ("img_size", "num_classes", "in_chans")
"""Arguments of the checkpoint's network that the data decide here."""


def build_from_source(
    config: ModelConfig,
    source: WeightSource,
    *,
    num_classes: int,
    class_names: Sequence[str] = (),
    in_chans: int,
    image_size: int,
    other_sizes: Sequence[int] = (),
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[nn.Module, KeyReport]:
    """The network of `config` starting from a checkpoint's weights; what `config.args` leave out is as it was there.

    Without mean and std the checkpoint's own are written into its ``pretrained_cfg``. A head of other classes begins
    afresh: of another number, or of other names where both are known.
    """
    _check_same_network(config, source)
    model = build_model(
        inherit_args(config, source),
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        other_sizes=other_sizes,
        mean=mean or _numbers(source, "mean", in_chans),
        std=std or _numbers(source, "std", in_chans),
    )
    return model, load_weights(model, source, class_names=class_names)


def inherit_args(config: ModelConfig, source: WeightSource) -> ModelConfig:
    """The network's description with the arguments of the checkpoint's where it gives none of its own."""
    inherited = {name: value for name, value in source.args.items() if name not in _NOT_INHERITED}
    return config.model_copy(update={"args": {**inherited, **config.args}})


def load_weights(model: nn.Module, source: WeightSource, *, class_names: Sequence[str] = ()) -> KeyReport:
    """Puts a checkpoint's weights into a network, and says what became of each; ConfigError where they do not fit."""
    given = source.read()
    fitted = _converted(model, given, source)
    reset = _without_unfit_head(model, fitted, source, class_names)
    _fold_channels(model, fitted)
    _check_shapes(model, fitted, source)
    report = _report(model, given, fitted, reset, source)
    if not report.num_taken:
        raise ConfigError(
            f"nothing was loaded: none of the {len(given)} weights of checkpoint {source.reference!r} has the name of "
            f"a weight of {_name(model)!r}; it has {_few(given)}, the network has {_few(model.state_dict())}: set "
            "model.name to what the checkpoint holds, or save its state dict with timm's names"
        )
    model.load_state_dict(fitted, strict=False)
    return report


def _check_same_network(config: ModelConfig, source: WeightSource) -> None:
    architecture, attention = source.architecture, source.attention
    if architecture is not None and get_arch_name(architecture) != get_arch_name(config.name):
        raise ConfigError(
            f"model.name is {config.name!r}, but checkpoint {source.reference!r} holds a {architecture!r}: "
            f"set model.name to what the checkpoint holds"
        )
    if attention.search is not None:
        raise ConfigError(
            f"checkpoint {source.reference!r} is a supernet, whose weights many networks share: pretrain the recipe "
            "that `mirada search` found with it, and start from that"
        )
    if attention.gates and attention.gates != config.attention.gates:
        trained = attention.model_dump(mode="json", include={"gates"}, exclude_defaults=True)["gates"]
        raise ConfigError(
            f"checkpoint {source.reference!r} has gates: set model.attention.gates to what it was trained with, "
            f"{trained}"
        )


def _numbers(source: WeightSource, name: str, in_chans: int) -> tuple[float, ...] | None:
    known = tuple(map(float, source.facts.get(name) or ()))
    return known if len(known) == in_chans else None


def _converted(model: nn.Module, given: Weights, source: WeightSource) -> Weights:
    convert = _architecture_filter(model)
    if convert is None:
        return dict(given)
    try:
        with _seen_from(model, source):
            return dict(convert(dict(given), model))
    except BUILD_ERRORS as error:
        raise ConfigError(
            f"checkpoint {source.reference!r} does not fit {_name(model)!r} ({first_line(error)}): set model.name and "
            "model.args to what it was trained with"
        ) from error


def _architecture_filter(model: nn.Module) -> _Filter | None:
    """timm's conversion, as its factory would call it; None for an architecture that needs none."""
    name = get_arch_name(_name(model))
    module = sys.modules[timm.model_entrypoint(name).__module__]
    found: Any = next((getattr(module, f) for f in _FILTERS if hasattr(module, f)), None)
    if found is None:
        return None
    if len(inspect.signature(found).parameters) == 1:
        return lambda weights, _: found(weights)
    # The two architectures for which timm's factory gives its conversion other arguments.
    if module.__name__.endswith(".deit"):
        return partial(found, adapt_layer_scale=True)
    return partial(found, interpolation="bilinear", antialias=False) if "flexi" in name else found


@contextmanager
def _seen_from(model: Any, source: WeightSource) -> Iterator[None]:
    """timm reads the grid of the checkpoint's positions from what it keeps at the network that they go to."""
    here = model.pretrained_cfg
    there = {key: value for key, value in here.items() if key != "input_size"}
    if "input_size" in source.facts:
        there["input_size"] = tuple(source.facts["input_size"])
    model.pretrained_cfg, model.pretrained_model_args = there, dict(source.args)
    try:
        yield
    finally:
        model.pretrained_cfg, model.pretrained_model_args = here, {}


def _without_unfit_head(
    model: Any, weights: Weights, source: WeightSource, class_names: Sequence[str]
) -> dict[str, str]:
    """Takes a head that does not fit out of `weights`; the weights that begin afresh, and why."""
    listed = model.pretrained_cfg.get("classifier") or ()
    own = model.state_dict()
    reset: dict[str, str] = {}
    for layer in (listed,) if isinstance(listed, str) else listed:
        names = [name for name in (f"{layer}.weight", f"{layer}.bias") if name in own]
        if not names:
            continue
        reason = _unfit(weights.get(names[0]), own[names[0]], source, class_names)
        if reason is not None:
            reset |= dict.fromkeys(names, reason)
            for name in names:
                weights.pop(name, None)
    return reset


def _unfit(
    there: Tensor | None, here: Tensor, source: WeightSource, class_names: Sequence[str]
) -> str | None:
    """Why a head is of no use here."""
    if there is None:
        return "the checkpoint has none"
    if len(there) != len(here):
        return f"{len(there)} classes in the checkpoint, {len(here)} here"
    if there.shape != here.shape:
        return f"it reads {there.shape[1]} features in the checkpoint, {here.shape[1]} here"
    pairs = enumerate(zip(source.label_names, class_names, strict=False))
    other = next(((index, a, b) for index, (a, b) in pairs if a != b), None)
    if other is None:
        return None
    return f"other classes: number {other[0]} is {other[1]!r} in the checkpoint, {other[2]!r} here"


def _fold_channels(model: Any, weights: Weights) -> None:
    """Sums or repeats the channels that the first convolutions read, by timm's rule."""
    listed = get_model_traits(model).get("first_conv") or ()
    in_chans = int(model.pretrained_cfg["input_size"][0])
    for layer in (listed,) if isinstance(listed, str) else listed:
        name, conv = f"{layer}.weight", model.get_submodule(layer)
        weight = weights.get(name)
        if weight is None or weight.shape == conv.weight.shape or weight.ndim != 4:
            continue
        # A stem that folds pixels into channels reads several for each of the image.
        channels_there = weight.shape[1] * in_chans * conv.groups // conv.in_channels
        weights[name] = adapt_input_conv(in_chans, weight, base_chans=channels_there)


def _check_shapes(model: nn.Module, weights: Weights, source: WeightSource) -> None:
    own = model.state_dict()
    unfit = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if unfit:
        shown = [
            f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
            for name in unfit[:_SHOWN]
        ]
        more = f" (and {len(unfit) - _SHOWN} more)" if len(unfit) > _SHOWN else ""
        raise ConfigError(
            f"checkpoint {source.reference!r} does not fit {_name(model)!r}: {', '.join(shown)}{more}; set model.name "
            "and model.args to what it was trained with"
        )


def _report(
    model: nn.Module, given: Weights, fitted: Weights, reset: Mapping[str, str], source: WeightSource
) -> KeyReport:
    own = [name for name in model.state_dict() if name in fitted]
    resized = [name for name in own if name in given and given[name].shape != fitted[name].shape]
    converted = [name for name in own if name not in given]
    lacking = model.state_dict().keys() - fitted.keys() - reset.keys()
    return KeyReport(
        reference=source.reference,
        loaded=tuple(name for name in own if name in given and name not in resized),
        converted=tuple(converted),
        resized={name: f"{tuple(given[name].shape)} -> {tuple(fitted[name].shape)}" for name in resized},
        reset=reset,
        # Batch norm counts its batches for nothing that is computed here, and old files have no count.
        missing=tuple(sorted(name for name in lacking if not name.endswith("num_batches_tracked"))),
        unexpected=_unexpected(given, fitted, own, reset),
    )


def _unexpected(
    given: Weights, fitted: Weights, own: Sequence[str], reset: Mapping[str, str]
) -> tuple[str, ...]:
    """What of the checkpoint is not used, by its own name where a weight still has it."""
    names = {id(tensor): name for name, tensor in given.items()}
    used = {id(fitted[name]) for name in own}
    if any(name not in given and id(fitted[name]) not in names for name in own):
        # Some were made of several others, and timm does not say of which: what it passed on and nobody took is left.
        return tuple(name for name in fitted if name not in own)
    taken = {*own, *reset, *(names[key] for key in used if key in names)}
    return tuple(name for name in given if name not in taken)


def _name(model: Any) -> str:
    return str(model.pretrained_cfg["architecture"])


def _few(weights: Mapping[str, Any]) -> str:
    names = list(weights)
    return ", ".join(map(repr, names[:_SHOWN])) + (" ..." if len(names) > _SHOWN else "")
