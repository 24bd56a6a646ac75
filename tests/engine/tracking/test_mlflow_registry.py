"""Released models in MLflow's registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.base import ConfigError
from engine.tracking import command as tracking
from tests.support.tracked_run import TrackedRun


def released(folder: TrackedRun, name: str, *, model: str, top1: float | None) -> TrackedRun:
    run = TrackedRun(folder.path.with_name(f"{folder.path.name}-{name}"), folder.uri)
    run.start(**{"tracking.registry": model})
    run.train(1, 2)
    run.log.append("finished", step=2)
    run.release(top1=top1, weights=name.encode())
    return run


@pytest.mark.slow
def test_releases_become_versions_and_best_is_the_highest_top1_in_any_order(
    folder: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    runs = [
        released(folder, name, model="flowers", top1=top1)
        for name, top1 in (("first", 70.0), ("second", 90.0), ("third", 80.0), ("unscored", None))
    ]
    best = []
    for run in runs:
        tracking.sync(run.path)
        best.append(run.client.get_model_version_by_alias("flowers", "best").version)
    assert [int(version) for version in best] == [1, 2, 2, 2]
    version = folder.client.get_model_version_by_alias("flowers", "best")
    assert version.run_id == runs[1].run.info.run_id
    assert version.tags["mirada.run_id"] == runs[1].run_id
    assert version.tags["mirada.data_digest"] == "5d41402a"
    assert float(version.tags["mirada.top1"]) == 90.0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder.uri)  # as a user of the model has it
    loaded = mlflow.artifacts.download_artifacts("models:/flowers@best", dst_path=str(tmp_path / "best"))
    assert (Path(loaded) / "model.safetensors").read_bytes() == b"second"


def test_syncing_again_makes_no_second_version(folder: TrackedRun) -> None:
    run = released(folder, "run", model="once", top1=50.0)
    tracking.sync(run.path)
    (run.path / "tracking.json").unlink()

    tracking.sync(run.path)

    (version,) = folder.client.search_model_versions("name = 'once'")
    assert float(version.tags["mirada.top1"]) == 50.0


def test_a_registry_that_fails_is_told_and_takes_no_points_with_it(
    folder: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = released(folder, "run", model="later", top1=50.0)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"registered model 'later' on"):
        tracking.sync(run.path)
    assert run.steps() == [1, 2]
    assert run.run.info.status == "FINISHED"
    assert run.is_sent()
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")

    tracking.sync(run.path)

    assert len(folder.client.search_model_versions("name = 'later'")) == 1
