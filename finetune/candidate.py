"""Candidate: a released network and the name it goes by in tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from configs.attention import DynamicConfig
from configs.base import ConfigError
from configs.data import DataConfig
from finetune.exporting.onnx_network import OnnxNetwork
from models.attention import wished_kernel
from models.build import InputSpec, input_spec, label_names, load_release, pretrained_cfg
from models.dynamic import dynamic_blocks, set_threshold, use_dynamic
from models.preprocessing import preprocessing_of
from models.zero_shot import ZeroShot

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is evaluated or looked at."""

    name: str
    """Name of its run folder; the whole reference where two would share it."""
    reference: str
    """As it was given."""
    model: nn.Module
    """In evaluation mode, frozen."""
    spec: InputSpec
    label_names: tuple[str, ...]
    """The classes by name, where the release carries them."""

    @property
    def num_classes(self) -> int:
        return int(getattr(self.model, "num_classes", 0))

    @property
    def is_torch(self) -> bool:
        """Whether it is a network of torch, whose operations can be counted."""
        return not isinstance(self.model, OnnxNetwork)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of an image."""
        return self.spec.channels, self.spec.size, self.spec.size

    def merge_tokens(self, threshold: float) -> None:
        """From now on tokens that are more alike than this are merged; ConfigError for a network that has none."""
        network = self.model.towers.image if isinstance(self.model, ZeroShot) else self.model
        if not dynamic_blocks(network):
            any_threshold = DynamicConfig(
                threshold=0.9
            )  # a recipe's lies between 0 and 1, the ends are allowed here
            use_dynamic(network, any_threshold, kernel=wished_kernel(network))
        set_threshold(network, threshold)

    def data_config(self, location: str) -> DataConfig:
        """How this network wants the images of `location`: by its own config."""
        if self.spec.channels not in (1, 3):
            raise ConfigError(
                f"{self.name!r} takes images of {self.spec.channels} channels; images have 1 or 3"
            )
        return DataConfig(
            train=location,
            val=location,
            image_size=self.spec.size,
            channels=1 if self.spec.channels == 1 else 3,
            mean=self.spec.mean,
            std=self.spec.std,
            workers=0,
            **preprocessing_of(pretrained_cfg(self.model))._asdict(),
        )

    def check_classes(self, class_names: Sequence[str], *, location: str) -> None:
        """Raises ConfigError unless the data's class map is the one this network was trained on."""
        if self.num_classes != len(class_names):
            raise ConfigError(
                f"{self.name!r} tells {self.num_classes} classes apart and the data {location!r} has "
                f"{len(class_names)}: evaluate on data with the class map that it was trained on"
            )
        for index, (known, given) in enumerate(zip(self.label_names, class_names, strict=False)):
            if known != given:
                raise ConfigError(
                    f"class {index} is {known!r} for {self.name!r} and {given!r} in {location!r}"
                )


def load_candidates(
    references: Sequence[str],
    *,
    device: torch.device,
    load: Callable[[str], nn.Module] = load_release,
) -> list[Candidate]:
    """The networks behind release folders, run folders, timm references or ONNX files, in the order given."""
    if not references:
        raise ConfigError("no checkpoint is given: name at least one run folder or release folder")
    return [
        _load(reference, name, device, load)
        for reference, name in zip(references, _names(references), strict=True)
    ]


def parse_device(text: str) -> torch.device:
    """``auto`` is the GPU where there is one; raises ConfigError for a device that is not there."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {text!r} cannot be used: {str(error).splitlines()[0]}; try 'auto' or 'cpu'"
        ) from error
    return device


def _load(reference: str, name: str, device: torch.device, load: Callable[[str], nn.Module]) -> Candidate:
    # An ONNX file stays where ONNX Runtime is, on the CPU: timed on another device, copies would count.
    is_onnx = reference.endswith(ONNX_SUFFIX)
    model = OnnxNetwork(Path(reference)) if is_onnx else load(reference).to(device)
    model = model.eval().requires_grad_(False)
    return Candidate(
        name=name,
        reference=reference,
        model=model,
        spec=input_spec(model),
        label_names=label_names(model),
    )


def _names(references: Sequence[str]) -> list[str]:
    short = [_short_name(reference) for reference in references]
    return [
        name if short.count(name) == 1 else reference
        for name, reference in zip(short, references, strict=True)
    ]


def _short_name(reference: str) -> str:
    """A run folder is named by itself or by its ``release``; a timm reference by its last part."""
    path = Path(reference.removeprefix("local-dir:").removeprefix("hf-hub:"))
    resolved = path.expanduser().resolve() if path.exists() else path
    return resolved.parent.name if resolved.name == "release" else resolved.name
