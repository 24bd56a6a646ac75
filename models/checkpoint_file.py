"""Weights in one file, ``.safetensors`` or PyTorch's ``.pth``: read as numbers alone, whatever else the file holds."""

from __future__ import annotations

import pickle
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from configs.base import ConfigError
from configs.training import WEIGHT_FILES

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training programs put the weights within what they save; the first that is there is taken."""

_CONVERT = (
    "import torch, safetensors.torch as s; c = torch.load({source!r}, map_location='cpu', weights_only=False); "
    "w = lambda x: x.state_dict() if hasattr(x, 'state_dict') else x; c = w(c); "
    "c = next((v for v in map(w, map(c.get, {wrappers})) if isinstance(v, dict)), c); "
    "s.save_file({{k: v.clone().contiguous() for k, v in c.items() if torch.is_tensor(v)}}, {target!r})"
)
"""Whole modules become their weights; as in `read_weights`, the first of WRAPPERS that holds any is taken."""
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")


def is_weights_file(reference: str) -> bool:
    """Whether a reference names a file, by how it ends."""
    return reference.endswith(WEIGHT_FILES)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file by name, on the CPU; ConfigError for a file that is not there, is damaged or holds code.

    Of what a ``.pth`` holds the first of WRAPPERS is taken, else all of it, and from names the prefixes ``module.``
    and ``_orig_mod.`` that DistributedDataParallel and torch.compile leave. What is no tensor is passed over.
    """
    if not path.is_file():
        raise ConfigError(f"checkpoint {str(path)!r}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _unwrapped(_read_pth(path))
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        held = ", ".join(map(repr, list(content)[:8])) or f"a {type(content).__name__}"
        raise ConfigError(
            f"checkpoint {str(path)!r} holds no weights by name, at the top or in {', '.join(map(repr, WRAPPERS))}; "
            f"there is {held}: save the state dict alone"
        )
    return dict(clean_state_dict(weights))


def conversion_command(path: Path) -> str:
    """What to type to make a ``.safetensors`` of a ``.pth`` whose author is trusted: reading it runs its code."""
    code = _CONVERT.format(source=str(path), target=str(path.with_suffix(".safetensors")), wrappers=WRAPPERS)
    return f"python -c {shlex.quote(code)}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(clean_state_dict(load_file(path)))
    except SafetensorError as error:
        raise ConfigError(
            f"checkpoint {str(path)!r} is damaged, or no safetensors file ({error}): copy or download it again"
        ) from error


def _read_pth(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _FORBIDDEN.search(str(error))
        what = f"a Python object ({found[1]})" if found else "something that is neither a number nor a name"
        raise ConfigError(
            f"checkpoint {str(path)!r} holds {what}, and reading that could run code, which Mirada never does. If you "
            f"trust who made it, convert it once and give the new file:\n  {conversion_command(path)}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"checkpoint {str(path)!r} is damaged, or no file of PyTorch's ({first}): copy or download it again"
        ) from error


def _unwrapped(content: Any) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        return {}
    inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)
    return dict(inner)
