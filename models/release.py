"""A trained network as a folder that plain timm loads: ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from models.build import CONFIG_FILE, WEIGHTS_FILE
from models.carrier import Companion


def save_for_timm(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    eval_crop: float | None = None,
    classes: Sequence[str],
) -> None:
    """Writes `weights` and what timm needs to build `model` around them into `folder`.

    The weights come apart from the model since under ZeRO 3, or with averaged weights, they are not what it holds;
    this is why it takes the two halves of timm's ``save_for_hf``, which writes what the model holds.
    """
    _save_weights(weights, folder / WEIGHTS_FILE)
    preprocessing = {
        "input_size": tuple(input_size),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": interpolation,
        "crop_pct": eval_crop or 1.0,
        "crop_mode": "squash" if eval_crop is None else "center",
    }
    save_config_for_hf(
        model,
        str(folder / CONFIG_FILE),
        model_config={"label_names": list(classes)},
        data_config=preprocessing,
    )


def save_companion(companion: Companion, folder: Path) -> None:
    """Writes what goes with the network of a release, which timm leaves alone, beside it."""
    (folder / f"{companion.name}.json").write_text(json.dumps(companion.config, indent=2) + "\n")
    _save_weights(companion.weights, folder / f"{companion.name}.safetensors")


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    path.touch()  # safetensors gives a new file mode 0600; an existing one keeps what the umask says
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
