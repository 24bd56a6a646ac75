"""What MLflow holds of a run, in a real SQLite store."""

from __future__ import annotations

import json

import pytest

from engine.tracking import command as tracking
from engine.tracking.follower import STATE_NAME
from engine.tracking.mlflow_form import RUN_ID_TAG
from tests.support.tracked_run import TrackedRun


@pytest.mark.slow
def test_points_params_tags_data_sets_status_and_files_arrive(folder: TrackedRun) -> None:
    folder.start()
    folder.train(1, 3)
    folder.log.append("evaluation", step=3, values={"val/top1": 71.5, "val_raw/top1": 70.25})
    folder.log.append("checkpoint", step=3, path="checkpoints/step_3")
    folder.release()
    folder.log.append("finished", step=3)

    tracking.sync(folder.path)

    run = folder.run
    assert folder.points() == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert folder.points("val/top1") == [(3, 71.5)]
    assert folder.points("val_raw/top1") == [(3, 70.25)]
    assert run.data.params["model.name"] == "vit_tiny"
    assert run.data.params["data.scale"] == "[0.1, 1.0]"
    assert run.data.tags["mlflow.source.git.commit"] == "3f9c2ab"
    assert run.data.tags["mirada.data_digest"] == "5d41402a"
    assert run.data.tags["mirada.checkpoint"] == "checkpoints/step_3"
    assert run.data.tags["slurm.job_id"] == "4711"
    assert run.info.run_name == folder.path.name
    assert run.info.status == "FINISHED"
    files = {file.path for file in folder.client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "release"}


def test_the_data_it_trains_and_is_evaluated_on_are_inputs_once_over_all_starts(folder: TrackedRun) -> None:
    import mlflow.data

    for _ in range(2):
        folder.start()
        tracking.sync(folder.path)

    inputs = folder.run.inputs.dataset_inputs
    found = {given.tags[0].value: given.dataset for given in inputs}
    assert len(inputs) == len(found) == 2
    assert (found["training"].name, found["training"].digest) == ("flowers/train", "train41402a")
    assert (found["validation"].name, found["validation"].digest) == ("flowers/valid", "valid41402a")
    assert json.loads(found["training"].profile) == {"num_samples": 90}
    # MLflow itself understands where they lie.
    assert mlflow.data.get_source(found["training"]).uri == "s3://bucket/flowers/train"
    assert mlflow.data.get_source(found["validation"]).uri == "/data/flowers/val"


def test_points_keep_their_time(folder: TrackedRun) -> None:
    folder.start()
    folder.train(1, 1)
    event = json.loads((folder.path / "events.jsonl").read_text().splitlines()[1])

    tracking.sync(folder.path)

    (point,) = folder.client.get_metric_history(folder.run.info.run_id, "train/loss")
    assert point.timestamp == int(event["time"] * 1000)


@pytest.mark.parametrize("forget", ["nothing", "state", "half of the state"])
def test_following_twice_doubles_nothing(folder: TrackedRun, forget: str) -> None:
    folder.start()
    folder.train(1, 5)
    tracking.sync(folder.path)
    folder.train(6, 8)
    state = folder.path / STATE_NAME
    if forget == "state":  # killed between sending and writing it down
        state.unlink()
    elif forget == "half of the state":
        state.write_text(state.read_text()[:20])

    tracking.sync(folder.path)
    tracking.sync(folder.path)

    assert folder.steps() == list(range(1, 9))


def test_steps_that_come_again_are_sent_where_they_are_not_there_yet(folder: TrackedRun) -> None:
    folder.start()
    folder.train(2, 6)
    tracking.sync(folder.path)
    folder.start()  # killed, and started again with train.log_every lowered
    folder.log.append("resumed", step=0)
    folder.train(1, 7)

    tracking.sync(folder.path)

    assert folder.steps() == list(range(1, 8))


def test_after_a_rollback_no_step_has_two_points_and_the_run_says_so(folder: TrackedRun) -> None:
    folder.start()
    folder.train(1, 6)
    tracking.sync(folder.path)
    folder.log.append("rolled_back", **{"from": 6, "to": 4})
    folder.train(5, 8, scale=10.0)

    tracking.sync(folder.path)

    # MLflow cannot take a point back: what was sent stays, and what is new goes on from there.
    assert folder.points() == [(step, 1 / step) for step in range(1, 7)] + [
        (step, 10 / step) for step in (7, 8)
    ]
    assert folder.run.data.tags["mirada.rolled_back"] == "from step 6 to step 4"
    assert folder.run.info.status == "RUNNING"


def test_what_was_undone_before_it_was_sent_never_arrives(folder: TrackedRun) -> None:
    folder.start()
    folder.train(1, 6)
    folder.log.append("rolled_back", **{"from": 6, "to": 4})
    folder.train(5, 6, scale=10.0)
    folder.start()
    folder.log.append("resumed", step=5)
    folder.train(6, 7, scale=20.0)

    tracking.sync(folder.path)

    scales = [1.0] * 4 + [10.0] + [20.0] * 2
    assert folder.points() == [(step, scale / step) for step, scale in enumerate(scales, 1)]


def test_samples_of_the_host_are_numbered_and_no_rollback_takes_them_back(folder: TrackedRun) -> None:
    folder.start()
    for sample in range(4):
        values = {"system/cpu_utilization_percentage": 10.0 * sample}
        folder.log.append("system", sample=sample, values=values)
    folder.log.append("rolled_back", **{"from": 9, "to": 0})

    tracking.sync(folder.path)

    expected = [(sample, 10.0 * sample) for sample in range(4)]
    assert folder.points("system/cpu_utilization_percentage") == expected


@pytest.mark.parametrize(
    ("kind", "status"), [("finished", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED")]
)
def test_status_follows_the_events_and_a_restart_reopens_the_run(
    folder: TrackedRun, kind: str, status: str
) -> None:
    folder.start()
    tracking.sync(folder.path)
    assert folder.run.info.status == "RUNNING"
    folder.log.append(kind, step=1, reason="SIGUSR1", error="boom")
    tracking.sync(folder.path)
    assert folder.run.info.status == status
    folder.start()
    folder.log.append("resumed", step=1)
    tracking.sync(folder.path)
    assert folder.run.info.status == "RUNNING"


def test_a_param_that_changed_since_is_kept_as_a_tag(folder: TrackedRun) -> None:
    folder.start()
    tracking.sync(folder.path)
    folder.start(**{"optim.lr": 0.5})

    tracking.sync(folder.path)

    assert folder.run.data.params["optim.lr"] == "0.001"
    assert folder.run.data.tags["changed.optim.lr"] == "0.5"


def test_long_values_odd_names_and_many_points_are_made_to_fit(folder: TrackedRun) -> None:
    folder.start(**{"model.args": "x" * 9000, "odd@name": 1})
    folder.log.append("metrics", step=1, values={f"train/part@{i}": float(i) for i in range(1200)})
    folder.log.append("failed", error="y" * 90_000)

    tracking.sync(folder.path)

    run = folder.run
    assert len(run.data.metrics) == 1200
    assert run.data.metrics["train/part_7"] == 7.0
    assert run.data.params["model.args"] == "x" * 6000
    assert run.data.params["odd_name"] == "1"
    assert len(run.data.tags["mirada.error"]) == 5000


def test_a_student_is_linked_to_its_teacher_and_becomes_its_child_once_the_teacher_is_there(
    folder: TrackedRun,
) -> None:
    teacher = TrackedRun(folder.path.with_name(f"teacher-of-{folder.path.name}"), folder.uri)
    origin = {"path": f"{teacher.path}/release", "run_id": teacher.run_id}
    folder.start(origins={"teacher": origin, "start": {"path": "vit_small_patch16_224"}})
    tracking.sync(folder.path)
    tags = folder.run.data.tags
    assert (tags["mirada.teacher"], tags["mirada.teacher_run_id"]) == (origin["path"], teacher.run_id)
    assert tags["mirada.start"] == "vit_small_patch16_224"
    assert "mlflow.parentRunId" not in tags
    teacher.start()
    tracking.sync(teacher.path)

    tracking.sync(folder.path)

    assert folder.run.data.tags["mlflow.parentRunId"] == teacher.run.info.run_id
    assert teacher.run.data.tags[RUN_ID_TAG] == origin["run_id"]


def test_a_teacher_in_another_experiment_is_no_parent(folder: TrackedRun) -> None:
    teacher = TrackedRun(folder.path.with_name(f"teacher-of-{folder.path.name}"), folder.uri)
    teacher.start(**{"tracking.experiment": "teachers"})
    tracking.sync(teacher.path)
    folder.start(origins={"teacher": {"path": "teacher/release", "run_id": teacher.run_id}})

    tracking.sync(folder.path)

    assert folder.run.data.tags["mirada.teacher_run_id"] == teacher.run_id
    assert "mlflow.parentRunId" not in folder.run.data.tags
