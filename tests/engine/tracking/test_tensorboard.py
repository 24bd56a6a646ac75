"""TensorBoard's files, read back with TensorBoard's own reader."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.base import ConfigError
from engine.tracking import command as tracking
from engine.tracking.follower import Follower
from engine.tracking.tensorboard import TensorBoardFiles, check_tensorboard
from tests.support.tracked_run import TrackedRun


@pytest.fixture
def folder(tmp_path: Path) -> TrackedRun:
    """A run that goes to TensorBoard only."""
    run = TrackedRun(tmp_path / "run", "off")
    run.start(**{"tracking.tensorboard": True})
    return run


def points(folder: TrackedRun, name: str = "train/loss", *, part: str = ".") -> Sequence[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder.path / "tensorboard" / part), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(point.step, point.value) for point in accumulator.Scalars(name)]


def test_points_arrive_with_their_time_and_step(folder: TrackedRun) -> None:
    folder.train(1, 3)
    folder.log.append("evaluation", step=3, values={"val/top1": 71.5})
    folder.log.append("system", sample=0, values={"system/cpu_utilization_percentage": 12.5})

    tracking.sync(folder.path)

    assert points(folder) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert points(folder, "val/top1") == [(3, 71.5)]
    assert points(folder, "system/cpu_utilization_percentage", part="system") == [(0, 12.5)]


@pytest.mark.parametrize("forget", [False, True])
def test_writing_again_doubles_nothing(folder: TrackedRun, forget: bool) -> None:
    folder.train(1, 5)
    tracking.sync(folder.path)
    folder.train(6, 8)
    if forget:  # killed between writing and saying so
        (folder.path / "tensorboard.json").unlink()
    tracking.sync(folder.path)
    tracking.sync(folder.path)
    assert [step for step, _ in points(folder)] == list(range(1, 9))


def test_a_torn_record_of_a_killed_follower_is_gone_after_the_next(folder: TrackedRun) -> None:
    folder.train(1, 5)
    tracking.sync(folder.path)
    (file,) = (folder.path / "tensorboard").glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:-7])
    assert len(points(folder, "train/lr")) == 4
    tracking.sync(folder.path)
    assert len(points(folder, "train/lr")) == 5


@pytest.mark.parametrize("while_following", [False, True])
def test_a_rollback_leaves_the_history_as_it_is_now(folder: TrackedRun, while_following: bool) -> None:
    follower = Follower(
        folder.path, lambda start: TensorBoardFiles(folder.path), state_name="tensorboard.json"
    )
    folder.train(1, 6)
    folder.log.append("system", sample=5, values={"system/cpu_utilization_percentage": 12.5})
    if while_following:
        follower.send_all()
    folder.log.append("rolled_back", **{"from": 6, "to": 4})
    folder.train(5, 7, scale=8.0)
    follower.send_all()
    assert points(folder) == [
        (step, pytest.approx((1.0 if step <= 4 else 8.0) / step)) for step in range(1, 8)
    ]
    assert len(points(folder, "system/cpu_utilization_percentage", part="system")) == 1


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tensorboard()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mirada\[tensorboard\]'"):
        check_tensorboard()
