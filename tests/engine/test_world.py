"""Who a process is, from what its launcher says."""

from __future__ import annotations

import pytest

from engine.world import Place, World, read_place


def test_without_a_launcher_a_process_is_alone() -> None:
    assert read_place({}) == Place(
        rank=0, size=1, local_rank=0, local_size=1, master_addr=None, master_port=None
    )


def test_torchrun_says_rank_size_and_where_rank_0_is() -> None:
    environ = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "1234",
    }
    expected = Place(rank=5, size=8, local_rank=1, local_size=4, master_addr="10.0.0.7", master_port=1234)
    assert read_place(environ) == expected


def slurm(procid: int, **more: str) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(procid),
        "SLURM_STEP_NUM_TASKS": "6",
        "SLURM_LOCALID": "2",
        "SLURM_TASKS_PER_NODE": "4(x1),2",
        "SLURM_JOB_ID": "77",
        **more,
    }


def test_slurm_says_the_same_and_all_ranks_of_a_step_take_the_same_port() -> None:
    first, last = read_place(slurm(0)), read_place(slurm(5))
    assert (last.rank, last.size, last.local_rank, last.local_size) == (5, 6, 2, 4)
    assert first.master_port == last.master_port
    assert first.master_port is not None and 1024 < first.master_port < 32768


def test_two_steps_of_one_job_take_different_ports() -> None:
    assert (
        read_place(slurm(0, SLURM_STEP_ID="0")).master_port
        != read_place(slurm(0, SLURM_STEP_ID="1")).master_port
    )


def test_torchrun_inside_a_slurm_job_goes_before_slurm() -> None:
    assert read_place({**slurm(3), "RANK": "1", "WORLD_SIZE": "2"}).size == 2


@pytest.mark.parametrize(
    "environ",
    [{"SLURM_PROCID": "0"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}],
)
def test_one_task_of_slurm_is_alone(environ: dict[str, str]) -> None:
    assert read_place(environ).size == 1


def test_a_world_of_one_agrees_with_itself(world: World) -> None:
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.max(3) == 3
    assert world.broadcast("a") == "a"
    assert world.gather("a") == ["a"]
    world.barrier()
