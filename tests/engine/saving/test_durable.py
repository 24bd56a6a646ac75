"""What is written stays written, and a full disk is called one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.whole_file import write_whole
from engine.saving.durable import naming_disk_errors


def save_with_torch(path: Path) -> None:
    torch.save(torch.zeros(1_000_000), path)


def save_with_safetensors(path: Path) -> None:
    save_file({"weight": torch.zeros(1_000_000)}, path)


@pytest.mark.parametrize("save", [save_with_torch, save_with_safetensors])
def test_a_library_on_a_full_disk_raises_the_error_of_a_full_disk(
    save: Callable[[Path], None], small_disk: Path
) -> None:
    path = small_disk / "state"
    with pytest.raises(OSError, match="No space left on device") as failure, naming_disk_errors(path):
        save(path)
    assert failure.value.errno == errno.ENOSPC
    assert failure.value.filename == str(path)


def test_another_failure_stays_what_it_is(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="something else"),
        naming_disk_errors(tmp_path / "file"),
    ):
        raise RuntimeError("something else")


def test_a_text_replaced_on_a_full_disk_leaves_the_former_one(small_disk: Path) -> None:
    write_whole(small_disk / "latest", "step-1")
    with pytest.raises(OSError, match="No space left"):
        write_whole(small_disk / "latest", "x" * 2_000_000)
    assert (small_disk / "latest").read_text() == "step-1"
