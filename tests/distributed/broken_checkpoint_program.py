"""Two ranks that find checkpoints damaged, and a disk that is full: ``broken_checkpoint_program.py FOLDER [DISK]``.

Without DISK, the folder of a file system of a megabyte, it is about damage; with it, about a disk that fills up.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch

from engine.saving.checkpoint import CheckpointStore
from engine.saving.saving import Settled
from engine.sharding.zero import Engine
from engine.world import World
from tests.support.forked_ranks import NUM_RANKS, NumberEngine, fork_ranks, wait_for


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def open_store(folder: Path, world: World) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", world, keep=2, run_digest="run")


def save(store: CheckpointStore, step: int, engine: NumberEngine, world: World) -> Settled:
    """Saves, and asks at the boundaries of steps that take no time until it is settled."""
    engine.weights.fill_(step)
    store.save(step, cast(Engine, engine), shared={"step": step}, own={"rank": world.rank})
    while (settled := store.settle()) is None:
        pass
    assert world.gather(settled) == [settled] * NUM_RANKS
    return settled


def load(folder: Path, world: World) -> int:
    """The step that all ranks load, with everything that belongs to it."""
    engine = NumberEngine(world)
    found = open_store(folder, world).load_newest(cast(Engine, engine))
    assert found is not None and found.own == {"rank": world.rank}
    assert world.gather(found.step) == [found.step] * NUM_RANKS
    assert found.shared == {"step": found.step} and bool((engine.weights == found.step).all())
    return found.step


def damage_each_file(folder: Path, world: World) -> None:
    """Whatever is done to whichever file, all ranks name the checkpoint and use the one before."""
    store, engine, log = open_store(folder, world), NumberEngine(world), folder / f"log-{world.rank}"
    logging.basicConfig(filename=log, force=True, format="%(message)s")
    paths = [save(store, step, engine, world).path for step in (1, 2)]
    names = sorted(str(path.relative_to(paths[1])) for path in paths[1].rglob("*") if path.is_file())
    assert len(names) == 2 * NUM_RANKS + 2
    damages: list[Callable[[Path], None]] = [flip_byte, truncate, Path.unlink]
    for name in names:
        whole = (paths[1] / name).read_bytes()
        for damage in damages:
            world.barrier()
            if world.is_main:
                log.write_text("")
                damage(paths[1] / name)
            world.barrier()
            assert load(folder, world) == 1
            if world.is_main:
                said = log.read_text()
                assert f"{paths[1]} is broken ({name}" in said and "trying the one before" in said, said
                (paths[1] / name).write_bytes(whole)
    world.barrier()
    assert load(folder, world) == 2


def fill_disk(folder: Path, disk: Path, world: World) -> None:
    """A save that finds the disk full is given up by all ranks, and the next succeeds when there is room again."""
    store, engine, log = open_store(disk, world), NumberEngine(world, num_bytes=100_000), folder / "full-log"
    logging.basicConfig(filename=log, force=True, format="%(message)s")
    assert save(store, 1, engine, world).problem is None
    if world.is_main:
        (disk / "others").write_bytes(bytes(600_000))
    world.barrier()
    for step in (2, 3):
        settled = save(store, step, engine, world)
        assert "No space left on device" in (settled.problem or "") and settled.num_bytes == 0, settled
        assert load(disk, world) == 1
        assert sorted(path.name for path in (disk / "checkpoints").iterdir()) == ["latest", "step-00000001"]
        world.barrier()  # the next save begins when both ranks have looked
    if world.is_main:
        said = log.read_text()
        assert f"{settled.path} could NOT be saved" in said and "bytes were written" in said, said
        (disk / "others").unlink()
    world.barrier()
    assert save(store, 4, engine, world).problem is None
    assert load(disk, world) == 4


def main(folder: Path, *disks: Path) -> None:
    torch.set_num_threads(1)
    if not disks:
        wait_for(fork_ranks(folder, partial(damage_each_file, folder)))
    for disk in disks:
        wait_for(fork_ranks(folder, partial(fill_disk, folder, disk)))
        print((folder / "full-log").read_text())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
