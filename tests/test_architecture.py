"""The import directions of the architecture, kept true: who may import whom, and which room owns which third party."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = {"configs", "data_pipeline", "models"}
MAY_IMPORT = {
    "configs": set(),
    "data_pipeline": {"configs"},
    "models": {"configs"},
    "engine": ENGINE,
    "pretrain": ENGINE | {"engine"},
    "finetune": ENGINE | {"engine"},
    "launch": {"configs"},
}
ONLY_IN: dict[str, str | tuple[str, ...]] = {
    **dict.fromkeys(("pydantic", "pydantic_core", "omegaconf"), "configs/"),
    **dict.fromkeys(("webdataset", "cv2", "simplejpeg", "turbojpeg", "PIL", "imagehash"), "data_pipeline/"),
    **dict.fromkeys(("pyarrow", "xxhash", "fsspec"), "data_pipeline/"),
    "timm": ("models/", "engine/sharding/optim.py", "engine/tracking/mlflow_predictor.py"),
    **dict.fromkeys(("flash_attn", "flash_attn_interface"), "models/flash.py"),
    "peft": "models/lora.py",
    "open_clip": "models/text_tower.py",
    "deepspeed": "engine/sharding/zero.py",
    "mlflow": "engine/tracking/mlflow_",
    "tensorboard": "engine/tracking/tensorboard.py",
    **dict.fromkeys(("psutil", "pynvml"), "engine/tracking/system_metrics.py"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "finetune/exporting/onnx_"),
    "huggingface_hub": "finetune/exporting/hub.py",
    "optuna": "launch/many/study.py",
    "submitit": "launch/submission/slurm.py",
}
FILES = sorted(
    path.relative_to(ROOT).as_posix() for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("file", FILES)
def test_packages_import_only_downwards(file: str) -> None:
    package = file.split("/")[0]
    allowed = MAY_IMPORT[package] | {package}
    wrong = [name for name in imports(file) if name.split(".")[0] in MAY_IMPORT.keys() - allowed]
    if package == "launch":  # checks a run before it starts: the config.py files import nothing heavy
        wrong = [name for name in wrong if name not in ("pretrain.config", "finetune.config")]
    assert not wrong, f"{file} imports {wrong}; {package} may import {sorted(allowed)}"


@pytest.mark.parametrize("file", FILES)
def test_third_parties_stay_in_their_room(file: str) -> None:
    for name in imports(file):
        room = ONLY_IN.get(name.split(".")[0], "")
        config = file.endswith("/config.py") and room == "configs/"
        assert config or file.startswith(room), f"{file} imports {name}, which belongs to {room}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.startswith(("configs/", "launch/")) or "config.py" in f]
)
def test_configs_and_launch_import_no_torch(file: str) -> None:
    heavy = {"torch", "numpy"} if file.startswith("configs/") else {"torch"}
    assert not heavy & {name.split(".")[0] for name in imports(file)}


def test_init_files_hold_a_docstring_and_nothing_else() -> None:
    for package in MAY_IMPORT:
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert len(body) == 1, f"{package}/__init__.py re-exports or computes something"
        assert isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


def imports(file: str) -> Iterator[str]:
    """Every module a file imports, also inside functions."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}; imports are absolute"
            yield node.module or ""
