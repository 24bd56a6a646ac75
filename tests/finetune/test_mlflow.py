"""What evaluation and export put into a real MLflow store: metrics, pictures, a model without pickles, its aliases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from configs.base import ConfigError
from engine.tracking import command as tracking
from engine.tracking.follower import SinkError
from finetune.candidate import load_candidates
from finetune.evaluating.comparison import Comparison
from finetune.evaluating.tracking import track, tracking_place
from finetune.evaluation import app as evaluate_app
from finetune.export import app
from finetune.exporting import formats
from finetune.predict import predict
from models.build import load_release
from tests.finetune.test_evaluation import row
from tests.support.releases import make_release
from tests.support.tracked_run import TrackedRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """A finished run whose events are in MLflow, with a release that names it."""
    folder = tmp_path_factory.mktemp("mlflow")
    run = TrackedRun(folder / "student", f"sqlite:///{folder}/mlflow.db")
    run.start()
    run.log.append("finished", step=1)
    make_release(run.path)
    config = run.path / "release" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "mirada": {"run_id": run.run_id}}))
    tracking.sync(run.path)
    return run


@pytest.mark.slow
def test_an_evaluation_goes_to_the_run_that_made_the_network_else_to_one_of_its_own(
    run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.uri)
    stranger = make_release(tmp_path / "stranger")
    picture = tmp_path / "reliability.png"
    picture.write_bytes(b"a picture")
    rows = (
        row(name="student", path=str(run.path / "release"), top1=81.5, corruptions={"fog": (50.0, 40.0)}),
        row(name="stranger", path=str(stranger), top1=12.5),
    )
    comparison = Comparison(data="shards/val", data_digest="abc", num_images=9, rows=rows, timing="")
    lines = list(track(comparison, {"Reliability": picture}))
    assert lines[0] == f"student: logged to {run.uri} {run.run.info.run_id}"

    own = run.run
    assert own.data.metrics["evaluate/top1"] == 81.5 and own.data.metrics["evaluate/ece"] == 0.1
    assert own.data.metrics["evaluate/corrupted_top1/fog"] == 45.0
    assert own.data.tags["mirada.evaluate.data"] == "shards/val" and own.info.status == "FINISHED"
    files = [Path(file.path).name for file in run.client.list_artifacts(own.info.run_id, "evaluation")]
    assert sorted(files) == ["reliability.png", "student.json"]
    experiment = run.client.get_experiment_by_name("mirada")
    (other,) = run.client.search_runs([experiment.experiment_id])
    assert other.info.run_name == "evaluate stranger" and other.data.metrics["evaluate/top1"] == 12.5
    assert other.info.status == "FINISHED" and lines[1].endswith(other.info.run_id)


@pytest.mark.slow
def test_an_exported_model_predicts_where_mirada_is_not_and_holds_no_pickle(
    run: TrackedRun, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    command = [str(run.path), str(out), "--format", "mlflow", "--register", "flowers@student"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    assert f"models:/flowers@student, version 1 on {run.uri}" in result.output

    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert {"MLmodel", "mlflow_predictor.py", "model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pth", ".pt", ".bin"))]
    version = run.client.get_model_version_by_alias("flowers", "student")
    assert version.run_id == run.run.info.run_id and version.tags["mirada.run_id"] == run.run_id

    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    smooth = cv2.resize(pixels[0], (75, 50))  # another size, and not square
    cv2.imwrite(str(tmp_path / "photograph.png"), smooth)
    np.save(tmp_path / "photograph.npy", smooth[None, :, :, None])
    program = (
        "import sys, mlflow, numpy as np\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    np.save(name.replace('.npy', '-found.npy'), model.predict(np.load(name)))\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('models', 'finetune', 'mirada')]\n"
    )
    files = [str(tmp_path / name) for name in ("pixels.npy", "photograph.npy")]
    arguments = ["models:/flowers@student", *files]
    quiet = {"MLFLOW_TRACKING_URI": run.uri, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments],
        env={**os.environ, **quiet},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    expected = load_release(str(run.path)).eval()((images - 0.3) / 0.35).softmax(1)
    np.testing.assert_allclose(
        np.load(tmp_path / "pixels-found.npy"), expected.detach().numpy(), rtol=1e-4, atol=1e-6
    )
    (candidate,) = load_candidates([str(run.path)], device=torch.device("cpu"))
    (told,) = predict(candidate, [tmp_path / "photograph.png"], top=10)
    probabilities = np.load(tmp_path / "photograph-found.npy")[0]
    np.testing.assert_allclose(
        np.sort(probabilities)[::-1], [guess.probability for guess in told.guesses], rtol=0.05, atol=1e-3
    )


@pytest.mark.slow
def test_the_command_that_could_not_register_registers_the_next_time(
    run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise SinkError("no answer")

    command = [str(run.path), str(tmp_path / "model"), "--format", "mlflow", "--register", "again@student"]
    with monkeypatch.context() as patch:
        patch.setattr(formats, "register_pyfunc", refuse)
        failed = CliRunner().invoke(app, command)
    assert "is written, but not registered: no answer; start the server" in str(failed.exception)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.exception
    assert f"models:/again@student, version 1 on {run.uri}" in again.output


def test_a_missing_address_of_mlflow_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stranger, out = make_release(tmp_path / "stranger"), tmp_path / "model"
    monkeypatch.setattr("finetune.evaluation.compare", lambda *_, **__: pytest.fail("was evaluated"))
    monkeypatch.setattr(formats, "save_pyfunc", lambda *_, **__: pytest.fail("was written"))
    for program, command in (
        (evaluate_app, [str(stranger), "--data", "mirada://sample/test", "--track"]),
        (app, [str(stranger), str(out), "--format", "mlflow", "--register", "net@student"]),
    ):
        result = CliRunner().invoke(program, command)
        assert isinstance(result.exception, ConfigError), result.exception
        assert "does not say where MLflow is" in str(result.exception)


def test_a_checkpoint_that_was_tracked_nowhere_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"does not say where MLflow is: .* set MLFLOW_TRACKING_URI"):
        tracking_place(str(make_release(tmp_path / "stranger")))
    untracked = TrackedRun(tmp_path / "untracked", "off")
    untracked.start()
    with pytest.raises(ConfigError, match="does not say where MLflow is"):
        tracking_place(str(untracked.path))
