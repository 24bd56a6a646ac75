"""finetune.evaluation: the numbers are those of independent references, on any number of ranks."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from typer.testing import CliRunner

from configs.base import ConfigError
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.loader import EvalLoader
from data_pipeline.pixels.corruptions.corrupt import corrupt
from engine.world import World
from finetune.candidate import Candidate, load_candidates, parse_device
from finetune.evaluating import comparison as comparing
from finetune.evaluating.comparison import Comparison, Row, compare, write_json
from finetune.evaluating.pictures import draw_pictures
from finetune.evaluating.table import as_table, with_prefix
from finetune.evaluation import app, open_world
from models.dynamic import dynamic_blocks
from models.throughput import Throughput
from models.zero_shot import ZeroShot, class_tokens
from tests.support.captioned import tiny_pairing
from tests.support.releases import make_release
from tests.support.shards import make_shards

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = "mirada://sample/test"
CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured elsewhere."""
    monkeypatch.setattr(comparing, "measure_latency", lambda model, shape, images: 0.002)
    monkeypatch.setattr(
        comparing,
        "measure_throughput",
        lambda model, shape, images: Throughput(batch_size=8, images_per_s=900.0),
    )


def load(run: Path) -> Candidate:
    return load_candidates([str(run)], device=CPU)[0]


def row(**changes: Any) -> Row:
    values = {
        "name": "a",
        "path": "p",
        "top1": 1.0,
        "top5": 2.0,
        "ece": 0.1,
        "parameters": 1,
        "flops": 1,
        "latency_ms": 1.0,
        "images_per_s": 1.0,
        "batch_size": 8,
        "reliability": (),
        "classes": (),
        "confusions": (),
        "corrupted_top1": None,
        "corruptions": {},
    }
    return Row(**{**values, **changes})


def all_images(candidate: Candidate) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Pixels [N, S, S, C], targets and sample ids of the sample, each image once."""
    batches = list(EvalLoader(open_index(SAMPLE), candidate.data_config(SAMPLE), batch_size=100))
    pixels = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    ids = torch.cat([batch.sample_ids for batch in batches])
    assert sorted(ids.tolist()) == list(range(1000))
    return pixels, torch.cat([batch.targets for batch in batches]), ids


def probabilities(candidate: Candidate, pixels: np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    with torch.no_grad():
        return candidate.model(((images / 255 - 0.3) / 0.35).float()).softmax(1)


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_scores_equal_torchmetrics_on_all_images(tmp_path: Path, batch_size: int, unhurried: None) -> None:
    candidate = load(make_release(tmp_path / "student"))
    (got,) = compare([candidate], SAMPLE, batch_size=batch_size, world=ALONE).rows

    pixels, targets, _ = all_images(candidate)
    found = probabilities(candidate, pixels)
    top1 = MulticlassAccuracy(num_classes=10, average="micro")(found, targets)
    top5 = MulticlassAccuracy(num_classes=10, average="micro", top_k=5)(found, targets)
    ece = MulticlassCalibrationError(num_classes=10, n_bins=15, norm="l1")(found, targets)
    assert got.top1 == pytest.approx(100 * float(top1), abs=1e-3)
    assert got.top5 == pytest.approx(100 * float(top5), abs=1e-3)
    assert got.ece == pytest.approx(float(ece), abs=1e-5)
    assert got.ece > 0.05
    gaps = [part.num_images * abs(part.accuracy - part.confidence) for part in got.reliability]
    assert len(gaps) == 15 and sum(gaps) / 1000 == pytest.approx(got.ece)

    matrix = np.zeros((10, 10), int)
    for true, predicted, count in got.confusions:
        matrix[true, predicted] = count
    assert np.array_equal(matrix, confusion_matrix(targets, found.argmax(1), labels=range(10)))
    assert [one.name for one in got.classes] == list(open_index(SAMPLE).classes)
    assert [one.num_correct for one in got.classes] == matrix.diagonal().tolist()
    assert (got.latency_ms, got.images_per_s, got.batch_size) == (2.0, 900.0, 8)


def test_corrupted_images_are_scored_as_if_they_were_corrupted_one_by_one(
    tmp_path: Path, unhurried: None
) -> None:
    candidate = load(make_release(tmp_path / "student"))
    names = ("shot_noise", "contrast")
    (got,) = compare([candidate], SAMPLE, batch_size=128, world=ALONE, corruptions=names).rows
    pixels, targets, ids = all_images(candidate)
    assert got.corruptions.keys() == set(names)
    for name, severity in (("shot_noise", 2), ("contrast", 5)):
        changed = [
            corrupt(image, name, severity, seed=0, sample_id=sample)
            for image, sample in zip(pixels, ids.tolist(), strict=True)
        ]
        correct = probabilities(candidate, np.stack(changed)).argmax(1) == targets
        assert got.corruptions[name][severity - 1] == pytest.approx(
            100 * float(correct.double().mean()), abs=0.11
        )
    every = [top1 for severities in got.corruptions.values() for top1 in severities]
    assert len(every) == 10 and got.corrupted_top1 == pytest.approx(np.mean(every))


def test_networks_of_other_inputs_keep_their_places_and_their_numbers(
    tmp_path: Path, unhurried: None
) -> None:
    runs = [
        make_release(tmp_path / str(n), seed=n, channels=channels) for n, channels in enumerate((1, 3, 1))
    ]
    candidates = [load(run) for run in runs]
    together = compare(candidates, SAMPLE, batch_size=500, world=ALONE).rows
    assert [found.name for found in together] == ["0", "1", "2"]
    (alone,) = compare(candidates[1:2], SAMPLE, batch_size=500, world=ALONE).rows
    assert together[1] == alone and together[0].top1 != together[2].top1


def test_tokens_merged_in_a_plain_release_are_counted_and_timed_on_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[torch.Tensor | None] = []
    monkeypatch.setattr(
        comparing, "measure_latency", lambda model, shape, images: timed.append(images) or 0.1
    )
    monkeypatch.setattr(
        comparing, "measure_throughput", lambda *given: Throughput(batch_size=8, images_per_s=9.0)
    )
    run = make_release(tmp_path / "vit", kind="vit")
    plain, merging, off = load(run), load(run), load(run)
    merging.merge_tokens(0.5)
    off.merge_tokens(1.0)
    candidates = (plain, merging, off)
    rows = compare(candidates, SAMPLE, batch_size=300, world=ALONE).rows
    assert rows[0].tokens is None and rows[1].tokens is not None
    assert 2 < rows[1].tokens < 40 and rows[2].tokens == pytest.approx(50, abs=1)
    assert rows[2].top1 == rows[0].top1
    assert rows[1].flops < 0.9 * rows[0].flops and rows[2].flops == pytest.approx(rows[0].flops, rel=0.05)
    first, *others = timed
    assert first is None and all(images.shape == (300, 1, 28, 28) for images in others)
    assert "tokens" in printed(*rows) and "tokens" not in printed(rows[0])


class SecondRank(World):
    """Whose first batch is padding alone, and which hears that rank 0 counted 7."""

    def broadcast(self, value: Any) -> Any:
        return 7


def test_operations_are_counted_on_the_images_of_the_first_rank(tmp_path: Path) -> None:
    merging = load(make_release(tmp_path / "vit", kind="vit"))
    merging.merge_tokens(0.5)
    second = SecondRank(rank=1, size=2, local_rank=1, device=CPU)
    assert comparing._flops(merging, second, torch.zeros(0, 1, 28, 28)) == 7


def test_tokens_of_a_tower_that_looks_can_be_merged(tmp_path: Path) -> None:
    towers, objective = tiny_pairing()
    tokens = class_tokens(["red", "green"], ["a {}"], objective.tokenizer)
    classifier = ZeroShot(towers, torch.nn.functional.normalize(towers.text(tokens[:, 0]), dim=1))
    candidate = load_candidates([str(tmp_path)], device=CPU, load=lambda reference: classifier)[0]
    candidate.merge_tokens(0.5)
    assert len(dynamic_blocks(towers.image)) == 2
    with torch.no_grad():
        assert candidate.model(torch.rand(3, 3, 16, 16)).shape == (3, 2)


def test_only_a_vit_has_tokens_to_merge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no attention over all tokens of which some could be merged"):
        load(make_release(tmp_path / "student")).merge_tokens(0.5)


@pytest.mark.slow
def test_two_ranks_find_the_numbers_of_one(tmp_path: Path, unhurried: None) -> None:
    run, out = make_release(tmp_path / "student"), tmp_path / "scores.json"
    command = [sys.executable, "-m", "launch.cli", "evaluate", str(run), "--data", SAMPLE, "--json", str(out)]
    options = ["--corrupt", "impulse_noise", "--ranks", "2", "--batch-size", "96"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1,000 images") == 1
    shared = json.loads(out.read_text())
    found = compare([load(run)], SAMPLE, batch_size=96, world=ALONE, corruptions=["impulse_noise"])
    alone = json.loads(json.dumps(asdict(found)))
    assert shared["num_images"] == alone["num_images"] == 1000
    one, other = alone["rows"][0], shared["rows"][0]
    for key in (
        "top1",
        "top5",
        "classes",
        "confusions",
        "corrupted_top1",
        "corruptions",
        "parameters",
        "flops",
    ):
        assert one[key] == other[key], key
    assert one["ece"] == pytest.approx(other["ece"], abs=1e-12)
    for mine, theirs in zip(one["reliability"], other["reliability"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-12)


@pytest.mark.slow
def test_the_program_compares_checkpoints_and_writes_json_and_pictures(
    tmp_path: Path, unhurried: None
) -> None:
    runs = [make_release(tmp_path / name, seed=seed) for seed, name in enumerate(("teacher", "student"))]
    out = tmp_path / "new" / "scores.json"
    command = [str(runs[0]), str(runs[1] / "release"), "--data", SAMPLE, "--json", str(out)]
    options = [
        "--batch-size",
        "250",
        "--corrupt",
        "contrast,jpeg",
        "--pictures",
        str(out.parent / "pictures"),
    ]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert "1,000 images" in result.output and "teacher" in result.output and " corrupt " in result.output
    written = json.loads(out.read_text())
    assert written["data"] == SAMPLE and written["num_images"] == 1000
    assert written["data_digest"] == open_index(SAMPLE).digest
    assert [entry["name"] for entry in written["rows"]] == ["teacher", "student"]
    assert written["rows"][0]["top1"] != written["rows"][1]["top1"]
    titles = ["Reliability", "Confusion of teacher", "Confusion of student", "Corruptions"]
    assert [picture["title"] for picture in written["pictures"]] == titles
    for picture in written["pictures"]:
        drawn = cv2.imread(str(out.parent / picture["file"]))
        assert drawn is not None and min(drawn.shape[:2]) > 200
    assert sorted(path.name for path in out.parent.iterdir()) == ["pictures", "scores.json"]


def test_many_classes_are_drawn_without_their_names(tmp_path: Path) -> None:
    from engine.results.class_scores import class_scores
    from engine.results.evaluate import Bin

    counts = {(label, label): 5 for label in range(300)} | {(0, 299): 2}
    wide = row(
        classes=class_scores(counts, [f"class {label}" for label in range(300)]),
        confusions=tuple((*pair, count) for pair, count in counts.items()),
        reliability=(
            Bin(num_images=0, confidence=0.0, accuracy=0.0),
            Bin(num_images=9, confidence=0.8, accuracy=0.7),
        ),
    )
    comparison = Comparison(data=SAMPLE, data_digest="d", num_images=9, rows=(wide,), timing="")
    drawn = draw_pictures(comparison, tmp_path)
    assert cv2.imread(str(drawn["Confusion of a"])).shape[0] < 2500


def test_two_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [str(make_release(tmp_path / folder / "run")) for folder in ("a", "b")]
    other = str(make_release(tmp_path / "other") / "release")
    assert [candidate.name for candidate in load_candidates([*runs, other], device=CPU)] == [*runs, "other"]


def test_other_classes_than_the_datas_are_refused(tmp_path: Path) -> None:
    few = load(make_release(tmp_path / "few", num_classes=3))
    with pytest.raises(
        ConfigError, match="'few' tells 3 classes apart and the data 'mirada://sample/test' has 10"
    ):
        compare([few], SAMPLE, batch_size=100, world=ALONE)
    names = ["Trouser", *list(open_index(SAMPLE).classes)[1:]]
    other = load(make_release(tmp_path / "other", label_names=names))
    with pytest.raises(ConfigError, match="class 0 is 'Trouser' for 'other' and 'T-shirt/top' in"):
        compare([other], SAMPLE, batch_size=100, world=ALONE)


def test_data_without_images_or_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = load(make_release(tmp_path / "student"))
    whole = open_index(SAMPLE)
    for classes, shards, words in (
        (whole.classes, (), "there is no image in 'photos'"),
        ((), whole.shards, "the images of 'photos' have no labels"),
    ):
        index = ShardIndex(folder=whole.folder, name="x", split="test", classes=classes, shards=shards)
        monkeypatch.setattr(comparing, "open_index", lambda location, index=index: index)
        with pytest.raises(ConfigError, match=words):
            compare([candidate], "photos", batch_size=100, world=ALONE)


def test_a_few_images_that_cannot_be_decoded_are_left_out_and_counted(
    tmp_path: Path, unhurried: None
) -> None:
    make_shards(tmp_path / "shards", [1000], bad={3: b"no image"})
    candidate = load(make_release(tmp_path / "student"))
    found = compare([candidate], str(tmp_path / "shards"), batch_size=100, world=ALONE)
    assert (found.num_images, found.num_left_out) == (999, 1)
    assert str(as_table(found).title).endswith("; 1 more cannot be decoded")


def test_a_damaged_file_of_weights_is_named(tmp_path: Path) -> None:
    run = make_release(tmp_path / "student")
    weights = run / "release" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"model\.safetensors of .*student' is damaged .*release it again"):
        load(run)


def test_a_prompt_without_a_place_for_the_class_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"--prompt 'a photo': write the class once as \{\}"):
        app(["student", "--data", SAMPLE, "--prompt", "a photo"], standalone_mode=False)


def test_no_checkpoint_and_no_such_device_are_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no checkpoint is given"):
        load_candidates([], device=CPU)
    with pytest.raises(ConfigError, match="--device 'gpu9' cannot be used"):
        parse_device("gpu9")
    assert parse_device("cpu") == CPU
    assert open_world("cpu") == ALONE


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


def printed(*rows: Row) -> str:
    comparison = Comparison(data=SAMPLE, data_digest="d", num_images=1000, rows=rows, timing="warm")
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    console.print(as_table(comparison))
    return console.export_text(styles=True)


def test_the_best_of_several_is_bold_and_eighty_columns_suffice() -> None:
    teacher = row(name="teacher", top1=93.5, parameters=315_000)
    control = row(name="student-control", top1=85.125, flops=3_200_000)
    text = printed(teacher, control)
    assert "\x1b[1m93.50\x1b[0m" in text and "85.12" in text and "student-control" in text
    assert "3.2 M" in text and "corrupt" not in text
    corrupted = row(name="a.onnx", parameters=None, flops=None, corrupted_top1=70.5)
    text = printed(teacher, corrupted)
    assert "70.50" in text and "teacher" in text and "a.onnx" in text


def test_a_failed_write_leaves_the_old_json(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    broken = Comparison(data=SAMPLE, data_digest="d", num_images=1, rows=(row(name=object()),), timing="")
    with pytest.raises(TypeError):
        write_json(broken, path)
    assert path.read_text() == "old"
