"""What is written stays written, and a full disk is called one."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.whole_file import write_whole
from engine.durable import naming_full_disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a file system of its own needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # lazily: a failed writer may still hold a file


def test_torch_on_a_full_disk_raises_the_error_of_a_full_disk(tiny_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as failure, naming_full_disk(tiny_disk):
        torch.save(torch.zeros(1_000_000), tiny_disk / "state.pt")
    assert failure.value.errno == errno.ENOSPC
    assert failure.value.filename == str(tiny_disk)


def test_another_failure_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), naming_full_disk(tmp_path):
        raise RuntimeError("something else")


def test_a_text_replaced_on_a_full_disk_leaves_the_former_one(tiny_disk: Path) -> None:
    write_whole(tiny_disk / "latest", "step-1")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tiny_disk / "latest", "x" * 1_000_000)
    assert (tiny_disk / "latest").read_text() == "step-1"
