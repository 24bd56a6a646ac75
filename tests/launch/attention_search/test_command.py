"""`mirada search` as a user meets it: a supernet, a study that agrees with trying every network, and a plain recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.load import load_config
from engine.events import read_events
from models.complexity import count_flops
from pretrain.config import PretrainConfig
from pretrain.path_scores import PathScorer
from pretrain.run import build_task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
RECIPE = "configs/smoke/search.yaml"
SHORT = ("train.duration=6 steps", "train.evaluate_every=6 steps", "tracking.uri=off", "data.held_out=0.05")


def mirada(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    done = mirada("search", RECIPE, *SHORT, "--ranks", "1", "--trials", "9", "--out", "found", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 networks were scored; train the best: mirada pretrain" in done.stdout
    return folder / "found"


def test_the_study_finds_what_trying_every_network_finds(out: Path) -> None:
    scorer = PathScorer(out / "supernet", device=torch.device("cpu"))
    paths = json.loads((out / "paths.json").read_text())
    every = {path: scorer.score(path).top1 for path in [(1, 1), (0, 0), (0, 1), (1, 0)]}
    assert {tuple(row["path"]): row["top1"] for row in paths} == every
    assert every[tuple(paths[0]["path"])] == max(every.values())
    assert [row["state"] for row in json.loads((out / "trials.json").read_text())] == ["complete"] * 4


def test_the_supernet_never_saw_the_test_set_nor_what_it_was_scored_on(out: Path) -> None:
    (start,) = [event for event in read_events(out / "supernet" / "events.jsonl") if event["kind"] == "run"]
    corpora = {corpus["context"]: corpus for corpus in start["datasets"]}
    assert corpora["validation"]["source"] == "mirada://sample/train (held out: 0.05 of it)"
    config = load_config(PretrainConfig, out / "supernet" / "config.yaml").config
    assert (config.data.val, config.data.held_out) == (None, 0.05)


def test_the_best_is_a_plain_recipe_whose_network_takes_what_is_said(out: Path) -> None:
    best = json.loads((out / "paths.json").read_text())[0]
    text = (out / "best.yaml").read_text()
    assert text.startswith(f"# mirada pretrain {out / 'best.yaml'}\n") and best["name"] in text
    config = load_config(PretrainConfig, out / "best.yaml").config
    assert config.model.attention.search is None and config.data.held_out == 0
    assert (config.data.val, config.train) == (
        "mirada://sample/test",
        load_config(PretrainConfig, RECIPE, SHORT).config.train,
    )
    stages = {stage for group in config.model.attention.gates for stage in group.stages}
    assert stages == {stage for stage, choice in zip((2, 3), best["path"], strict=True) if choice}
    model, _ = build_task(config, num_classes=10)
    assert not any("candidates" in name for name in model.state_dict())
    assert count_flops(model, (1, 28, 28)) == best["flops"]


def test_scores_do_not_depend_on_what_was_scored_before(out: Path) -> None:
    scorer = PathScorer(out / "supernet", device=torch.device("cpu"))
    first = scorer.score((1, 0))
    scorer.score((0, 1))
    assert scorer.score((1, 0)) == first


def test_typed_again_with_a_limit_nothing_is_trained_or_scored_anew(out: Path) -> None:
    paths = json.loads((out / "paths.json").read_text())
    limit = min(row["flops"] for row in paths)
    before = (out / "supernet" / "events.jsonl").read_bytes()
    arguments = ("--trials", "9", "--max-flops", str(limit), "--out", "found")
    done = mirada("search", RECIPE, *SHORT, *arguments, folder=out.parent)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 networks were scored" in done.stdout and "trial" not in done.stdout
    assert load_config(PretrainConfig, out / "best.yaml").config.model.attention.gates == ()
    assert (out / "supernet" / "events.jsonl").read_bytes() == before


def test_a_limit_that_no_network_keeps_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    told = mirada("search", RECIPE, "--max-flops", "1e6", "--out", "none", folder=tmp_path)
    assert told.returncode == 2
    assert (
        "--max-flops 1e+06: no network of model.attention.search takes so few; the cheapest (stage 2 none"
        in told.stderr
    )
    assert "Traceback" not in told.stderr and not (tmp_path / "none").exists()


def test_what_is_missing_for_a_search_is_told_at_once(tmp_path: Path) -> None:
    told = mirada("search", "configs/smoke/pretrain_mae.yaml", folder=tmp_path)
    assert told.returncode == 2 and "Traceback" not in told.stderr
    for words in ("model.attention.search is missing", "data.held_out is 0", "objective.name is 'mae'"):
        assert words in told.stderr
