"""The code inside an exported MLflow model: pixels -> probabilities, by timm and safetensors, without a pickle.

MLflow copies this file into the model and runs it there, where Mirada need not be installed: it imports none of ours.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import timm
import torch
from numpy.typing import NDArray


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]  # made when MLflow is imported
    """uint8 [N, H, W, C] or, of grey images, [N, H, W] -> float32 [N, classes], each row a distribution.

    Images of any size are cropped and resized as the release says that evaluation does it.
    """

    def load_context(self, context: Any) -> None:
        """Builds the network of the release that lies in the model."""
        folder = Path(context.artifacts["release"])
        self._model = _build(folder).eval()
        wanted = self._model.pretrained_cfg
        self._channels, self._size = int(wanted["input_size"][0]), int(wanted["input_size"][1])
        self._mean, self._std = (torch.tensor(wanted[key]).view(-1, 1, 1) for key in ("mean", "std"))
        is_central = wanted.get("crop_mode", "center") == "center"
        self._part = min(1.0, float(wanted.get("crop_pct") or 0.875)) if is_central else None
        self._filter = "bilinear" if wanted.get("interpolation") == "bilinear" else "bicubic"

    @torch.inference_mode()
    # MLflow would take annotations for a schema, and warn whoever loads the model that it knows none like it.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """ValueError for what are no such images."""
        pixels = np.asarray(model_input)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        if pixels.ndim != 4 or pixels.shape[3] != self._channels or pixels.dtype != np.uint8:
            raise ValueError(
                f"images are uint8 [N, H, W, {self._channels}], not {pixels.dtype} {list(pixels.shape)}"
            )
        images = self._resized(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
        inputs = (images.float() / 255 - self._mean) / self._std
        probabilities: NDArray[np.float32] = self._model(inputs).softmax(dim=1).numpy()
        return probabilities

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, C, S, S] of uint8 [N, C, H, W]; without a crop the whole image is squeezed into a square."""
        size, shorter = self._size, min(images.shape[2:])
        if self._part is not None:
            side = min(shorter, max(1, round(shorter * size / int(size / self._part))))
            top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
            images = images[..., top : top + side, left : left + side]
        if images.shape[2:] == (size, size):
            return images
        return torch.nn.functional.interpolate(images, (size, size), mode=self._filter, antialias=True)


def _build(folder: Path) -> Any:
    """timm's network, or Mirada's where attention or architecture are not all timm's."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("mirada", {}).get("attention") or not timm.is_model(config["architecture"]):
        return importlib.import_module("mirada.models.build").load_release(str(folder))
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


mlflow.models.set_model(Classifier())
