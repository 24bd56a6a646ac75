"""The report: complete, self-contained, and harmless whatever a run is called."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from configs.base import ConfigError
from engine.events import EventLog
from engine.results.report import main, render_report
from engine.results.reporting.charts import draw_charts
from engine.results.reporting.inputs import Inputs
from engine.results.reporting.verdict import verdict
from engine.results.run_record import read_run

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> & Söhne'
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
_VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Fails on tags that do not match; collects text and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def _make_run(
    path: Path,
    *,
    name: str | None = None,
    program: str = "pretrain",
    origins: dict[str, Any] | None = None,
    **config: object,
) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"model:\n  name: cnn_of_{path.name}\n")
    log = EventLog(path / "events.jsonl")
    log.append(
        "run",
        run_id=f"id-{path.name}",
        name=name or path.name,
        program=program,
        command=f"python -m {program} recipe.yaml --out {path}",
        config={"model.name": f"cnn_of_{path.name}", "data.train": "mirada://sample/train", **config},
        world_size=2,
        host="node-1",
        versions={"torch": "2.14.1"},
        data_digest="5d41402abc4b2a76b9719d911017c592",
        num_samples=6000,
        commit="5f3a9c1d2e4b6a7f",
        origins=origins or {},
    )
    for step in range(10, 60, 10):
        losses = {"train/loss": 3 / step, "train/task": 1 / step, "train/attention": 2 / step}
        speed = {"perf/images_per_s": 1000.0 + step, "perf/data_wait_fraction": 0.02}
        log.append("metrics", step=step, images=step * 8, values={**losses, "train/lr": 0.1, **speed})
    scores = {"val/top1": 71.5, "val/top5": 97.0, "val/ece": 0.05, "val_raw/top1": 68.25}
    log.append("evaluation", step=50, values=scores)
    log.append("finished", step=50)
    return path


def _rows(student: float, control: float) -> list[dict[str, Any]]:
    scores = {"teacher": 84.2, "student": student, "control": control}
    return [
        {
            "name": name,
            "path": f"{name}/release",
            "top1": top1,
            "top5": 97.0,
            "ece": 0.031,
            "parameters": 80_312,
        }
        | {"flops": 6_120_000, "images_per_s": 9120.4}
        for name, top1 in scores.items()
    ]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    evaluation = tmp_path / "evaluation.json"
    content = {"data": "mirada://sample/test", "num_images": 1000, "rows": _rows(80.4, 76.1)}
    evaluation.write_text(json.dumps(content))
    picture = tmp_path / "attention.png"
    picture.write_bytes(PNG)
    commands = tmp_path / "commands.json"
    steps = [
        {"name": "Teach <fast>", "command": ["mirada", "pretrain", "my recipe.yaml"], "seconds": 61.0},
        {"name": "Evaluate", "command": "mirada evaluate a b"},
    ]
    commands.write_text(json.dumps(steps))
    return Inputs(evaluation=evaluation, attention=picture, commands=commands)


def test_the_page_has_every_run_row_curve_command_and_config(tmp_path: Path, inputs: Inputs) -> None:
    teacher = _make_run(tmp_path / "teacher")
    origins = {"teacher": {"path": "somewhere/else", "run_id": "id-teacher"}}
    student = _make_run(tmp_path / "student", program="finetune", origins=origins)

    html = render_report([teacher, student], inputs=inputs, title="Demo & more")
    page = Page(html)

    assert "Demo & more" in page.text
    for words in ("84.2", "80.4", "76.1", "80,312", "6.12 M", "9,120", "0.031"):
        assert words in page.text
    for words in ("Validation accuracy", "Training loss", "Learning rate", "Throughput", "Waiting for data"):
        assert words in page.text
    assert "(not averaged: 68.2)" in page.text and "Validation accuracy without averaging" in page.text
    assert "Loss of student, part by part" in page.text
    for run in ("teacher", "student"):
        assert (
            f"python -m {'pretrain' if run == 'teacher' else 'finetune'} recipe.yaml --out {tmp_path / run}"
            in page.text
        )
        assert f"name: cnn_of_{run}" in page.text
    assert "mirada pretrain 'my recipe.yaml'" in page.text
    assert "1 min 01 s" in page.text
    assert "5d41402abc4b2a76b9719d911017c592" in page.text
    assert "2.14.1" in page.text
    assert page.tags.count("svg") == 1 + 7 + 2  # the mark, the shared charts, each run's loss parts
    assert "made outside these runs" not in page.text and "somewhere/else" in page.text
    assert "commit 5f3a9c1d2e4b" in page.text


def test_what_features_are_worth_is_drawn_for_a_run_without_labels(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "encoder")
    EventLog(run / "events.jsonl").append(
        "evaluation", step=50, values={"val/probe_top1": 31.5, "val/knn_top1": 28.0}
    )
    page = Page(render_report([run], inputs=Inputs()))
    assert "Linear probe" in page.text and "Nearest neighbours" in page.text


def test_overlap_with_the_teacher_and_every_student_have_their_curves(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "several")
    values = {
        "val/map_correlation": 0.4,
        "val/map_pointing": 0.7,
        "val/tiny/top1": 61.0,
        "val/eca/top1": 66.0,
    }
    for step in (50, 100):
        EventLog(run / "events.jsonl").append("evaluation", step=step, values=values)
    charts = {chart.title: chart for chart in draw_charts([read_run(run)])}
    assert {"Agreement of maps with the teacher's", "Looking where the teacher looks"} < charts.keys()
    students = charts["Validation accuracy of several, student by student"]
    assert students.legend == [("the run's own", 0), ("tiny", 1), ("eca", 2)]


def test_the_page_loads_nothing(tmp_path: Path, inputs: Inputs) -> None:
    html = render_report([_make_run(tmp_path / "run")], inputs=inputs)
    page = Page(html)
    links = [
        value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")
    ]
    assert len(links) == 1
    assert links[0].startswith("data:image/png;base64,")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import|//cdn", html)


def test_hostile_names_and_values_stay_text(tmp_path: Path) -> None:
    origins = {HOSTILE: {"path": HOSTILE}}
    run = _make_run(tmp_path / "run", name=HOSTILE, origins=origins, **{"model.name": HOSTILE})
    (run / "config.yaml").write_text(f"name: {HOSTILE}\n")
    EventLog(run / "events.jsonl").append("failed", error=HOSTILE)
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(
        json.dumps({"data": HOSTILE, "rows": [{"name": HOSTILE, "path": HOSTILE, "top1": 1.0}]})
    )

    html = render_report([run], inputs=Inputs(evaluation=evaluation), title=HOSTILE)
    page = Page(html)

    assert HOSTILE in page.text
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_one_run_alone_gets_a_report_in_its_folder(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "alone")
    assert main([str(run)]) == 0
    page = Page((run / "report.html").read_text())
    assert "alone" in page.text
    assert not list(run.glob(".*"))


def test_a_run_without_any_point_yet_is_shown(tmp_path: Path) -> None:
    run = tmp_path / "young"
    run.mkdir()
    EventLog(run / "events.jsonl").append(
        "run", run_id="1", program="pretrain", command="python -m pretrain", config={}
    )
    page = Page(render_report([run], inputs=Inputs()))
    assert "young" in page.text
    assert "running" in page.text


@pytest.mark.parametrize(
    ("student", "control", "num_images", "tone", "words"),
    [
        (
            80.4,
            76.1,
            1000,
            "better",
            r"beats the control: 80\.4 % against 76\.1 % top-1, 4\.3 points more and 18 % fewer",
        ),
        (80.4, 76.1, 100, "even", r"up to 11\.\d points can be chance, so this proves nothing"),
        (70.0, 76.1, 1000, "worse", r"does not beat the control: .* 6\.1 points less"),
        (76.1, 76.1, 1000, "even", r"does not beat the control: both reach 76\.1 %"),
        (80.4, 76.1, None, "even", r"fewer errors\.$"),
    ],
)
def test_the_verdict_says_what_came_out(
    student: float, control: float, num_images: int | None, tone: str, words: str
) -> None:
    result = verdict(_rows(student, control), num_images)
    assert result is not None
    assert result.tone == tone
    assert re.search(words, result.text)


def test_there_is_no_verdict_without_a_control() -> None:
    assert verdict(_rows(80.0, 70.0)[:2], 1000) is None


def test_what_a_rollback_undid_is_not_drawn(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    log = EventLog(run / "events.jsonl")
    log.append("resumed", step=30)
    log.append("metrics", step=40, images=320, values={"train/loss": 7.0})

    points = read_run(run).series["train/loss"]

    assert [step for step, _ in points] == [10, 20, 30, 40]
    assert points[-1] == (40, 7.0)


def test_a_folder_that_is_no_run_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder: it has no events\.jsonl"):
        render_report([tmp_path], inputs=Inputs())


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot read .*as JSON"), ("[]", "holds a list, not a dict"), (None, "cannot read .*as JSON")],
)
def test_an_evaluation_that_is_none_is_a_mistake_of_the_user(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "evaluation.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        render_report([], inputs=Inputs(evaluation=path))


def test_a_picture_that_is_none_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "attention.png"
    path.write_text("<svg onload=alert(1)>")
    with pytest.raises(ConfigError, match="neither PNG nor JPEG"):
        render_report([], inputs=Inputs(attention=path))


def test_several_runs_need_a_place_for_the_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give --out FILE\.html"):
        main([str(tmp_path / "a"), str(tmp_path / "b")])


def test_importing_the_module_imports_no_torch() -> None:
    program = "import sys, engine.results.report; sys.exit(bool({'torch', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path.cwd()).returncode == 0


def _detailed_row(name: str = "student") -> dict[str, Any]:
    classes = [("Bag", 500, 98.0, 97.0), ("Shirt", 500, 61.5, 70.25), ("Boot", 0, None, None)]
    keys = ("name", "num_images", "recall", "precision")
    return {
        "name": name,
        "path": f"{name}/release",
        "top1": 80.0,
        "corrupted_top1": 51.25,
        "latency_ms": 1.234,
        "classes": [dict(zip(keys, values, strict=True)) for values in classes],
        "confusions": [[0, 0, 490], [0, 1, 10], [1, 0, 192], [1, 1, 308]],
    }


def test_an_evaluation_brings_its_pictures_and_its_classes_with_it(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "reliability.png").write_bytes(PNG)
    content = {
        "num_images": 1000,
        "rows": [_detailed_row()],
        "pictures": [{"title": "Reliability", "file": "pictures/reliability.png"}],
    }
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps(content))
    page = Page(render_report([], inputs=Inputs(evaluation=evaluation)))
    assert page.tags.count("img") == 1 and "Reliability" in page.text
    assert "51.2" in page.text and "1.23" in page.text and "Corrupted, %" in page.text
    assert "Shirt for Bag (192), Bag for Shirt (10)" in page.text
    hardest = [page.text.index(name, page.text.index("Recognized, %")) for name in ("Shirt", "Bag", "Boot")]
    assert hardest == sorted(hardest)


def test_samples_show_a_runs_data_once_for_all_runs_that_share_it(tmp_path: Path) -> None:
    recipe = (
        "data: {train: 'mirada://sample/train', image_size: 28, channels: 1, mean: [0.3], std: [0.35]}\n"
        "train: {seed: 3, duration: 5 epochs, global_batch: 8}\n"
    )
    runs = [_make_run(tmp_path / name) for name in ("teacher", "student")]
    for run in runs:
        (run / "config.yaml").write_text(recipe)
    page = Page(render_report(runs, inputs=Inputs(samples=True)))
    assert page.tags.count("img") == 1 and "teacher and student: an image of each class" in page.text

    (runs[1] / "config.yaml").write_text(recipe.replace("mirada://sample/train", str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match=r"no samples of 'student': no index in .*; leave --samples out"):
        render_report(runs, inputs=Inputs(samples=True))
