"""`mirada search` as a user meets it: a supernet, a study that agrees with trying every network, and a plain recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.base import ConfigError
from configs.load import load_config
from engine.events import read_events
from launch.attention_search.result import best_recipe, scored_paths
from launch.attention_search.search import COSTS, read_search, read_space, supernet_is_finished
from launch.many.study import Study
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
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    done = mirada("search", RECIPE, *SHORT, "--ranks", "1", "--trials", "9", "--out", "found", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 networks were scored; train the best: mirada pretrain" in done.stdout
    return folder / "found"


@pytest.fixture(scope="module")
def scorer(out: Path) -> PathScorer:
    return PathScorer(out / "supernet", device=torch.device("cpu"))


def test_the_study_finds_what_trying_every_network_finds(out: Path, scorer: PathScorer) -> None:
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


def test_scores_do_not_depend_on_what_was_scored_before(scorer: PathScorer) -> None:
    first = scorer.score((1, 0))
    scorer.score((0, 1))
    assert scorer.score((1, 0)) == first


def test_another_limit_needs_no_training_and_scores_only_what_is_missing(out: Path, tmp_path: Path) -> None:
    limit = min(row["flops"] for row in json.loads((out / "paths.json").read_text()))
    search = read_search(RECIPE, SHORT, out=out, trials=9, workers=1, max_flops=limit)
    assert supernet_is_finished(search)
    space = read_space(out / COSTS, search.loaded.config, max_flops=limit)
    members = [space.settings(path) for path in space.members()]
    study = Study(out, space.study(trials=9, workers=1, seed=0), members=members)
    assert len(members) == 1 and study.next(0) is None
    (best,) = scored_paths(space, study)
    (tmp_path / "best.yaml").write_text(best_recipe(out, space, best, search.loaded))
    assert load_config(PretrainConfig, tmp_path / "best.yaml").config.model.attention.gates == ()
    other = read_search(RECIPE, [*SHORT, "optim.lr=1"], out=out, trials=9, workers=1, max_flops=None)
    with pytest.raises(
        ConfigError, match=r"belongs to another config: optim\.lr is 0\.004 there and 1\.0 here"
    ):
        supernet_is_finished(other)


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
