"""Writes one self-contained HTML page about runs: result, curves, pictures, commands, configs, lineage.

python -m engine.results.report --out FILE.html RUN_DIR... [--evaluation JSON] [--attention PNG] [--commands JSON]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from configs.base import ConfigError
from configs.exit_code import run_main
from engine.results.chart import short_number
from engine.results.reporting.charts import NUM_COLORS, draw_charts
from engine.results.reporting.classes import class_tables
from engine.results.reporting.inputs import (
    Inputs,
    inline_image,
    read_commands,
    read_evaluation,
    read_pictures,
)
from engine.results.reporting.lineage import trace_lineage
from engine.results.reporting.samples import draw_samples
from engine.results.reporting.verdict import verdict
from engine.results.run_record import read_run


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
    evaluation = read_evaluation(inputs.evaluation)
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
        pictures=read_pictures(evaluation, inputs.evaluation),
        class_tables=class_tables(rows),
        charts=draw_charts(runs),
        attention=inline_image(inputs.attention) if inputs.attention is not None else "",
        samples=draw_samples(runs) if inputs.samples else [],
        commands=read_commands(inputs.commands),
        lineage=trace_lineage(runs),
    )


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
    parser.add_argument(
        "--samples", action="store_true", help="draw images of each run's data, as it varied them"
    )
    parser.add_argument("--title", help="headline (default: the names of the runs)")
    options = parser.parse_args(arguments)
    if options.out is None and len(options.runs) > 1:
        raise ConfigError("give --out FILE.html: a report of several runs belongs to no single run folder")
    inputs = Inputs(
        evaluation=options.evaluation,
        attention=options.attention,
        commands=options.commands,
        samples=options.samples,
    )
    out = options.out or options.runs[0] / "report.html"
    write_report(out, options.runs, inputs=inputs, title=options.title)
    sys.stdout.write(f"wrote {out}\n")
    return 0


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
