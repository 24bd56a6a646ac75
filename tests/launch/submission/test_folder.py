"""Nobody else may write where the code of a job lies."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from configs.base import ConfigError
from launch.submission.folder import make_private_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = make_private_folder(tmp_path / "runs" / "a")
    assert folder == tmp_path / "runs" / "a" / "launch"
    assert mode(folder) == 0o700
    assert make_private_folder(tmp_path / "runs" / "a") == folder


def test_what_is_made_above_it_is_closed_to_the_group_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o002)
    try:
        make_private_folder(tmp_path / "runs" / "a")
    finally:
        os.umask(former)
    assert (mode(tmp_path / "runs"), mode(tmp_path / "runs" / "a")) == (0o755, 0o755)


@pytest.mark.parametrize("open_mode", [0o775, 0o757, 0o777, 0o720])
@pytest.mark.parametrize("which", ["a", "a/launch"])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, which: str, open_mode: int) -> None:
    make_private_folder(tmp_path / "a")
    (tmp_path / which).chmod(open_mode)
    with pytest.raises(ConfigError) as refused:
        make_private_folder(tmp_path / "a")
    assert f"others may write in '{tmp_path / which}' (mode {open_mode:04o})" in str(refused.value)
    assert f"chmod go-w {tmp_path / which}" in str(refused.value)


def test_a_link_to_somewhere_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "a" / "launch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"launch' is a link.*name another folder with --out"):
        make_private_folder(tmp_path / "a")


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        make_private_folder(tmp_path / "a")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a")
    os.chown(tmp_path / "a", 12_345, 12_345)
    with pytest.raises(ConfigError, match=r"belongs to another user \(number 12345\)"):
        make_private_folder(tmp_path / "a")
