"""The loop on one rank: what it logs, when it stops, and what it does with a run that was cut off."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.events import read_events
from engine.results.evaluate import Evaluator, Scores
from engine.world import World
from tests.support.tiny_run import Supervised, history, tiny_config, train_tiny


def kinds(out: Path) -> list[tuple[str, int | None]]:
    return [(event["kind"], event.get("step")) for event in read_events(out / "events.jsonl")]


def signal_at(number: signal.Signals, call: int) -> Supervised:
    def before(this: int) -> float:
        if this == call:
            os.kill(os.getpid(), number)
        return 1.0

    return Supervised(before)


def test_a_run_logs_each_interval_evaluates_saves_and_ends(tmp_path: Path, world: World) -> None:
    config = tiny_config(
        world_size=1, steps=6, log_every=2, evaluate_every="3 steps", checkpoint_every="4 steps"
    )
    outcome, _ = train_tiny(tmp_path / "run", config, world, Supervised())
    assert (outcome.step, outcome.exit_code) == (6, 0)
    logged = kinds(tmp_path / "run")
    assert [event for event in logged if event[0] != "checkpoint"] == [
        ("metrics", 2),
        ("evaluation", 3),
        ("metrics", 4),
        ("metrics", 6),
        ("evaluation", 6),
        ("finished", 6),
    ]
    # Written in the background: on record once they stand, and before the run ends.
    assert [event for event in logged if event[0] == "checkpoint"] == [("checkpoint", 4), ("checkpoint", 6)]
    assert logged.index(("checkpoint", 4)) > logged.index(("metrics", 4))
    assert logged[-1] == ("finished", 6)
    metrics = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "metrics"]
    assert [event["images"] for event in metrics] == [32, 64, 96]
    assert set(metrics[0]["values"]) == {
        "train/loss",
        "train/task",
        "train/lr",
        "train/grad_norm",
        "train/skipped_steps",
        "perf/images_per_s",
        "perf/step_s",
        "data/passes/memory",
        "perf/data_wait_fraction",
        "perf/memory_gb",
    }


@pytest.mark.parametrize(
    ("changes", "num_passes"), [({}, 2), ({"evaluate_raw": False}, 1), ({"ema": None}, 1)]
)
def test_weights_are_scored_beside_their_average_where_there_is_one_and_that_is_asked_for(
    changes: dict[str, Any], num_passes: int, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Scores] = []
    score = Evaluator.scores

    def count(evaluator: Evaluator, model: nn.Module) -> Scores:
        passes.append(score(evaluator, model))
        return passes[-1]

    monkeypatch.setattr(Evaluator, "scores", count)
    config = tiny_config(stage=0, world_size=1, steps=3, evaluate_every="3 steps", **changes)
    outcome, _ = train_tiny(tmp_path / "run", config, world, Supervised())
    assert len(passes) == num_passes and outcome.scores == passes[0]
    [evaluation] = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "evaluation"]
    expected = passes[0].values() | {k: v for raw in passes[1:] for k, v in raw.values(raw=True).items()}
    assert evaluation["values"] == expected
    assert len(expected) == 4 * num_passes and "val/top1" in expected


def test_the_interval_a_stop_cut_is_reported_as_if_it_had_not_been(tmp_path: Path, world: World) -> None:
    config = tiny_config(stage=0, world_size=1, steps=8, log_every=4, evaluate_every="6 steps")
    whole, expected = train_tiny(tmp_path / "whole", config, world, Supervised())
    stopped, _ = train_tiny(tmp_path / "cut", config, world, signal_at(signal.SIGTERM, 5))
    assert (stopped.step, stopped.exit_code) == (6, 75)
    assert kinds(tmp_path / "cut")[-2:] == [("checkpoint", 6), ("stopped", 6)]
    resumed, weights = train_tiny(tmp_path / "cut", config, world, Supervised())
    assert history(tmp_path / "whole") == history(tmp_path / "cut")
    assert ("evaluation", 6) in kinds(tmp_path / "cut")
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    assert resumed.scores == whole.scores


def test_ctrl_c_saves_and_says_130(tmp_path: Path, world: World) -> None:
    config = tiny_config(world_size=1, steps=4)
    outcome, _ = train_tiny(tmp_path / "run", config, world, signal_at(signal.SIGINT, 1))
    assert (outcome.step, outcome.exit_code) == (2, 130)


def test_a_finished_run_started_again_does_nothing_and_knows_its_scores(tmp_path: Path, world: World) -> None:
    config = tiny_config(world_size=1, steps=3)
    first, expected = train_tiny(tmp_path / "run", config, world, Supervised())
    second, weights = train_tiny(tmp_path / "run", config, world, Supervised(lambda call: 1 / 0))
    assert second == first and first.scores is not None
    assert all(torch.equal(expected[name], weights[name]) for name in expected)


def test_single_bad_steps_are_skipped_and_counted(tmp_path: Path, world: World) -> None:
    config = tiny_config(world_size=1, steps=8)
    objective = Supervised(lambda call: float("inf") if call in (2, 5) else 1.0)
    outcome, weights = train_tiny(tmp_path / "run", config, world, objective)
    assert outcome.step == 8
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    metrics = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "metrics"]
    assert [event["values"]["train/skipped_steps"] for event in metrics] == [0, 0, 1, 1, 1, 2, 2, 2]


def test_an_error_is_logged_and_raised_as_it_is(tmp_path: Path, world: World) -> None:
    def fail(call: int) -> float:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        train_tiny(tmp_path / "run", tiny_config(world_size=1), world, Supervised(fail))
    assert list(read_events(tmp_path / "run" / "events.jsonl"))[-1]["error"] == "RuntimeError: out of luck"
