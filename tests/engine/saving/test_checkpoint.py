"""Checkpoints on one rank: in the background, whole or not at all, and what happens to a broken one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.saving.checkpoint import Checkpoint, CheckpointStore
from engine.saving.writer import Writer
from engine.sharding.zero import Engine
from engine.world import World
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config, tiny_engine


def store(path: Path, world: World, *, keep: int = 9, digest: str = "run") -> CheckpointStore:
    return CheckpointStore(path, world, keep=keep, run_digest=digest)


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    """An engine that has made a step."""
    engine = tiny_engine(tiny_config(stage=1, world_size=1), world)
    train(engine, world)
    return engine


def train(engine: Engine, world: World) -> None:
    engine.accumulate(Supervised()(engine.model, MemoryLoader(world).batch(0)).total, last=True)
    engine.step(0, learning_rate=1e-2)


class Held:
    """The engine, with a file that takes until it is released, and may fail then."""

    def __init__(self, engine: Engine, failure: Exception | None = None) -> None:
        self.release = threading.Event()
        self._engine = engine
        self._failure = failure

    def save(self, folder: Path, writer: Writer) -> None:
        writer.put(folder / "held", self._write)
        self._engine.save(folder, writer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _write(self, path: Path) -> None:
        self.release.wait()
        if self._failure is not None:
            raise self._failure
        path.write_text("done")


def save(path: Path, world: World, engine: Engine, *steps: int, keep: int = 9) -> None:
    saver = store(path, world, keep=keep)
    for step in steps:
        saver.save(step, engine, shared={"position": step}, own={"sum": torch.tensor(step)})
    while settled := saver.settle(wait=True):
        assert settled.problem is None


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


def test_training_goes_on_while_a_save_is_written_and_does_not_change_what_it_holds(
    tmp_path: Path, world: World
) -> None:
    engine = tiny_engine(tiny_config(stage=1, world_size=1), world)
    train(engine, world)
    before = engine.release_weights()
    held, position = Held(engine), {"step": 1}
    saver = store(tmp_path, world)
    saver.save(1, held, shared={"position": position}, own={"sum": torch.tensor(1)})  # type: ignore[arg-type]
    train(engine, world)
    position["step"] = 2
    assert saver.settle() is None and saver.settle() is None
    assert not list(tmp_path.glob("step-*"))
    held.release.set()
    settled = saver.settle(wait=True)
    assert settled is not None and settled.problem is None
    assert (settled.step, settled.path) == (1, tmp_path / "step-00000001")
    files = [path for path in settled.path.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert settled.num_bytes == sum(path.stat().st_size for path in files)
    assert saver.settle() is None and saver.settle(wait=True) is None
    other = tiny_engine(tiny_config(stage=1, world_size=1), world)
    found = store(tmp_path, world).load_newest(other)
    assert found is not None and found.shared == {"position": {"step": 1}}
    assert all(torch.equal(other.release_weights()[name], tensor) for name, tensor in before.items())
    assert not all(torch.equal(engine.release_weights()[name], tensor) for name, tensor in before.items())


def test_a_save_waits_for_the_one_before_and_both_are_told_of_in_their_order(
    tmp_path: Path, world: World, engine: Engine
) -> None:
    held = Held(engine)
    saver = store(tmp_path, world)
    saver.save(1, held, shared={}, own={})  # type: ignore[arg-type]
    threading.Timer(0.2, held.release.set).start()
    saver.save(2, engine, shared={}, own={})
    assert (tmp_path / "step-00000001").is_dir()
    told = [saver.settle(wait=True), saver.settle(wait=True), saver.settle(wait=True)]
    assert [settled and settled.step for settled in told] == [1, 2, None]


def test_a_mistake_in_the_thread_is_raised_where_the_loop_asks(
    tmp_path: Path, world: World, engine: Engine
) -> None:
    held = Held(engine, TypeError("cannot pickle 'generator' object"))
    held.release.set()
    saver = store(tmp_path, world)
    saver.save(1, held, shared={}, own={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot pickle"):
        saver.settle(wait=True)


def test_when_the_disk_refuses_training_goes_on_and_the_warning_names_path_and_bytes(
    tmp_path: Path, world: World, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, world, engine, 1)
    held = Held(engine, OSError(122, "Disk quota exceeded", str(tmp_path / "held")))
    held.release.set()
    saver = store(tmp_path, world)
    saver.save(2, held, shared={}, own={})  # type: ignore[arg-type]
    settled = saver.settle(wait=True)
    assert settled is not None and settled.step == 2 and settled.num_bytes == 0
    assert "rank 0: [Errno 122] Disk quota exceeded" in (settled.problem or "")
    assert str(tmp_path / "step-00000002") in caplog.text and "bytes" in caplog.text
    assert "until then the newest is: step-00000001" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    save(tmp_path, world, engine, 3)
    found = load(tmp_path, world)
    assert found is not None and found.step == 3


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
    damage(tmp_path / "step-00000002" / name)
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path, world)
    assert found is not None and found.step == 1
    assert "step-00000002" in caplog.text and name in caplog.text


def test_what_a_killed_save_left_is_said_and_cleared_away(
    tmp_path: Path, world: World, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, world, engine, 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / ".partial-step-00000002-0123abcd")
    found = load(tmp_path, world)
    assert found is not None and found.step == 1
    assert "the save of step-00000002 did not come to its end" in caplog.text
    assert "going on from" in caplog.text and "step-00000001" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


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


def test_saving_a_step_again_replaces_the_broken_one(tmp_path: Path, world: World, engine: Engine) -> None:
    save(tmp_path, world, engine, 1, 2)
    truncate(tmp_path / "step-00000002" / "shared.pt")
    save(tmp_path, world, engine, 2)
    found = load(tmp_path, world)
    assert found is not None and found.step == 2
