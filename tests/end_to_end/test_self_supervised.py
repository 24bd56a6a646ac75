"""From images without labels to a fine-tuned classifier, by the commands a user types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from engine.events import read_events
from tests.end_to_end.test_chain import mirada

pytestmark = pytest.mark.slow

FEW_STEPS = ("train.global_batch=64", "train.log_every=1", "schedule.warmup=2 steps", "tracking.uri=off")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an encoder, pretrained on two ranks at ZeRO 3 with EMA, and what was fine-tuned from it."""
    out = tmp_path_factory.mktemp("self_supervised")
    encoder, tuned = str(out / "encoder"), str(out / "tuned")
    mirada(
        "pretrain", "configs/smoke/pretrain_mae.yaml", "train.duration=8 steps", "train.evaluate_every=8 steps",
        "probe.max_images=500", "zero.stage=3", "train.ema=0.5", *FEW_STEPS, "--ranks", "2", "--out", encoder,
    )  # fmt: skip
    mirada(
        "finetune", "configs/smoke/finetune_mae.yaml", f"checkpoint={encoder}", "train.duration=4 steps",
        "train.evaluate_every=4 steps", *FEW_STEPS, "--ranks", "1", "--out", tuned,
    )  # fmt: skip
    yield out


def last_values(run: Path, kind: str) -> dict[str, Any]:
    return [event["values"] for event in read_events(run / "events.jsonl") if event["kind"] == kind][-1]


def test_pretraining_lowers_its_loss_and_scores_its_features(chain: Path) -> None:
    metrics = [e["values"] for e in read_events(chain / "encoder" / "events.jsonl") if e["kind"] == "metrics"]
    losses = [values["train/loss"] for values in metrics]
    assert len(losses) == 8 and losses[-1] < 0.9 * losses[0]
    scores = last_values(chain / "encoder", "evaluation")
    assert scores["val/knn_top1"] > 25.0 and scores["val/probe_top1"] > 25.0  # chance is 10
    assert "val/top1" not in scores


def test_the_release_is_an_encoder_that_plain_timm_loads(chain: Path) -> None:
    folder = f"local-dir:{chain / 'encoder' / 'release'}"
    assert timm.create_model(folder, pretrained=True)(torch.zeros(2, 1, 28, 28)).shape == (2, 96)
    assert timm.create_model(folder, pretrained=True, num_classes=4)(torch.zeros(2, 1, 28, 28)).shape == (
        2,
        4,
    )
    card = (chain / "encoder" / "release" / "README.md").read_text()
    assert "image-feature-extraction" in card and "kNN top-1" in card


def test_fine_tuning_gives_a_classifier_that_is_scored_by_its_own_logits(chain: Path) -> None:
    scores = last_values(chain / "tuned", "evaluation")
    assert 0.0 <= scores["val/top1"] <= scores["val/top5"]
    classifier = timm.create_model(f"local-dir:{chain / 'tuned' / 'release'}", pretrained=True)
    assert classifier(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
