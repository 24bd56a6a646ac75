"""A verified copy of a release that plain timm loads, its card completed."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from configs.base import ConfigError
from finetune.exporting.card import Facts, complete_card
from finetune.exporting.destination import differing_files, new_place
from models.build import InputSpec, input_spec, load_release, resolve_release

CARD = "README.md"


def export_release(
    reference: str, destination: Path, facts: Facts | None = None, *, told_by: str | None = None
) -> InputSpec:
    """Copies a release to a new folder, whole or not at all, and returns what the network in it takes.

    `told_by` is that of `new_place`.
    """
    resolved = resolve_release(reference)
    if not resolved.startswith("local-dir:"):
        raise ConfigError(
            f"{reference!r} is no folder: give a run folder with a release, or a release folder"
        )
    source = Path(resolved.removeprefix("local-dir:"))
    with new_place(destination, told_by=told_by) as aside:
        shutil.copytree(source, aside)
        _compare(source, aside)
        spec = verify_release(str(aside))
        if facts is not None:
            card = aside / CARD
            card.write_text(complete_card(card.read_text() if card.is_file() else "", facts))
    return spec


@torch.no_grad()
def verify_release(reference: str) -> InputSpec:
    """Loads a release as timm does and runs it once; ConfigError where the file, the config or the outputs are bad."""
    model = load_release(reference).eval()
    spec = input_spec(model)
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ConfigError(
            f"the weights of {reference!r} hold infinite or undefined numbers, first in {broken[0]!r}"
        )
    model(torch.zeros(1, spec.channels, spec.size, spec.size))
    return spec


def _compare(source: Path, copy: Path) -> None:
    differing = differing_files(source, copy)
    if differing:
        raise OSError(f"the copy of {str(source)!r} differs from it in {', '.join(differing)}")
