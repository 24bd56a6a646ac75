"""From a model's description, or from a released folder, to a network: the only door to timm's factory."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_arch_name, get_pretrained_cfg
from torch import nn

import models.residual_vit  # registers our own architectures beside timm's
import models.small_resnet  # noqa: F401
from configs.attention import AttentionConfig
from configs.base import ConfigError
from configs.load import validate
from configs.training import ModelConfig
from models.attention import any_kernel
from models.systems import apply_attention

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
SIGNATURE = "mirada"
"""Key of a release's config that timm leaves alone."""

BUILD_ERRORS = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
"""What timm, fed with arguments that do not fit an architecture, has been seen to raise."""

# Arguments that other parts of a recipe set: giving them twice would let one be dropped in silence.
_RESERVED_ARGS = {
    "num_classes": "set model.num_classes, or leave it to the data's class map",
    "in_chans": "set data.channels",
    "pretrained": "name released weights as 'checkpoint' of a finetune recipe",
    "pretrained_cfg": "name released weights as 'checkpoint' of a finetune recipe",
    "checkpoint_path": "name released weights as 'checkpoint' of a finetune recipe",
}

# What a pretrained_cfg says of weights and classes that a new training leaves behind.
_FOREIGN_FACTS = (
    *("url", "hf_hub_id", "hf_hub_filename", "file", "tag", "custom_load", "license", "origin_url", "notes"),
    *("test_input_size", "label_names", "label_descriptions"),
)


class InputSpec(NamedTuple):
    """What a network expects of an image: mean and std are per channel, of pixels scaled to 0..1."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    in_chans: int,
    image_size: int,
    other_sizes: Sequence[int] = (),
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> nn.Module:
    """A freshly initialised network; mean and std are only written into its ``pretrained_cfg``.

    With `other_sizes` it takes images of those sizes too.
    """
    _check_name(config.name)
    args = _timm_args(config, num_classes=num_classes, in_chans=in_chans, image_size=image_size)
    try:
        model = _create(config.name, any_size=bool(other_sizes), **args)
        apply_attention(model, config.attention)
        _check_forward(model, num_classes=num_classes, in_chans=in_chans, image_size=image_size)
    except BUILD_ERRORS as error:
        raise ConfigError(
            f"model: {config.name!r} cannot be built with args {dict(config.args)!r} for {in_chans} x {image_size} x "
            f"{image_size} images and {num_classes} classes: {first_line(error)}"
        ) from error
    _check_other_sizes(model, config.name, num_classes=num_classes, in_chans=in_chans, sizes=other_sizes)
    _describe_input(
        model, num_classes=num_classes, in_chans=in_chans, image_size=image_size, mean=mean, std=std
    )
    return model


def load_release(reference: str) -> nn.Module:
    """A trained network: a release folder, a run folder with a release, or a reference of timm's own."""
    resolved = resolve_release(reference)
    return _create_from(resolved, reference, _release_attention(resolved))


def resolve_release(reference: str) -> str:
    """The timm reference behind a path or name; raises ConfigError saying what is missing where it names a folder."""
    if reference.startswith("hf-hub:"):
        return reference
    folder = Path(reference.removeprefix("local-dir:")).expanduser()
    if not folder.is_dir():
        return _timm_reference(reference)
    release = folder if (folder / CONFIG_FILE).is_file() else folder / "release"
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (release / name).is_file()]
    if missing:
        raise ConfigError(
            f"{str(folder)!r} is no release and no run folder with one: there is no {' and no '.join(missing)} in it "
            f"or in its 'release' folder; a run writes its release when it has finished"
        )
    return f"local-dir:{release.resolve()}"


def input_spec(model: nn.Module) -> InputSpec:
    """What the network was trained on, read from its ``pretrained_cfg``."""
    cfg = pretrained_cfg(model)
    channels, height, width = cfg["input_size"]
    if height != width:
        raise ConfigError(
            f"the model takes images of {height} x {width} pixels; only square ones are supported"
        )
    mean, std = tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"the model's config gives mean {mean} and std {std} for {channels} channel(s): correct its config.json"
        )
    return InputSpec(int(channels), int(height), mean, std)


def label_names(model: nn.Module) -> tuple[str, ...]:
    """The classes by name in the order of the logits; empty where the release does not carry them."""
    return tuple(map(str, pretrained_cfg(model).get("label_names") or ()))


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """What timm keeps about a network: its input, its preprocessing, its classes."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    if cfg is None:
        raise ConfigError(f"{type(model).__name__} has no pretrained_cfg: it does not come from timm")
    return dict(cfg if isinstance(cfg, Mapping) else cfg.to_dict())


def own_module(architecture: str) -> str | None:
    """The module of ours that adds an architecture to timm's registry; None for timm's own."""
    module: str = timm.model_entrypoint(architecture).__module__
    return None if module.startswith("timm.") else module


def unavailable(reference: str, error: Exception) -> ConfigError:
    """What is said of a checkpoint that lies elsewhere and does not arrive."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return ConfigError(
        f"checkpoint {reference!r} cannot be fetched ({type(error).__name__}: {first}); where there is no network, "
        "fetch it elsewhere into a folder with its config.json, and give the folder"
    )


def first_line(error: BaseException) -> str:
    """What an error of timm or torch says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}" if lines else type(error).__name__


def _check_name(name: str) -> None:
    if ":" in name or not timm.is_model(name):
        close = difflib.get_close_matches(get_arch_name(name), timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see timm.list_models()"
        raise ConfigError(f"model.name: {name!r} is no architecture of timm {timm.__version__}; {hint}")


def _timm_args(config: ModelConfig, *, num_classes: int, in_chans: int, image_size: int) -> dict[str, Any]:
    mistakes = [f"model.args.{key}: {advice}" for key, advice in _RESERVED_ARGS.items() if key in config.args]
    args = {key: _with_tuples(value) for key, value in config.args.items()}
    if args.get("img_size", image_size) not in (image_size, (image_size, image_size)):
        mistakes.append(
            f"model.args.img_size is {args['img_size']!r}, but data.image_size is {image_size}: leave the former out"
        )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    args.pop("img_size", None)
    if _takes_image_size(config.name):
        args["img_size"] = image_size
    return {**args, "num_classes": num_classes, "in_chans": in_chans}


def _takes_image_size(name: str) -> bool:
    """timm's own rule: architectures with a fixed input size take it as ``img_size``."""
    cfg = get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.fixed_input_size)


def _with_tuples(value: Any) -> Any:
    """YAML knows lists; timm compares, hashes and unpacks tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


@torch.no_grad()
def _check_forward(model: nn.Module, *, num_classes: int, in_chans: int, image_size: int) -> None:
    """One image through the model: args that build but do not fit the image fail here, not in the first step."""
    was_training = model.training
    with any_kernel():
        shape = tuple(model.eval()(torch.zeros(1, in_chans, image_size, image_size)).shape)
    model.train(was_training)
    if shape != (1, num_classes):
        raise ValueError(f"its output has the shape {shape} instead of {(1, num_classes)}")


def _create(name: str, *, any_size: bool, **args: Any) -> nn.Module:
    """timm's model; with `any_size` one that is not bound to the size it is built for, where timm has such a one."""
    if any_size:
        try:
            flexible: nn.Module = timm.create_model(name, **{"dynamic_img_size": True, **args})
        except TypeError as error:
            # Without this argument are CNNs, which fit as they are, and those that cannot be resized.
            if "dynamic_img_size" not in str(error):
                raise
        else:
            return flexible
    model: nn.Module = timm.create_model(name, **args)
    return model


def _check_other_sizes(
    model: nn.Module, name: str, *, num_classes: int, in_chans: int, sizes: Sequence[int]
) -> None:
    for size in sizes:
        try:
            _check_forward(model, num_classes=num_classes, in_chans=in_chans, image_size=size)
        except BUILD_ERRORS as error:
            raise ConfigError(
                f"data.progressive: {name!r} cannot take images of {size} x {size} pixels ({first_line(error)}); use "
                "multiples of its patch size with a ViT or Swin, or a CNN, or leave data.progressive out"
            ) from error


def _describe_input(
    model: nn.Module, *, num_classes: int, in_chans: int, image_size: int, **stats: Any
) -> None:
    cfg = {key: value for key, value in pretrained_cfg(model).items() if key not in _FOREIGN_FACTS}
    given = {key: value for key, value in stats.items() if value is not None}
    size = (in_chans, image_size, image_size)
    cfg |= {
        "architecture": get_arch_name(cfg["architecture"]),
        "num_classes": num_classes,
        "input_size": size,
        **given,
    }
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]  # timm's names for one dict


def _create_from(resolved: str, reference: str, attention: AttentionConfig) -> nn.Module:
    # Of a network with layers that timm has no place for, the weights are read when the layers are there.
    adds_layers = bool(attention.gates) or attention.search is not None
    path = Path(resolved.removeprefix("local-dir:")) / WEIGHTS_FILE
    try:
        model: nn.Module = timm.create_model(resolved, pretrained=not adds_layers)
        weights = load_file(path) if adds_layers else {}
    except SafetensorError as error:
        raise ConfigError(
            f"{WEIGHTS_FILE} of {reference!r} is damaged ({error}): copy or release it again"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{CONFIG_FILE} of {reference!r} is no JSON ({error}): copy or release it again"
        ) from error
    except (*BUILD_ERRORS, OSError) as error:
        if isinstance(error, OSError) and not resolved.startswith("local-dir:"):
            raise unavailable(reference, error) from error
        raise ConfigError(f"checkpoint {reference!r} cannot be loaded: {first_line(error)}") from error
    apply_attention(model, attention)
    if adds_layers:
        missing = [name for name in model.state_dict() if name not in weights]
        if missing:
            raise ConfigError(f"{str(path)!r} has no weights {', '.join(missing)}: copy or release it again")
        model.load_state_dict(weights, strict=False)
    return model


def _timm_reference(reference: str) -> str:
    name = reference.split("/")[-1]
    if reference == name and ":" not in name and timm.is_model(name):
        return reference
    raise ConfigError(
        f"checkpoint {reference!r}: no such folder, and no architecture of timm; give a release folder, a run folder "
        f"with a release, a timm name, 'hf-hub:OWNER/NAME', or to start from a .safetensors or .pth file"
    )


def _release_attention(resolved: str) -> AttentionConfig:
    """What a release of ours says of the attention its network was trained with."""
    if not resolved.startswith("local-dir:"):
        return AttentionConfig()
    file = Path(resolved.removeprefix("local-dir:")) / CONFIG_FILE
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError:
        return AttentionConfig()  # timm reads the same file, and says what is wrong with it
    return validate(AttentionConfig, content.get(SIGNATURE, {}).get("attention", {}), file)
