"""finetune.exporting.timm_folder: a copy is verified before it appears, and its card says more than the release's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from configs.base import ConfigError
from engine.events import EventLog
from finetune.export import app
from finetune.exporting.card import split_card
from finetune.exporting.timm_folder import export_release
from tests.support.releases import make_release


def test_an_export_loads_in_plain_timm_with_equal_logits(tmp_path: Path) -> None:
    run = make_release(tmp_path / "run")
    out = tmp_path / "models" / "student"
    result = CliRunner().invoke(app, [str(run), str(out)])
    assert result.exit_code == 0, result.exception
    assert "1 x 28 x 28" in result.output and f"local-dir:{out}" in result.output
    images = torch.rand(2, 1, 28, 28)
    logits = [
        timm.create_model(f"local-dir:{f}", pretrained=True).eval()(images) for f in (run / "release", out)
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    assert [path.name for path in out.parent.iterdir()] == ["student"]


def test_the_card_tells_licences_metrics_calibration_teacher_and_recipe(tmp_path: Path) -> None:
    teacher, run = make_release(tmp_path / "teacher"), make_release(tmp_path / "student", seed=1)
    (teacher / "release" / "README.md").write_text("---\nlicense: mit\n---\n# The teacher\n")
    (run / "release" / "README.md").write_text("---\ntags: [timm]\n---\n# The student\n\nAs released.\n")
    origins = {"teacher": {"path": str(teacher / "release")}, "start": {"path": "hf-hub:who/what"}}
    EventLog(run / "events.jsonl").append("run", run_id="1", config={}, command="c", origins=origins)
    (run / "config.yaml").write_text("model: {name: nf_seresnet26}\n")
    bins = [
        {"confidence": 0.5, "accuracy": 0.25, "num_images": 4},
        {"confidence": 0, "accuracy": 0, "num_images": 0},
    ]
    row = {"path": str(run), "top1": 81.234, "ece": 0.0321, "parameters": 140530, "reliability": bins}
    evaluation = tmp_path / "evaluation.json"
    content = {"data": "shards/val", "data_digest": "abc", "rows": [{"path": str(teacher)}, row]}
    evaluation.write_text(json.dumps(content))

    command = [str(run), str(tmp_path / "out"), "--license", "apache-2.0", "--evaluation", str(evaluation)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception

    text = (tmp_path / "out" / "README.md").read_text()
    front, body = split_card(text)
    assert front == {"tags": ["timm"], "license": "apache-2.0", "metrics": ["accuracy"]}
    assert yaml.safe_load(text.split("---\n")[1]) == front
    assert "As released." in body and "This network: apache-2.0." in body
    assert f"Its teacher, `{teacher / 'release'}`: mit." in body
    assert "Its first weights, `hf-hub:who/what`: not stated." in body
    assert "| top-1, % | 81.23 |" in body and "| parameters | 140,530 |" in body
    assert "On `shards/val`, index digest `abc`" in body and "| 0.500 | 0.250 | 4 |" in body
    assert "```yaml\nmodel: {name: nf_seresnet26}\n```" in body and "| 0.000 |" not in body


def test_an_evaluation_of_something_else_is_refused(tmp_path: Path) -> None:
    run, other = make_release(tmp_path / "run"), make_release(tmp_path / "other")
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps({"rows": [{"path": str(other)}]}))
    result = CliRunner().invoke(app, [str(run), str(tmp_path / "out"), "--evaluation", str(evaluation)])
    assert isinstance(result.exception, ConfigError)
    assert "has no row of" in str(result.exception) and "evaluate it first" in str(result.exception)
    evaluation.write_text("[]")
    result = CliRunner().invoke(app, [str(run), str(tmp_path / "out"), "--evaluation", str(evaluation)])
    assert "was not written by `mirada evaluate --json`" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_broken_release_leaves_nothing_behind(tmp_path: Path) -> None:
    run = make_release(tmp_path / "run")
    weights = run / "release" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "head.fc.bias": torch.full((10,), torch.nan)}, weights)
    with pytest.raises(ConfigError, match=r"hold infinite or undefined numbers, first in 'head\.fc\.bias'"):
        export_release(str(run), tmp_path / "out")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"model\.safetensors of .* is damaged"):
        export_release(str(run), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command_that_could_not_push_pushes_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make_release(tmp_path / "run"), tmp_path / "out"
    pushed: list[str] = []

    def push(folder: Path, name: str) -> str:
        pushed.append(name)
        if len(pushed) == 1:
            raise ConfigError("no network")
        return "address"

    monkeypatch.setattr("finetune.export.push_folder", push)
    command = [str(run), str(out), "--push", "hf-hub:someone/net"]
    assert str(CliRunner().invoke(app, command).exception) == "no network"
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "pushed: address" in again.output

    (out / "config.json").write_text("{}")
    refused = CliRunner().invoke(app, command)
    assert "is another export: it differs in config.json" in str(refused.exception)
    alone = CliRunner().invoke(app, command[:2])
    assert "exists already: give a new name" in str(alone.exception)
    assert pushed == ["someone/net"] * 2 and sorted(path.name for path in tmp_path.iterdir()) == [
        "out",
        "run",
    ]


def test_a_folder_in_use_and_a_name_without_folder_are_refused(tmp_path: Path) -> None:
    run = make_release(tmp_path / "run")
    with pytest.raises(ConfigError, match="exists already: give a new name"):
        export_release(str(run), run)
    with pytest.raises(ConfigError, match="'resnet18' is no folder"):
        export_release("resnet18", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert export_release(str(run), tmp_path / "empty").size == 28
