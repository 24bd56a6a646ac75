"""Which runs a folder stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.base import ConfigError
from launch.following.event_tail import LOG_NAME
from launch.following.run_folders import find_runs, single_run


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / LOG_NAME).touch()
    return folder


def test_a_run_folder_is_itself_and_nothing_below_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "vit")
    make_run(run / "checkpoints" / "old")
    assert find_runs([run]) == [run] == [single_run(run)]


def test_a_folder_of_folders_is_its_runs_in_order_and_each_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "sweep/lr=1", "sweep/lr=2", "z")]
    make_run(tmp_path / ".hidden" / "run")
    assert find_runs([tmp_path, runs[1]]) == runs


def test_every_folder_without_a_run_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "full" / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ConfigError, match=rf"no run in '{tmp_path}/empty' and '{tmp_path}/missing': name a run"
    ):
        find_runs([tmp_path / "full", tmp_path / "empty", tmp_path / "missing"])
    with pytest.raises(ConfigError, match="is not a run folder"):
        single_run(tmp_path / "full")
