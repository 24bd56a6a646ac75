"""A conversion that fails is a message; conversions that succeed are tested with real ranks in test_elastic."""

from __future__ import annotations

import errno
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from engine.errors import CheckpointError
from engine.sharding.universal import universal_copy
from engine.world import World


def save_state(folder: Path, **state: torch.Tensor) -> Path:
    """A folder as DeepSpeed saves it at stage 2, as far as it is looked at before the conversion."""
    saved = folder / "step-00000004" / "deepspeed"
    saved.mkdir(parents=True)
    ours = {"base_optimizer_state": {"state": {0: state}}}
    torch.save({"optimizer_state_dict": ours}, saved / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return saved


def do_nothing() -> None:
    pass


def fill_the_disk(arguments: Namespace) -> None:
    (Path(arguments.output_folder) / "half").write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_and_nothing_is_left_behind(tmp_path: Path, world: World) -> None:
    saved = save_state(tmp_path, exp_avg=torch.zeros(2), exp_avg_sq=torch.zeros(2))
    with (
        pytest.raises(
            CheckpointError, match=r"another number of ranks than 1.*No space left on device.*make room"
        ),
        universal_copy(saved, world, fill_the_disk, on_progress=do_nothing),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_optimizer_states_that_deepspeed_does_not_know_are_named(tmp_path: Path, world: World) -> None:
    saved = save_state(tmp_path, momentum_buffer=torch.zeros(2))
    with (
        pytest.raises(CheckpointError, match="does not convert the optimizer states momentum_buffer"),
        universal_copy(saved, world, fill_the_disk, on_progress=do_nothing),
    ):
        pass


def test_the_copy_is_deleted_after_use(tmp_path: Path, world: World) -> None:
    saved = save_state(tmp_path, exp_avg=torch.zeros(2))

    def convert(arguments: Namespace) -> None:
        read = torch.load(next(Path(arguments.input_folder).glob("*_optim_states.pt")), weights_only=False)
        assert set(read["optimizer_state_dict"]["base_optimizer_state"]["state"][0]) == {
            "exp_avg",
            "exp_avg_sq",
            "step",
        }
        (Path(arguments.output_folder) / "whole").write_text("whole")

    with universal_copy(saved, world, convert, on_progress=do_nothing) as universal:
        assert (universal / "whole").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
