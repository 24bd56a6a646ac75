"""Runs of a sweep below one parent in MLflow, in a real SQLite store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.base import ConfigError
from engine.tracking import command as tracking
from engine.tracking.follower import LOCK_NAME, held
from engine.tracking.mlflow_form import RUN_ID_TAG
from engine.tracking.mlflow_parent import PARENT_TAG, update_parent
from launch.many.group import write_parent
from tests.support.tracked_run import TrackedRun

ROOT = Path(__file__).resolve().parents[3]


def child(sweep: Path, name: str) -> TrackedRun:
    run = TrackedRun(sweep / name, f"sqlite:///{sweep}/mlflow.db")
    run.start(**{"tracking.parent": str(sweep)})
    run.train(1, 2)
    return run


@pytest.mark.slow
def test_children_sent_side_by_side_share_one_parent_that_ends_with_the_last(tmp_path: Path) -> None:
    write_parent(tmp_path, name="rates", settings={"optim.lr": "[0.1, 0.2]"})
    first, second = child(tmp_path, "a"), child(tmp_path, "b")
    first.log.append("finished", step=2)
    command = [sys.executable, "-m", "engine.tracking.command"]
    senders = [subprocess.Popen([*command, str(run.path)], cwd=ROOT) for run in (first, second)]
    assert [sender.wait(timeout=600) for sender in senders] == [0, 0]

    parents = {run.run.data.tags[PARENT_TAG] for run in (first, second)}
    (parent_id,) = parents
    parent = first.client.get_run(parent_id)
    assert (parent.info.run_name, parent.data.params) == ("rates", {"optim.lr": "[0.1, 0.2]"})
    assert (first.run.info.status, second.run.info.status) == ("FINISHED", "RUNNING")
    assert parent.info.status == "RUNNING"

    second.start(**{"tracking.parent": str(tmp_path)})
    tracking.sync(second.path)
    assert first.client.get_run(parent_id).info.status == "RUNNING"
    second.log.append("finished", step=2)
    tracking.sync(second.path)
    assert first.client.get_run(parent_id).info.status == "FINISHED"

    write_parent(
        tmp_path, name="rates", settings={"optim.lr": "[0.1, 0.2, 0.3]"}
    )  # submitted again, with one more
    third = child(tmp_path, "c")
    tracking.sync(third.path)
    assert third.run.data.tags[PARENT_TAG] == parent_id
    experiment = parent.info.experiment_id
    assert len(first.client.search_runs([experiment], f"tags.`{RUN_ID_TAG}` != ''")) == 4


@pytest.mark.slow
def test_a_sweep_stays_the_parent_of_a_student_and_the_teacher_is_still_named(tmp_path: Path) -> None:
    write_parent(tmp_path, name="rates", settings={})
    teacher = TrackedRun(tmp_path / "teacher", f"sqlite:///{tmp_path}/mlflow.db")
    teacher.start()
    tracking.sync(teacher.path)
    student = TrackedRun(tmp_path / "student", teacher.uri)
    origins = {"teacher": {"path": "t/release", "run_id": teacher.run_id}}
    student.start(origins=origins, **{"tracking.parent": str(tmp_path)})
    tracking.sync(student.path)
    tags = student.run.data.tags
    assert student.client.get_run(tags[PARENT_TAG]).info.run_name == "rates"
    assert tags["mirada.teacher_run_id"] == teacher.run_id


def test_whether_the_parent_has_ended_is_decided_by_one_child_at_a_time(tmp_path: Path) -> None:
    is_free = []

    def note_lock(*_: object) -> None:
        with held(tmp_path / LOCK_NAME, wait=False) as alone:
            is_free.append(alone)

    run = SimpleNamespace(info=SimpleNamespace(experiment_id="1", status="RUNNING"))
    client: Any = SimpleNamespace(
        get_run=lambda run_id: run, search_runs=lambda *_, **__: [], set_terminated=note_lock
    )
    update_parent(client, "parent", str(tmp_path))
    assert is_free == [False]


@pytest.mark.slow
def test_a_parent_that_is_no_sweep_is_a_message(tmp_path: Path) -> None:
    run = TrackedRun(tmp_path / "a", f"sqlite:///{tmp_path}/mlflow.db")
    run.start(**{"tracking.parent": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"is not the folder of a sweep .* leave the key out"):
        tracking.sync(run.path)
