"""A run of every loss from recipe to release: several students, projections, overlap, and going on after a cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from configs.load import packaged_root
from engine.events import read_events
from models.build import load_release
from models.release import save_for_timm

OWN = {
    "name": "nf_seresnet26",
    "args": {"depths": [1, 1], "channels": [8, 16], "stem_type": "3x3", "stem_chs": 8},
}
SMALL = {"name": "small_resnet", "args": {"channels": [4, 8, 8, 8]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher in it."""
    path = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    args = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", in_chans=1, num_classes=10, **args)
    (path / "teacher").mkdir()
    stats = {"input_size": (1, 28, 28), "mean": (0.286,), "std": (0.353,), "classes": ()}
    model.pretrained_cfg["input_size"] = (1, 28, 28)
    save_for_timm(model, model.state_dict(), path / "teacher", **stats)
    return path


def finetune(
    folder: Path, name: str, model: Mapping[str, Any], **changes: Any
) -> subprocess.CompletedProcess[str]:
    """The program alone, as `mirada finetune` would start it on one rank."""
    root = packaged_root()
    teacher = {
        "checkpoint": str(folder / "teacher"),
        "logits": {"weight": 1.0, "fade": {"to": 0.5, "over": "4 steps"}},
        "attention": {"weight": 100.0, "teacher_layers": [0, -1], "student_stages": [-2, -1]},
        "features": {"weight": 1.0},
        "overlap": {},
    }
    recipe: dict[str, Any] = {
        "base": str(root / "configs" / "data" / "fashion_mnist_sample.yaml"),
        "model": model,
        "optim": {"lr": 1e-2, "clip_grad": 0.5},
        "teacher": {**teacher, **changes.pop("teacher", {})},
        "train": {
            "duration": "6 steps",
            "global_batch": 32,
            "ema": 0.9,
            "evaluate_raw": False,
            "log_every": 1,
            "evaluate_every": "6 steps",
            "checkpoint_every": "3 steps",
        },
        "zero": {"stage": 0},
        "tracking": {"uri": "off", "system_metrics": False},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "finetune", str(path), "--out", str(folder / name)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """The run of two students."""
    done = finetune(folder, "together", OWN, students={"small": SMALL})
    assert done.returncode == 0, done.stderr
    return folder / "together"


def series(run: Path, key: str) -> list[float]:
    found = {
        event["step"]: event["values"][key]
        for event in read_events(run / "events.jsonl")
        if event["kind"] in ("metrics", "evaluation") and key in event["values"]
    }
    return [found[step] for step in sorted(found)]


@pytest.mark.slow
def test_a_further_student_learns_as_it_would_alone(folder: Path, together: Path) -> None:
    done = finetune(folder, "small", SMALL)
    assert done.returncode == 0, done.stderr
    for part in ("task", "logits", "attention", "features", "loss"):
        alone = series(folder / "small", f"train/{part}")
        assert len(alone) == 6
        assert series(together, f"train/small/{part}") == pytest.approx(alone, rel=1e-4), part
    for metric in ("top1", "loss"):
        alone = series(folder / "small", f"val/{metric}")
        assert series(together, f"val/small/{metric}") == pytest.approx(alone, rel=1e-4)
    shared, own = (weights_of(path / "release") for path in (together / "students/small", folder / "small"))
    close(shared, own, tolerance=1e-4)


def weights_of(release: Path) -> dict[str, Tensor]:
    return load_file(release / "model.safetensors")


def close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.slow
def test_releases_hold_the_students_and_nothing_that_they_learned_by(together: Path) -> None:
    for release, model in ((together / "release", OWN), (together / "students/small/release", SMALL)):
        network = load_release(str(release))
        assert weights_of(release).keys() == network.state_dict().keys()
        assert json.loads((release / "config.json").read_text())["architecture"] == model["name"]


@pytest.mark.slow
def test_overlap_is_measured_before_the_first_step_and_after(together: Path) -> None:
    assert len(series(together, "val/map_correlation")) == len(series(together, "val/map_pointing")) == 2
    assert all(-1 <= value <= 1 for value in series(together, "val/map_correlation"))
    first = next(e for e in read_events(together / "events.jsonl") if e["kind"] == "evaluation")
    assert first["step"] == 0


@pytest.mark.slow
def test_a_teacher_that_is_sharded_teaches_the_same(folder: Path, together: Path) -> None:
    done = finetune(folder, "sharded", OWN, students={"small": SMALL}, teacher={"sharded": True})
    assert done.returncode == 0, done.stderr
    for key in ("train/attention", "train/features", "train/logits", "val/map_correlation"):
        assert series(folder / "sharded", key) == pytest.approx(series(together, key), rel=1e-5), key


@pytest.mark.slow
def test_a_run_that_lost_its_last_steps_goes_on_to_the_same_weights(folder: Path, together: Path) -> None:
    released = ("release", "students/small/release")
    before = {name: weights_of(together / name) for name in released}
    logged = {key: series(together, key) for key in ("train/logits", "train/small/features", "val/loss")}
    newest = max((together / "checkpoints").glob("step*"), key=lambda path: path.name)
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    done = finetune(folder, "together", OWN, students={"small": SMALL})
    assert done.returncode == 0, done.stderr
    assert [e["step"] for e in read_events(together / "events.jsonl") if e["kind"] == "resumed"] == [3]
    for name in released:
        close(weights_of(together / name), before[name], tolerance=0)
    assert {key: series(together, key) for key in logged} == logged


def test_a_mistake_ends_with_a_message_and_code_2(folder: Path) -> None:
    layers = {"attention": {"weight": 1.0, "teacher_layers": [5], "student_stages": [-2]}}
    done = finetune(folder, "mistaken", OWN, teacher=layers)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "a map of 5 is asked for, but the model has attention in layers 0 (blocks.0.attn), 1" in done.stderr
    )
    assert not (folder / "mistaken").exists()
