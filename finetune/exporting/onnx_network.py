"""An ONNX file that `finetune.exporting.onnx_file` wrote, run by ONNX Runtime where a network of torch would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.base import ConfigError

METADATA = "mirada"
"""Key of the file's metadata: what timm's ``pretrained_cfg`` says of input, preprocessing and classes, as JSON."""
INPUT, OUTPUT = "images", "logits"


class OnnxNetwork(nn.Module):
    """Images [B, C, H, W], normalized -> logits [B, classes] where the images are, by ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = open_session(path)
        self.pretrained_cfg = _read_metadata(self._session, path)
        """As timm's networks have it: input, preprocessing, classes."""
        self.num_classes = int(self.pretrained_cfg["num_classes"])
        # Empty: it tells where inputs are wanted, as the parameters of a network of torch do.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self._session.run([OUTPUT], {INPUT: images.cpu().contiguous().numpy()})
        return torch.from_numpy(logits).to(images.device)


def open_session(path: Path) -> Any:
    """Of ONNX Runtime, on as many threads as torch has; ConfigError for a file that is none."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"{str(path)!r} needs ONNX Runtime ({error}): install Mirada with the extra 'onnx'"
        ) from error
    if not path.is_file():
        raise ConfigError(f"{str(path)!r}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises kinds of its own that share no base but this
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{str(path)!r} is no ONNX file that can be run: {reason[:300]}") from error


def _read_metadata(session: Any, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ConfigError(
            f"{str(path)!r} does not say how its images are prepared and what its classes are: only ONNX files that "
            "`mirada export` wrote can be used here"
        )
    return dict(json.loads(text))
