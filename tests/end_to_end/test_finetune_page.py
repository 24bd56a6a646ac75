"""docs/finetune.md does what it says: its commands, typed one by one, leave what it promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml

from configs.data import DataConfig
from data_pipeline.batch import normalize
from data_pipeline.index import open_index
from data_pipeline.loader import EvalLoader
from engine.events import read_events
from tests.support.tutorial import ROOT, run_tutorial

pytestmark = pytest.mark.slow

SHORT = "train.global_batch=32 tracking.uri=off --ranks 1"
STEPS = (
    "train.duration='4 steps' train.evaluate_every='4 steps' train.checkpoint_every='4 steps' "
    f"schedule.warmup='1 steps' {SHORT}"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs of the page, of four steps each."""
    folder = tmp_path_factory.mktemp("page")
    run_tutorial(
        ROOT / "docs" / "finetune.md",
        folder,
        {
            "--out runs/pretrain_mae": f"probe.max_images=300 {STEPS} --out runs/pretrain_mae",
            "--out runs/knn": f"mode.probe.max_images=300 {SHORT} --out runs/knn",
            "--out runs/full": f"{STEPS} --out runs/full",
            "--out runs/lora": f"{STEPS} --out runs/lora",
        },
    )
    yield folder / "runs"


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run / "events.jsonl") if event["kind"] == kind]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    model = timm.create_model(f"local-dir:{run / 'release'}", pretrained=True)
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


def test_the_run_folder_says_what_became_of_every_weight(runs: Path) -> None:
    for name in ("full", "lora", "knn"):
        report = json.loads((runs / name / "starting_weights.json").read_text())
        assert set(report["reset"]) == {"head.weight", "head.bias"}
        assert not (report["missing"] or report["unexpected"] or report["resized"])
        (event,) = events(runs / name, "starting_weights")
        assert (event["loaded"], event["reset"]) == (len(report["loaded"]), 2)
        assert "2 reset" in (runs / name / "logs" / "rank_0.log").read_text()


def test_the_effective_config_has_the_checkpoints_own_settings(runs: Path) -> None:
    config = yaml.safe_load((runs / "lora" / "config.yaml").read_text())
    assert config["model"]["name"] == "vit_tiny_patch16_224"
    assert (config["data"]["channels"], config["data"]["image_size"]) == (1, 28)
    assert (config["data"]["mean"], config["data"]["std"]) == ([0.286], [0.353])


def test_knn_scores_features_and_trains_nothing(runs: Path) -> None:
    (scores,) = [event["values"] for event in events(runs / "knn", "evaluation")]
    assert scores["val/knn_top1"] > 25.0 and scores["val/probe_top1"] > 25.0  # chance is 10
    released, start = weights_of(runs / "knn"), weights_of(runs / "pretrain_mae")
    assert all(torch.equal(released[name], start[name]) for name in start)
    assert events(runs / "knn", "finished") and events(runs / "knn", "release")
    assert [event["total_steps"] for event in events(runs / "knn", "run")] == [0]


@torch.no_grad()
def test_plain_timm_has_the_loss_that_a_lora_run_had_at_its_end(runs: Path) -> None:
    model = timm.create_model(f"local-dir:{runs / 'lora' / 'release'}", pretrained=True).eval()
    location = "mirada://sample/test"
    data = DataConfig(train=location, image_size=28, channels=1, mean=(0.286,), std=(0.353,), workers=0)
    losses = [
        F.cross_entropy(model(normalize(batch.images, data.mean, data.std)), batch.targets, reduction="none")
        for batch in EvalLoader(open_index(location), data, batch_size=100)
    ]
    logged = events(runs / "lora", "evaluation")[-1]["values"]["val/loss"]
    assert torch.cat(losses).mean().item() == pytest.approx(logged, rel=1e-4)


def test_lora_moves_the_projections_of_attention_and_nothing_else_of_the_encoder(runs: Path) -> None:
    start, lora, full = (weights_of(runs / name) for name in ("pretrain_mae", "lora", "full"))
    assert lora.keys() == full.keys()
    moved = {name for name in start if not torch.equal(start[name], lora[name])}
    assert moved == {f"blocks.{i}.attn.{part}.weight" for i in range(4) for part in ("qkv", "proj")}
    assert all(not torch.equal(start[name], full[name]) for name in start if name.endswith("weight"))
