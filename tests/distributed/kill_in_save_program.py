"""Two ranks that save, are killed in the middle of it and start again: once for each thing a save does to the disk.

``kill_in_save_program.py FOLDER VICTIM`` lets one rank die; the other is killed as soon as that is dead.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from engine.saving.checkpoint import CheckpointStore
from engine.sharding.zero import Engine
from engine.world import World
from tests.support.forked_ranks import NUM_RANKS, NumberEngine, fork_ranks, wait_for

KEEP = 2
PUBLISH = "os.rename /.partial-step-N 1"

_ASIDE = rf"[.]{re.escape(socket.gethostname())}[.]\d+[.]partial$"


class Doom:
    """Writes down the name of each thing this process does to the disk below a folder, and kills it just before one.

    A name is what is done, to which file, and for which time, as in ``flush /.latest 1``. NOTE: the audit hook stays.
    """

    def __init__(self, folder: Path, notes: Path, victim_of: str | None) -> None:
        self._folder = str(folder)
        self._notes = notes
        self._victim_of = victim_of
        self._times: Counter[str] = Counter()
        self._fsync = os.fsync
        os.fsync = self._flush
        sys.addaudithook(self._hear)
        self.armed = True

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        reads = event == "open" and not int(values[2]) & (os.O_WRONLY | os.O_RDWR)
        if event in ("open", "mirada.half", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and not reads:
            self._step(event, str(values[0]))

    def _flush(self, descriptor: int) -> None:
        """What is not flushed may be lost when the power is: half of the file is when the end comes here."""
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        self._step("flush", str(path), losing=descriptor if path.is_file() else None)
        self._fsync(descriptor)

    def _step(self, event: str, path: str, losing: int | None = None) -> None:
        if not self.armed or not path.startswith(self._folder):
            return
        place = re.sub(r"step-\d{8}(-\w{8})?", "step-N", path.removeprefix(self._folder))
        key = f"{event} {re.sub(_ASIDE, '', place)}"
        self._times[key] += 1
        name = f"{key} {self._times[key]}"
        self.armed = False  # the notes are none of a save's business
        with self._notes.open("a") as notes:
            notes.write(name + "\n")
        self.armed = True
        if name == self._victim_of:
            if losing is not None:
                os.ftruncate(losing, os.fstat(losing).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def live(folder: Path, former: int, victim: int, victim_of: str | None, world: World) -> None:
    """Resumes where it must, on all ranks the same, and saves the next step, in which the victim dies."""
    log, checkpoints = folder / "log", folder / "checkpoints"
    logging.basicConfig(filename=log, filemode="w", force=True, format="%(message)s", level=logging.WARNING)
    unfinished = list(checkpoints.glob(".partial-*"))
    world.barrier()
    engine = NumberEngine(world)
    store = CheckpointStore(checkpoints, world, keep=KEEP, run_digest="run")
    found = store.load_newest(cast(Engine, engine))
    step = 0 if found is None else found.step
    assert world.gather(step) == [former] * NUM_RANKS, (world.gather(step), former)
    assert bool((engine.weights == step).all()), engine.weights
    if found is not None:
        assert (found.shared, found.own) == ({"step": step}, {"rank": world.rank})
        assert engine.saved_by == NUM_RANKS
    assert not list(checkpoints.glob(".*")), list(checkpoints.glob(".*"))
    if world.is_main and unfinished:
        said = log.read_text()
        assert f"step-{step + 1:08d} did not come to its end" in said, said
        assert found is not None and f"going on from {found.path}" in said, said
    world.barrier()
    doom = Doom(checkpoints, folder / "notes", victim_of) if world.rank == victim else None
    engine.weights.fill_(step + 1)
    store.save(step + 1, cast(Engine, engine), shared={"step": step + 1}, own={"rank": world.rank})
    engine.weights.fill_(-1)  # as training does while the save is written
    settled = store.settle(wait=True)
    assert settled is not None and settled.problem is None and settled.path.is_dir(), settled
    if doom is not None:
        doom.armed = False
    kept = [f"step-{number:08d}" for number in range(max(1, step + 2 - KEEP), step + 2)]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", *kept]
    assert (checkpoints / "latest").read_text() == kept[-1] + "\n"


def kill_before(folder: Path, former: int, victim: int, name: str) -> bool:
    """One life, killed when the victim was about to do what is named; whether it came to that."""
    pids = fork_ranks(folder, partial(live, folder, former, victim, name))
    _, status = os.waitpid(pids[victim], 0)
    other = pids[1 - victim]
    if os.WIFSIGNALED(status):
        os.kill(other, signal.SIGKILL)
    end = os.waitstatus_to_exitcode(status), os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
    # The other one may see the connection close before it is killed.
    assert end in [(0, 0), (-signal.SIGKILL, -signal.SIGKILL), (-signal.SIGKILL, 1)], end
    return os.WIFSIGNALED(status)


def main(folder: Path, victim: int) -> None:
    torch.set_num_threads(1)
    notes = folder / "notes"
    for former in range(KEEP + 1):  # until there is one to remove
        notes.unlink(missing_ok=True)
        wait_for(fork_ranks(folder, partial(live, folder, former, victim, None)))
    names, step, published = notes.read_text().splitlines(), KEEP + 1, False
    for name in names:
        died = kill_before(folder, step, victim, name)
        assert died or "os.mkdir" in name, name  # a folder may be there already, made by the other rank
        stands = (folder / "checkpoints" / f"step-{step + 1:08d}").is_dir()
        assert stands == (not died or published), name
        step += int(stands)
        published = published or name == PUBLISH
    wait_for(fork_ranks(folder, partial(live, folder, step, victim, None)))
    print("\n".join(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
