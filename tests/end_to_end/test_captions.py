"""From images with captions to a classifier by names and a fine-tuned one, by the commands a user types."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.captioned_sample import write_manifest
from data_pipeline.index import open_index
from data_pipeline.packing.pack import build
from engine.events import read_events
from engine.world import ALONE
from finetune.candidate import load_candidates
from finetune.evaluating.scoring import score
from models.zero_shot import load_classifier
from tests.end_to_end.test_chain import mirada
from tests.end_to_end.test_self_supervised import FEW_STEPS, last_values

pytestmark = pytest.mark.slow

TEST = "mirada://sample/test"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with towers that were trained at ZeRO 3 with EMA, in micro-batches, and a classifier made from one."""
    out = tmp_path_factory.mktemp("captions")
    build(write_manifest(out), out / "train")
    towers, tuned = str(out / "towers"), str(out / "tuned")
    mirada(
        "pretrain", "configs/smoke/pretrain_siglip.yaml", f"data.train={out / 'train'}", "train.duration=10 steps",
        "train.evaluate_every=10 steps", "train.evaluate_raw=false", "zero.stage=3", "train.ema=0.5",
        "train.micro_batch=32", *FEW_STEPS, "--ranks", "1", "--out", towers,
    )  # fmt: skip
    mirada(
        "finetune", "configs/finetune/full.yaml", f"checkpoint={towers}", "train.duration=3 steps",
        "train.evaluate_every=3 steps", *FEW_STEPS, "--ranks", "1", "--out", tuned,
    )  # fmt: skip
    yield out


def test_the_loss_begins_where_nothing_is_believed_to_be_a_pair_and_falls(chain: Path) -> None:
    metrics = [e["values"] for e in read_events(chain / "towers" / "events.jsonl") if e["kind"] == "metrics"]
    losses = [values["train/loss"] for values in metrics]
    # Cosines near zero: softplus(10) for the one pair of an image, softplus(-10) for the 63 others.
    assert losses[0] == pytest.approx(10 + 63 * math.exp(-10), abs=4.0)
    assert len(losses) == 10 and losses[-1] < 0.9 * losses[0]
    assert metrics[-1]["train/pair_scale"] != metrics[0]["train/pair_scale"]


def test_the_release_scores_as_the_run_did(chain: Path) -> None:
    load = partial(load_classifier, names=open_index(TEST).classes)
    candidates = load_candidates([str(chain / "towers")], device=torch.device("cpu"), load=load)
    (measured,) = score(candidates, open_index(TEST), TEST, batch_size=100, world=ALONE)
    values = last_values(chain / "towers", "evaluation")
    assert measured.scores.top1 == pytest.approx(values["val/top1"], abs=0.11)
    assert measured.scores.loss == pytest.approx(values["val/loss"], rel=1e-4)
    assert "`text.safetensors`" in (chain / "towers" / "release" / "README.md").read_text()


def test_the_tower_that_looks_is_fine_tuned(chain: Path) -> None:
    assert 0.0 <= last_values(chain / "tuned", "evaluation")["val/top1"] <= 100.0
