from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.packing.share import ALONE, Share, read_share


def array(number: int, count: int, first: int, last: int, step: int = 1) -> dict[str, str]:
    """What SLURM tells a task of an array."""
    values = {"ID": number, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@settings(deadline=None)
@given(count=st.integers(1, 20), num_shards=st.integers(0, 50))
def test_shares_hold_every_shard_once(count: int, num_shards: int) -> None:
    places = [place for index in range(count) for place in Share(index=index, count=count).places(num_shards)]
    assert sorted(places) == list(range(num_shards))


def test_outside_of_slurm_and_in_a_batch_script_there_is_one_task() -> None:
    assert read_share(None, {}) == ALONE
    # A batch script has these too, although nothing else runs beside it.
    assert read_share(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == ALONE


@pytest.mark.parametrize(
    ("environ", "index", "count"),
    [
        (array(0, 3, 0, 2), 0, 3),
        (array(7, 3, 5, 7), 2, 3),
        (array(9, 4, 1, 13, 4), 2, 4),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1, 2),
        ({**array(2, 3, 0, 2), "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, 9, 12),
    ],
)
def test_places_in_arrays_and_steps_are_found(environ: dict[str, str], index: int, count: int) -> None:
    assert read_share(None, environ) == Share(index=index, count=count)


def test_some_tasks_of_an_array_run_again_do_what_is_missing_wherever_it_is() -> None:
    shares = [read_share(None, array(number, 2, 1, 4)) for number in (1, 4)]
    assert [sorted(share.places(5)) for share in shares] == [list(range(5))] * 2
    assert shares[0].places(8)[0] != shares[1].places(8)[0]
    single = read_share(None, array(2, 1, 2, 2))
    assert (single.places(3), single.is_alone) == ([0, 1, 2], False)


def test_the_option_goes_before_slurm_and_counts_from_one() -> None:
    assert read_share("3/3", array(0, 8, 0, 7)) == Share(index=2, count=3)
    assert read_share("1/1", array(0, 8, 0, 7)) == ALONE


@pytest.mark.parametrize("task", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_task_that_is_none_is_refused(task: str) -> None:
    with pytest.raises(DataError, match=r"K/N with K from 1 to N is needed, such as 2/8"):
        read_share(task, {})
