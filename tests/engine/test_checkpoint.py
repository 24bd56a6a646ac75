"""Checkpoints on one rank: whole or not at all, and what happens to a broken one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.checkpoint import Checkpoint, CheckpointStore
from engine.errors import CheckpointError
from engine.world import World
from engine.zero import Engine
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config, tiny_engine


def store(path: Path, world: World, *, keep: int = 9, digest: str = "run") -> CheckpointStore:
    return CheckpointStore(path, world, keep=keep, run_digest=digest)


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    """An engine that has made a step."""
    engine = tiny_engine(tiny_config(stage=1, world_size=1), world)
    engine.accumulate(Supervised()(engine.model, MemoryLoader(world).batch(0)).total, last=True)
    engine.step(0, learning_rate=1e-2)
    return engine


def save(path: Path, world: World, engine: Engine, *steps: int, keep: int = 9) -> None:
    for step in steps:
        store(path, world, keep=keep).save(
            step, engine, shared={"position": step}, own={"sum": torch.tensor(step)}
        )


def load(path: Path, world: World, *, digest: str = "run") -> Checkpoint | None:
    engine = tiny_engine(tiny_config(stage=1, world_size=1), world)
    return store(path, world, digest=digest).load_newest(engine)


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path, world: World) -> None:
    assert load(tmp_path / "none", world) is None


def test_what_was_saved_comes_back_with_the_random_numbers_that_would_have_followed(
    tmp_path: Path, world: World, engine: Engine
) -> None:
    save(tmp_path, world, engine, 4)
    expected = torch.rand(3)
    fresh = tiny_engine(tiny_config(stage=1, world_size=1), world)
    found = store(tmp_path, world).load_newest(fresh)
    assert found is not None
    assert (found.step, found.shared) == (4, {"position": 4})
    assert found.own is not None and int(found.own["sum"]) == 4
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in engine.release_weights().items():
        assert torch.equal(fresh.release_weights()[name], tensor)


def test_the_newest_is_named_and_only_so_many_are_kept(tmp_path: Path, world: World, engine: Engine) -> None:
    save(tmp_path, world, engine, 1, 2, 3, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    assert (tmp_path / "latest").read_text() == "step-00000003\n"


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "shared.pt",
        "rank-00000.pt",
        "deepspeed/mp_rank_00_model_states.pt",
        "deepspeed/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ],
)
@pytest.mark.parametrize("damage", [flip_byte, truncate, Path.unlink])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], None],
    name: str,
    tmp_path: Path,
    world: World,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save(tmp_path, world, engine, 1, 2)
    if name == "manifest.json" and damage is flip_byte:
        damage = lambda path: path.write_text(path.read_text().replace('"format": 1', '"format": 3'))  # noqa: E731
    damage(tmp_path / "step-00000002" / name)
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path, world)
    assert found is not None and found.step == 1
    assert "step-00000002" in caplog.text and name in caplog.text


def test_a_checkpoint_that_is_still_being_written_is_not_seen_and_is_cleared_away_later(
    tmp_path: Path, world: World, engine: Engine
) -> None:
    save(tmp_path, world, engine, 1)
    (tmp_path / "step-00000001").rename(tmp_path / ".partial-step-00000001")
    assert load(tmp_path, world) is None
    save(tmp_path, world, engine, 2)
    assert not list(tmp_path.glob(".partial-*"))


def test_when_all_are_broken_the_run_does_not_silently_start_over(
    tmp_path: Path, world: World, engine: Engine
) -> None:
    save(tmp_path, world, engine, 1, 2)
    for step in (1, 2):
        truncate(tmp_path / f"step-{step:08d}" / "shared.pt")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* is whole .*--fresh"):
        load(tmp_path, world)


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path, world: World, engine: Engine) -> None:
    save(tmp_path, world, engine, 1)
    with pytest.raises(CheckpointError, match="belongs to a run with another config"):
        load(tmp_path, world, digest="other")


def test_another_number_of_ranks_is_refused_and_says_how_many_it_takes(
    tmp_path: Path, world: World, engine: Engine
) -> None:
    save(tmp_path, world, engine, 1)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"world_size": 4}))
    with pytest.raises(CheckpointError, match=r"saved by 4 ranks, and this run has 1: .*train.ranks=4"):
        load(tmp_path, world)


def test_saving_a_step_again_replaces_the_broken_one(tmp_path: Path, world: World, engine: Engine) -> None:
    save(tmp_path, world, engine, 1, 2)
    truncate(tmp_path / "step-00000002" / "shared.pt")
    save(tmp_path, world, engine, 2)
    found = load(tmp_path, world)
    assert found is not None and found.step == 2
