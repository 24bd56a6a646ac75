"""Several tasks, kills at any moment, a real SLURM: the bytes are those of one build that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.packing.build_plan import Layout
from data_pipeline.packing.pack import Effort, build
from data_pipeline.packing.share import Share
from tests.support.images import make_image_folder
from tests.support.slurm import missing_for_slurm, slurm_cluster
from tests.support.stalling_disk import StallingDisk

ROOT = Path(__file__).resolve().parents[3]
SMALL = Layout(shard_size=2)
REENCODE = ("--max-side", "5", "--format", "webp")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "source", per_class=8)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(source: Path, target: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "data_pipeline",
        "build",
        str(source),
        str(target),
        "--shard-size",
        "2",
        *options,
    ]


def one_of(index: int, count: int) -> Effort:
    return Effort(num_workers=1, share=Share(index=index, count=count))


def test_tasks_in_any_order_end_with_the_bytes_of_one_build(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "whole", layout=SMALL)
    for index, missing in ((2, 8), (0, 4), (2, 4)):
        built = build(source, tmp_path / "out", layout=SMALL, effort=one_of(index, 3))
        assert built.num_shards_missing == missing
        assert not (tmp_path / "out" / "_info.json").exists()
    assert build(source, tmp_path / "out", layout=SMALL, effort=one_of(1, 3)).num_shards_written == 4
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_a_dead_task_may_be_replaced_by_one_that_does_whatever_is_missing(
    source: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "whole", layout=SMALL)
    build(source, tmp_path / "out", layout=SMALL, effort=one_of(0, 4))
    (tmp_path / "out" / ".train-000001.tar.node7.4711.partial").write_bytes(b"half")
    alone = Share(index=0, count=1, sparse=True)
    built = build(source, tmp_path / "out", layout=SMALL, effort=Effort(num_workers=1, share=alone))
    assert (built.num_shards_written, built.num_shards_missing) == (9, 0)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_tasks_that_finish_at_the_same_moment_agree(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "whole", layout=SMALL)
    for attempt in range(5):
        target, faults = tmp_path / f"out{attempt}", []

        def run(index: int, target: Path = target, faults: list[BaseException] = faults) -> None:
            try:
                build(source, target, layout=SMALL, effort=one_of(index, 4))
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert content_of(target) == content_of(tmp_path / "whole")


def test_tasks_keep_others_out_and_fresh_is_not_for_them(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(DataError, match="--fresh would delete what other tasks write"):
        build(source, target, effort=Effort(share=Share(index=0, count=2), fresh=True))
    build(source, target, layout=SMALL, effort=one_of(0, 2))
    with pytest.raises(DataError, match="holds a build of other input"):
        build(source, target, layout=Layout(shard_size=3), effort=one_of(1, 2))


def kill_after(
    processes: list[subprocess.Popen[bytes]], target: Path, num_changes: int, disk: StallingDisk
) -> bool:
    """Kills process groups once the target folder was seen to change so often, or they wait for their disk.

    False if they ended before.
    """
    changes, before = 0, None
    while changes < num_changes and not disk.has_stalled:
        if all(process.poll() is not None for process in processes):
            break
        now = sorted(path.name for path in target.iterdir()) if target.exists() else None
        changes, before = changes + (now != before), now
        time.sleep(0.0005)
    killed = [process.poll() is None for process in processes]
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return any(killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tasks",
    [
        [("--workers", "2")],
        [("--workers", "2", *REENCODE)],
        [("--task", "1/2", "--workers", "1"), ("--task", "2/2", "--workers", "1")],
    ],
    ids=["pass-through", "re-encode", "two tasks"],
)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    tasks: list[tuple[str, ...]], tmp_path: Path
) -> None:
    source = make_image_folder(tmp_path / "source", per_class=40)
    options = REENCODE if REENCODE[0] in tasks[0] else ()
    whole = subprocess.run(
        command(source, tmp_path / "whole", *options), cwd=ROOT, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    commands = [command(source, tmp_path / "out", *task) for task in tasks]
    moments, num_killed = random.Random(7), 0
    for start in range(4):
        # Six syncs for each shard: four starts of two writers do not come to the end of 60 shards.
        disk = StallingDisk(tmp_path / f"disk{start}", num_syncs=36)
        processes = [
            subprocess.Popen(
                started,
                cwd=ROOT,
                env=disk.environment,
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            for started in commands
        ]
        num_killed += kill_after(processes, tmp_path / "out", moments.randrange(1, 60), disk)
    assert num_killed == 4
    for last in commands:
        done = subprocess.run(last, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.skipif(bool(missing_for_slurm()), reason=f"needs a real SLURM: {missing_for_slurm()}")
def test_an_array_and_srun_tasks_share_the_work_by_the_same_command(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "whole", layout=SMALL)
    with slurm_cluster(num_nodes=2) as cluster:
        log = tmp_path / "task-%a.log"
        wrapped = " ".join(command(source, tmp_path / "array"))
        cluster.run(
            "sbatch", "--array=0-2", f"--output={log}", f"--wrap={wrapped}",
            PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1",
        )  # fmt: skip
        cluster.run(
            "srun", "-N2", "-n2", *command(source, tmp_path / "srun"),
            PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", timeout_s=120,
        )  # fmt: skip
        cluster.wait_until(
            lambda: not cluster.run("squeue", "-h"), what="the end of the array", timeout_s=120
        )
    told = "".join((tmp_path / f"task-{number}.log").read_text() for number in range(3))
    assert content_of(tmp_path / "array") == content_of(tmp_path / "whole"), told
    assert content_of(tmp_path / "srun") == content_of(tmp_path / "whole")
    assert told.count("wrote 4 shards") + told.count("24 samples, 3 classes, 12 shards") >= 3, told
