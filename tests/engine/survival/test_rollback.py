"""A run that is no longer finite goes back, and ends as if what it was given then had never been there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.data import DataConfig
from data_pipeline.loader import ShardLoader
from engine.errors import DivergenceError
from engine.events import read_events
from engine.survival.rollback import Rollback
from engine.world import World
from tests.support import tiny_run
from tests.support.shards import make_shards
from tests.support.tiny_run import (
    MemoryLoader,
    Poisoned,
    Supervised,
    Without,
    history,
    tiny_config,
    train_tiny,
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("stage", "log_every"), [(0, 1), (2, 1), (2, 3)])
def test_after_a_rollback_the_run_is_that_without_the_bad_batches_also_when_it_is_cut_off(
    stage: int, log_every: int, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(stage=stage, world_size=1, steps=10, log_every=log_every)
    outcome, weights = train_tiny(tmp_path / "run", config, world, Poisoned(world, 5, 6, 7))
    assert outcome.step == 10
    dying = Poisoned(world, 5, 6, 7, fail_at_call=8 + 3)
    with pytest.raises(RuntimeError, match="the power went out"):
        train_tiny(tmp_path / "cut", config, world, dying)
    _, resumed = train_tiny(tmp_path / "cut", config, world, Poisoned(world, 5, 6, 7))
    monkeypatch.setattr(tiny_run, "MemoryLoader", Without)
    _, expected = train_tiny(tmp_path / "reference", config, world, Supervised())
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor) and torch.equal(resumed[name], tensor), name
    for run in ("run", "cut"):
        events = list(read_events(tmp_path / run / "events.jsonl"))
        undone = [(e["from"], e["to"], e["left_out"]) for e in events if e["kind"] == "rolled_back"]
        assert undone == [(8, 4, [5, 7])]
        # The loader of the reference is three batches behind.
        logged, reference = history(tmp_path / run), history(tmp_path / "reference")
        assert logged.keys() == reference.keys()
        assert all(logged[key][1:] == reference[key][1:] for key in reference)
    (window,) = lines(tmp_path / "run" / "skipped_windows.jsonl")
    expected_ids = [i for step in (5, 6, 7) for i in MemoryLoader(world).batch(step).sample_ids.tolist()]
    assert [sample["sample_id"] for sample in window["samples"]] == expected_ids
    assert {(s["shard"], s["key"]) for s in window["samples"]} == {
        ("memory", f"image-{i}") for i in expected_ids
    }


def test_a_run_that_stays_broken_gives_up_with_its_weights_unharmed(tmp_path: Path, world: World) -> None:
    config = tiny_config(stage=2, world_size=1, steps=30, max_nonfinite=2, max_rollbacks=2)
    objective = Poisoned(world, *range(5, 40))
    with pytest.raises(DivergenceError, match=r"2 steps in a row, up to step 7, after 2 rollbacks"):
        train_tiny(tmp_path / "run", config, world, objective)
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    assert events[-1]["kind"] == "failed" and "DivergenceError" in events[-1]["error"]
    assert [(e["from"], e["to"]) for e in events if e["kind"] == "rolled_back"] == [(7, 4), (7, 4)]
    windows = lines(tmp_path / "run" / "skipped_windows.jsonl")
    assert [(w["first"], w["last"]) for w in windows] == [(5, 6), (7, 8)]


def test_before_the_first_checkpoint_the_run_ends_and_the_same_command_begins_without_the_batches(
    tmp_path: Path, world: World
) -> None:
    config = tiny_config(stage=2, world_size=1, steps=6)
    with pytest.raises(DivergenceError, match=r"before the first checkpoint\. Run the same command again"):
        train_tiny(tmp_path / "run", config, world, Poisoned(world, 0, 1, 2))
    outcome, _ = train_tiny(tmp_path / "run", config, world, Poisoned(world, 0, 1, 2))
    assert outcome.step == 6


def test_a_checkpoint_that_is_due_waits_for_a_finite_step(tmp_path: Path, world: World) -> None:
    config = tiny_config(stage=2, world_size=1, steps=8)
    train_tiny(tmp_path / "run", config, world, Poisoned(world, 2, 3))
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [5, 8]


def test_samples_whose_names_cannot_be_read_are_listed_by_id(tmp_path: Path, world: World) -> None:
    def fail(ids: torch.Tensor) -> list[tuple[str, str]]:
        raise OSError("the shard is gone")

    rollback = Rollback(
        tmp_path / "windows.jsonl", world, max_nonfinite=1, max_rollbacks=1, name_samples=fail
    )
    rollback.trained_on(MemoryLoader(world).batch(3), 3)
    assert rollback.is_due(1)
    rollback.leave_out_recent(step=4)
    (window,) = lines(tmp_path / "windows.jsonl")
    assert window["first"] == window["last"] == 3
    assert all(set(sample) == {"sample_id"} for sample in window["samples"])
    assert Rollback(tmp_path / "windows.jsonl", world, max_nonfinite=1, max_rollbacks=1).leaves_out(3)


def test_a_loader_whose_workers_read_ahead_jumps_back_in_mid_run(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [30, 30])
    data = DataConfig(
        train=str(tmp_path), image_size=28, channels=1, mean=(0.5,), std=(0.5,), workers=1, prefetch=3
    )
    loader = ShardLoader(index, data, global_batch=4, seed=0)
    state, first = loader.state_dict(), []
    batches = iter(loader)
    for _ in range(6):
        first.append(next(batches).sample_ids.clone())
        loader.advance()
    loader.load_state_dict(state)
    again = iter(loader)
    assert all(torch.equal(next(again).sample_ids, ids) for ids in first)
