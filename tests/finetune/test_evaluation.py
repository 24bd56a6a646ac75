"""finetune.evaluation: the numbers are those of independent references, and the program says what it needs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from timm.models import save_for_hf
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from typer.testing import CliRunner

from configs.base import ConfigError
from data_pipeline.index import open_index
from data_pipeline.loader import EvalLoader
from finetune.candidate import load_candidates, parse_device
from finetune.evaluation import (
    Comparison,
    Row,
    app,
    as_table,
    compare,
    images_per_second,
    with_prefix,
    write_json,
)

SAMPLE = "mirada://sample/test"
CPU = torch.device("cpu")


def make_release(
    run: Path, *, seed: int = 0, num_classes: int = 10, label_names: list[str] | None = None
) -> Path:
    torch.manual_seed(seed)
    body = {"depths": (1, 1), "channels": (16, 32), "stem_type": "3x3", "stem_chs": 8}
    args: dict[str, Any] = {**body, "in_chans": 1, "num_classes": num_classes}
    stats = {"mean": (0.3,), "std": (0.35,), "input_size": (1, 28, 28)}
    model = timm.create_model("nf_seresnet26", pretrained_cfg_overlay=stats, **args)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(
            parameter, std=1.0
        )  # confident and wrong, so that calibration has something to measure
    config: dict[str, Any] = {"model_args": args, **({"label_names": label_names} if label_names else {})}
    save_for_hf(model, run / "release", model_config=config, safe_serialization=True)
    return run


def row(**changes: Any) -> Row:
    values = {
        "name": "a",
        "path": "p",
        "top1": 1.0,
        "top5": 2.0,
        "ece": 0.1,
        "parameters": 1,
        "flops": 1,
        "images_per_s": 1.0,
    }
    return Row(**{**values, **changes})


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_scores_equal_torchmetrics_on_all_images(tmp_path: Path, batch_size: int) -> None:
    candidates = load_candidates([str(make_release(tmp_path / "student"))], device=CPU)
    (got,) = compare(candidates, SAMPLE, batch_size=batch_size, device=CPU).rows

    loader = EvalLoader(open_index(SAMPLE), candidates[0].data_config(SAMPLE), batch_size=100)
    batches = list(loader)
    images = torch.cat([batch.images for batch in batches]).double()
    targets = torch.cat([batch.targets for batch in batches])
    assert sorted(torch.cat([batch.sample_ids for batch in batches]).tolist()) == list(range(1000))
    with torch.no_grad():
        probabilities = candidates[0].model(((images / 255 - 0.3) / 0.35).float()).softmax(1)
    top1 = MulticlassAccuracy(num_classes=10, average="micro")(probabilities, targets)
    top5 = MulticlassAccuracy(num_classes=10, average="micro", top_k=5)(probabilities, targets)
    ece = MulticlassCalibrationError(num_classes=10, n_bins=15, norm="l1")(probabilities, targets)
    assert got.top1 == pytest.approx(100 * float(top1), abs=1e-3)
    assert got.top5 == pytest.approx(100 * float(top5), abs=1e-3)
    assert got.ece == pytest.approx(float(ece), abs=1e-5)
    assert got.ece > 0.05


def test_the_program_compares_checkpoints_and_writes_json(tmp_path: Path) -> None:
    runs = [make_release(tmp_path / name, seed=seed) for seed, name in enumerate(("teacher", "student"))]
    out = tmp_path / "new" / "scores.json"
    command = [
        str(runs[0]),
        str(runs[1] / "release"),
        "--data",
        SAMPLE,
        "--json",
        str(out),
        "--batch-size",
        "250",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "1,000 images" in result.output and "teacher" in result.output and "batch 64" in result.output
    written = json.loads(out.read_text())
    assert written["data"] == SAMPLE and written["num_images"] == 1000
    assert [entry["name"] for entry in written["rows"]] == ["teacher", "student"]
    expected = {"name", "path", "top1", "top5", "ece", "parameters", "flops", "images_per_s"}
    assert all(entry.keys() == expected for entry in written["rows"])
    assert written["rows"][0]["top1"] != written["rows"][1]["top1"]
    assert [path.name for path in out.parent.iterdir()] == ["scores.json"]


def test_two_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [str(make_release(tmp_path / folder / "run")) for folder in ("a", "b")]
    other = str(make_release(tmp_path / "other") / "release")
    assert [candidate.name for candidate in load_candidates([*runs, other], device=CPU)] == [*runs, "other"]


def test_other_classes_than_the_datas_are_refused(tmp_path: Path) -> None:
    few = load_candidates([str(make_release(tmp_path / "few", num_classes=3))], device=CPU)
    with pytest.raises(
        ConfigError, match="'few' tells 3 classes apart and the data 'mirada://sample/test' has 10"
    ):
        compare(few, SAMPLE, batch_size=100, device=CPU)
    names = ["Trouser", *list(open_index(SAMPLE).classes)[1:]]
    other = load_candidates([str(make_release(tmp_path / "other", label_names=names))], device=CPU)
    with pytest.raises(ConfigError, match="class 0 is 'Trouser' for 'other' and 'T-shirt/top' in"):
        compare(other, SAMPLE, batch_size=100, device=CPU)


def test_no_checkpoint_and_no_such_device_are_mistakes() -> None:
    with pytest.raises(ConfigError, match="no checkpoint is given"):
        load_candidates([], device=CPU)
    with pytest.raises(ConfigError, match="--device 'gpu9' cannot be used"):
        parse_device("gpu9")
    assert parse_device("cpu") == CPU


def test_speed_is_images_over_seconds() -> None:
    assert images_per_second(torch.nn.Flatten(), (1, 4, 4), device=CPU) > 1000


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (76_858, "76.9 k"),
        (999_600, "1 M"),
        (35_164_544, "35.2 M"),
        (17.6e9, "17.6 G"),
    ],
)
def test_counts_are_written_with_three_digits(count: float, text: str) -> None:
    assert with_prefix(count) == text


def test_the_best_of_several_is_bold_and_eighty_columns_suffice() -> None:
    rows = (
        row(name="teacher", top1=93.5, parameters=315_000),
        row(name="student-control", top1=85.125, flops=3_200_000),
    )
    comparison = Comparison(data=SAMPLE, num_images=1000, rows=rows, timing="warm")
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    console.print(as_table(comparison))
    text = console.export_text(styles=True)
    assert "\x1b[1m93.50\x1b[0m" in text and "85.12" in text and "student-control" in text


def test_a_failed_write_leaves_the_old_json(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(Comparison(data=SAMPLE, num_images=1, rows=(row(name=object()),), timing=""), path)
    assert path.read_text() == "old"
