"""A loader's worker processes: the memory they share and hold, and what ends them and what does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from data_pipeline.index import ShardIndex
from data_pipeline.loader import ShardLoader
from tests.support.loading import LENGTHS, configure, take
from tests.support.nginx import wait_until
from tests.support.processes import has_ended
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), LENGTHS)


def test_memory_of_batches_that_are_gone_is_used_for_later_ones(index: ShardIndex) -> None:
    loader = ShardLoader(index, configure(workers=1, prefetch=2), global_batch=16, seed=5)
    alone = take(ShardLoader(index, configure(), global_batch=16, seed=5), 12)
    files, kept = set(), []
    for number, batch in zip(range(12), loader, strict=False):
        files.add(file_behind(batch.images))
        if number % 5 == 0:
            kept.append((number, batch))
        loader.advance()
    assert 1 < len(files) <= 2 + 2 + len(kept)
    for number, batch in kept:
        assert torch.equal(batch.images, alone[number].images)


def test_what_workers_hand_over_lies_in_one_block_of_shared_memory(index: ShardIndex) -> None:
    batch = take(ShardLoader(index, configure(workers=1), global_batch=16, seed=5), 1)[0]
    tensors = (batch.images, batch.targets, batch.sample_ids, batch.weights)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert file_behind(batch.images)


@pytest.mark.slow
@pytest.mark.parametrize("length", [300, 3000])
def test_the_memory_of_a_worker_grows_neither_with_epochs_nor_with_the_corpus(
    tmp_path: Path, length: int
) -> None:
    index = make_shards(tmp_path, [length // 10] * 10, size=(16, 16))
    data = configure(workers=1, prefetch=2)
    loader = ShardLoader(index, data, global_batch=length // 10, seed=0)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    batches = iter(loader)
    next(batches)
    (worker,) = [c for c in psutil.Process().children(recursive=True) if c.pid not in before][-1:]
    resident = []
    for epoch in range(21):
        for _ in range(loader.batches_per_epoch):
            next(batches)
        if epoch:
            resident.append(own_memory(worker.pid))
    settled = resident[4:]
    assert abs(np.polyfit(np.arange(len(settled)), settled, 1)[0]) < 0.1, resident  # MiB per epoch
    assert max(settled) - min(settled) < 4, resident
    assert max(settled) < 400, resident  # most of it are torch's tables


def own_memory(pid: int) -> float:
    """MiB of a process that are from no file, and its blocks of shared memory.

    NOTE: not what it has alone (USS), which grows by libraries when another process that has them too comes to its end.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(size) for name, size, _ in (line.split() for line in lines)}
    return (kilobytes["Anonymous:"] + kilobytes["Pss_Shmem:"]) / 1024


# The program that a signal or a kill hits: its own process, so that workers have a parent of their own.
PROGRAM = """
import sys, time
if __name__ != "__main__":
    sys.exit("a worker imported the main module")
from configs.data import DataConfig
from data_pipeline.index import open_index
from data_pipeline.loader import ShardLoader
data = DataConfig(train="unused", image_size=28, channels=1, mean=(0.5,), std=(0.5,), workers=2)
loader = ShardLoader(open_index(sys.argv[1]), data, global_batch=16, seed=0)
batches = iter(loader)
next(batches)
print("started", flush=True)
for line in sys.stdin:
    if line.strip() == "fail":
        raise SystemError("the training process fails")
    for _ in range(10):
        next(batches)
    print("went on", flush=True)
"""


@pytest.fixture
def program(index: ShardIndex, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script), str(index.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_signals_sent_to_all_processes_of_a_job_do_not_stop_the_workers(
    program: subprocess.Popen[str],
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        for child in psutil.Process(program.pid).children(recursive=True):
            child.send_signal(number)
        assert ask(program, "go on") == "went on\n"


@pytest.mark.slow
def test_workers_end_when_the_training_process_is_killed(program: subprocess.Popen[str]) -> None:
    children = psutil.Process(program.pid).children(recursive=True)
    assert len(children) >= 3
    program.kill()
    wait_until(lambda: all(has_ended(child) for child in children))


@pytest.mark.slow
def test_a_training_process_that_fails_ends_with_its_workers_and_does_not_hang(
    program: subprocess.Popen[str],
) -> None:
    children = psutil.Process(program.pid).children(recursive=True)
    _, stderr = program.communicate("fail\n", timeout=120)
    assert program.returncode == 1
    assert "the training process fails" in stderr
    wait_until(lambda: all(has_ended(child) for child in children))


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_run_goes_on(program: subprocess.Popen[str]) -> None:
    children = psutil.Process(program.pid).children(recursive=True)
    killed = next(child for child in children if child.ppid() != program.pid)
    killed.kill()
    assert ask(program, "go on") == "went on\n"
    assert ask(program, "go on") == "went on\n"
    workers = psutil.Process(program.pid).children(recursive=True)
    assert killed.pid not in [child.pid for child in workers if not has_ended(child)]


def file_behind(tensor: torch.Tensor) -> str:
    """Device and number of the file that a tensor's memory is shared by."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, _offset, device, inode = line.split()[:5]
        first, end = (int(address, 16) for address in span.split("-"))
        if first <= tensor.data_ptr() < end and rights.endswith("s"):
            return f"{device} {inode}"
    raise AssertionError("the memory of this tensor is not shared")


def ask(program: subprocess.Popen[str], line: str) -> str:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(line + "\n")
    program.stdin.flush()
    return program.stdout.readline()
