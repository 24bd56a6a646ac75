"""Writes one self-contained HTML page about runs: result, curves, pictures, commands, configs, lineage.

python -m engine.results.report --out FILE.html RUN_DIR... [--evaluation JSON] [--attention PNG] [--commands JSON]
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from configs.base import ConfigError
from configs.exit_code import run_main
from engine.results.chart import Series, line_chart, short_number
from engine.results.run_record import RunRecord, command_line, read_run

NUM_COLORS = 8
_PERCENT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Files that a report may show beside the runs."""

    evaluation: Path | None = None
    """What `mirada evaluate --json` wrote: {"data", "num_images", "rows": [{"name", "top1", ...}]}."""
    attention: Path | None = None
    """PNG or JPEG."""
    commands: Path | None = None
    """[{"name", "command", "seconds"}, ...] in order; seconds may be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an evaluation says about distillation."""

    text: str
    """In plain words."""
    tone: Literal["better", "worse", "even"]
    """``even`` also where the difference may be chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chart:
    title: str
    svg: Markup
    legend: Sequence[tuple[str, int]] = ()


def write_report(out: Path, run_dirs: Sequence[Path], *, inputs: Inputs, title: str | None = None) -> None:
    """Writes the page whole or not at all."""
    page = render_report(run_dirs, inputs=inputs, title=title)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.write_text(page, encoding="utf-8")
    aside.replace(out)


def render_report(run_dirs: Sequence[Path], *, inputs: Inputs, title: str | None = None) -> str:
    """The page as text."""
    runs = [read_run(path) for path in run_dirs]
    evaluation = _read_json(inputs.evaluation, dict) or {}
    rows: list[Mapping[str, Any]] = evaluation.get("rows", [])
    return _template().render(
        title=title or " and ".join(run.name for run in runs[:3]) or "Evaluation",
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        runs=runs,
        num_colors=NUM_COLORS,
        colors=[(run.name, index % NUM_COLORS) for index, run in enumerate(runs)],
        evaluation=evaluation,
        rows=rows,
        best_top1=max((row["top1"] for row in rows if "top1" in row), default=None),
        verdict=verdict(rows, evaluation.get("num_images")),
        charts=_charts(runs),
        attention=_inline_image(inputs.attention),
        commands=_commands(inputs.commands),
        lineage=_lineage(runs),
    )


def verdict(rows: Sequence[Mapping[str, Any]], num_images: int | None) -> Verdict | None:
    """Whether the student beats its control, and whether that may be chance; None without both rows."""
    student, control = _row_named(rows, "student"), _row_named(rows, "control")
    if student is None or control is None:
        return None
    a, b = float(student["top1"]), float(control["top1"])
    gain = a - b
    scores = f"{a:.1f} % against {b:.1f} % top-1"
    if gain > 0:
        fewer = _PERCENT * gain / (_PERCENT - b)
        text = (
            f"The student beats the control: {scores}, {gain:.1f} points more and {fewer:.0f} % fewer errors."
        )
    elif gain < 0:
        text = f"The student does not beat the control: {scores}, {-gain:.1f} points less."
    else:
        text = f"The student does not beat the control: both reach {a:.1f} % top-1."
    if not num_images:
        return Verdict(text=text, tone="even")
    # Two independent binomials: wider than the truth, since both saw the same images.
    noise = 2 * math.sqrt((a * (_PERCENT - a) + b * (_PERCENT - b)) / num_images)
    is_clear = abs(gain) > noise
    text += f" On {num_images:,} test images and with one run each, up to {noise:.1f} points can be chance"
    text += "; this is more." if is_clear else ", so this proves nothing."
    return Verdict(text=text, tone="even" if not is_clear else "better" if gain > 0 else "worse")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: parse, write, exit code."""
    parser = argparse.ArgumentParser(
        prog="mirada report", description="Write a self-contained HTML report of runs."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, the first ones first"
    )
    parser.add_argument(
        "--out", type=Path, help="page to write (default: report.html in the only run folder)"
    )
    parser.add_argument("--evaluation", type=Path, help="JSON written by `mirada evaluate --json`")
    parser.add_argument("--attention", type=Path, help="picture written by `mirada attend`")
    parser.add_argument("--commands", type=Path, help='JSON list of {"name", "command", "seconds"}')
    parser.add_argument("--title", help="headline (default: the names of the runs)")
    options = parser.parse_args(arguments)
    if options.out is None and len(options.runs) > 1:
        raise ConfigError("give --out FILE.html: a report of several runs belongs to no single run folder")
    inputs = Inputs(evaluation=options.evaluation, attention=options.attention, commands=options.commands)
    out = options.out or options.runs[0] / "report.html"
    write_report(out, options.runs, inputs=inputs, title=options.title)
    sys.stdout.write(f"wrote {out}\n")
    return 0


def _charts(runs: Sequence[RunRecord]) -> list[_Chart]:
    return [*_shared_charts(runs, _FIRST), *_part_charts(runs), *_shared_charts(runs, _FURTHER)]


_Quantity = tuple[str, str, str, float, bool]
"""Title, series, label of the values, what they are multiplied by, whether the axis begins at zero."""

_FIRST: Sequence[_Quantity] = (
    ("Validation accuracy", "val/top1", "top-1, %", 1.0, False),
    ("Linear probe", "val/probe_top1", "top-1, %", 1.0, False),
    ("Training loss", "train/loss", "loss", 1.0, False),
)
_FURTHER: Sequence[_Quantity] = (
    ("Validation accuracy without averaging", "val_raw/top1", "top-1, %", 1.0, False),
    ("Nearest neighbours", "val/knn_top1", "top-1, %", 1.0, False),
    ("Validation loss", "val/loss", "loss", 1.0, False),
    ("Calibration error", "val/ece", "ECE", 1.0, True),
    ("Learning rate", "train/lr", "learning rate", 1.0, True),
    ("Gradient norm", "train/grad_norm", "norm", 1.0, True),
    ("Throughput", "perf/images_per_s", "images/s", 1.0, True),
    ("Waiting for data", "perf/data_wait_fraction", "% of the time", _PERCENT, True),
)


def _shared_charts(runs: Sequence[RunRecord], quantities: Sequence[_Quantity]) -> list[_Chart]:
    """One chart per quantity, one line per run."""
    charts = []
    for title, key, y_label, factor, from_zero in quantities:
        lines = [
            Series(
                label=run.name,
                color=index % NUM_COLORS,
                points=[(x, factor * y) for x, y in run.series.get(key, ())],
            )
            for index, run in enumerate(runs)
        ]
        svg = line_chart(lines, title=title, x_label="step", y_label=y_label, from_zero=from_zero)
        if svg:
            charts.append(_Chart(title=title, svg=Markup(svg)))
    return charts


def _part_charts(runs: Sequence[RunRecord]) -> list[_Chart]:
    """For each run whose loss has parts, those parts."""
    charts = []
    for run in runs:
        names = [key.removeprefix("train/") for key in run.loss_parts]
        lines = [
            Series(label=name, color=i % NUM_COLORS, points=run.series[f"train/{name}"])
            for i, name in enumerate(names)
        ]
        title = f"Loss of {run.name}, part by part"
        svg = line_chart(lines, title=title, x_label="step", y_label="loss", from_zero=True)
        if svg:
            legend = [(line.label, line.color) for line in lines]
            charts.append(_Chart(title=title, svg=Markup(svg), legend=legend))
    return charts


def _lineage(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What each run was made from: its data, and the releases it learned from with the run that made them."""
    makers = {(run.path / "release").resolve(): run.name for run in runs}
    lineage = []
    for run in runs:
        sources = []
        for role, key in (("teacher", "teacher.checkpoint"), ("weights from", "checkpoint")):
            reference = run.config.get(key)
            if reference:
                maker = makers.get(Path(str(reference)).resolve(), "")
                sources.append({"role": role, "reference": str(reference), "maker": maker})
        lineage.append({"run": run, "sources": sources})
    return lineage


def _row_named(rows: Sequence[Mapping[str, Any]], word: str) -> Mapping[str, Any] | None:
    found = [row for row in rows if "top1" in row and word in _names(row)]
    return found[0] if len(found) == 1 else None


def _names(row: Mapping[str, Any]) -> str:
    """What the row is called, and the run folder its release lies in."""
    return f"{row.get('name', '')} {Path(str(row.get('path', ''))).parent.name}".lower()


def _commands(path: Path | None) -> list[dict[str, Any]]:
    steps = _read_json(path, list) or []
    return [{**step, "command": command_line(step.get("command", ""))} for step in steps]


def _read_json(path: Path | None, kind: type) -> Any:
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as failure:
        raise ConfigError(f"cannot read {str(path)!r} as JSON: {failure}") from failure
    if not isinstance(content, kind):
        raise ConfigError(f"{str(path)!r} holds a {type(content).__name__}, not a {kind.__name__}")
    return content


def _inline_image(path: Path | None) -> str:
    if path is None:
        return ""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise ConfigError(f"cannot read the picture {str(path)!r}: {failure}") from failure
    kind = next((name for magic, name in kinds.items() if content.startswith(magic)), None)
    if kind is None:
        raise ConfigError(f"{str(path)!r} is neither PNG nor JPEG")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {"number": _number, "duration": _duration}
    environment.filters.update(filters)
    return environment.get_template("report.html")


def _number(value: float | None, pattern: str = "") -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return format(value, pattern) if pattern else short_number(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


if __name__ == "__main__":
    run_main(main)
