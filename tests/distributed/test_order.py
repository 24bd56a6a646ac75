"""The order of a run with real ranks and real workers: killed, resumed, and with others than before."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil
import pytest

from tests.distributed.order_program import GLOBAL_BATCH, describe, make_loader
from tests.support.run_distributed import Ranks, start_ranks
from tests.support.shards import make_shards

pytestmark = pytest.mark.slow

NUM_STEPS = 60


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    for name, lengths in (("first", [40, 61, 33, 57]), ("second", [35, 29])):
        make_shards(folder / name, lengths, size=(24, 32), suffix="jpg", channels=3)
    return folder


@pytest.fixture(scope="module")
def expected(corpora: Path) -> list[list[list[int]]]:
    """What a single process without workers reads when nothing happens to it."""
    return [describe(batch) for batch in islice(make_loader(corpora, workers=0), NUM_STEPS)]


def start(corpora: Path, out: Path, *, world_size: int, workers: int) -> Ranks:
    program = "tests/distributed/order_program.py"
    return start_ranks([program, str(corpora), str(out), str(NUM_STEPS), str(workers)], world_size=world_size)


def allow(out: Path, num_steps: int) -> None:
    """Lets ranks that run, or will, do so many steps and then wait."""
    (out / ".limit").write_text(str(num_steps))
    (out / ".limit").rename(out / "limit")


def last_step(out: Path, world_size: int) -> int:
    """The furthest step that all of the newest ranks have written down."""
    newest = sorted(out.glob(f"*-of-{world_size}.jsonl"))[-world_size:]
    ends = [lines[-1] for path in newest if (lines := path.read_text().splitlines())]
    return min(json.loads(line)[0] for line in ends) if len(ends) == world_size else -1


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.ppid() != process.pid]


def assert_as_expected(out: Path, expected: list[list[list[int]]]) -> set[int]:
    """Every batch any rank has ever read is that rank's part of the batch of a single process; the steps seen."""
    steps = set()
    for path in out.glob("*.jsonl"):
        rank, _, world_size = path.stem.split("-", 1)[1].split("-")
        share = GLOBAL_BATCH // int(world_size)
        part = slice(int(rank) * share, (int(rank) + 1) * share)
        for line in path.read_text().splitlines():
            step, found = json.loads(line)
            assert found == expected[step][part], f"{path.name}, step {step}"
            steps.add(step)
    return steps


def test_samples_and_pixels_survive_kill_9_of_a_worker_of_a_rank_and_of_all_and_2_1_4_ranks(
    corpora: Path, expected: list[list[list[int]]], tmp_path: Path
) -> None:
    allow(tmp_path, 14)
    two = start(corpora, tmp_path, world_size=2, workers=0)
    two.wait_until(lambda: last_step(tmp_path, 2) >= 12)
    two.processes[1].send_signal(signal.SIGKILL)  # a rank
    two.processes[1].wait()
    two.kill()
    assert json.loads((tmp_path / "position.json").read_text())["step"] == 10

    allow(tmp_path, 14)
    one = start(corpora, tmp_path, world_size=1, workers=3)
    one.wait_until(lambda: last_step(tmp_path, 1) >= 13)
    killed = workers_of(psutil.Process(one.processes[0].pid))
    assert len(killed) >= 3
    killed[0].kill()  # a worker: its rank goes on by itself
    allow(tmp_path, 40)
    one.wait_until(lambda: last_step(tmp_path, 1) >= 28)
    rank = psutil.Process(one.processes[0].pid)
    for process in [*rank.children(recursive=True), rank]:  # all
        with suppress(psutil.NoSuchProcess):  # workers end by themselves when what they come from is gone
            process.kill()
    one.kill()

    allow(tmp_path, NUM_STEPS)
    four = start(corpora, tmp_path, world_size=4, workers=1)
    assert four.wait() == [0] * 4, four.outputs
    assert last_step(tmp_path, 4) == NUM_STEPS - 1
    assert assert_as_expected(tmp_path, expected) == set(range(NUM_STEPS))
