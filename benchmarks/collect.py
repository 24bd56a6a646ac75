"""Turns an evaluation and the runs behind it into a committed result file, from which `tables.py` makes the tables.

python -m benchmarks.collect EVALUATION.json RUN ... --out benchmarks/results/NAME.json [--commands FILE] [--note TEXT]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.result_file import write_result_file
from engine.results.reporting.verdict import verdict
from engine.results.run_record import RunRecord, read_run

_ABSOLUTE_FOLDER = re.compile(
    r"(?<=[\s=])/\S*/"
)  # where the measuring machine kept its files is nobody's business

COLUMNS = {
    "name": ["network", "s"],
    "top1": ["top-1, %", ".2f"],
    "top5": ["top-5, %", ".2f"],
    "ece": ["calibration error", ".3f"],
    "parameters": ["parameters", ",d"],
    "mflops": ["MFLOPs", ",.1f"],
    "images_per_s": ["images/s", ",.0f"],
    "minutes": ["training, min", ".1f"],
}


def main(arguments: list[str]) -> int:
    """Writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commands", type=Path, help="commands.json of a demo: its seconds go into the note")
    parser.add_argument("--note", default="", help="text to end the note with")
    given = parser.parse_args(arguments)
    evaluation = json.loads(given.evaluation.read_text())
    runs = [read_run(path) for path in given.runs]
    commands = [] if given.commands is None else json.loads(given.commands.read_text())
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=[_row(row, run) for row, run in zip(evaluation["rows"], runs, strict=True)],
        note=" ".join(filter(None, [_note(evaluation, runs, commands), given.note])),
        machine={key: runs[0].start[key] for key in ("processor", "cores", "python")},
        versions=runs[0].start["versions"],
        commands=[_ABSOLUTE_FOLDER.sub("", run.command) for run in runs],
        steps=[{"name": step["name"], "seconds": step["seconds"]} for step in commands],
    )
    return 0


def _row(row: dict[str, Any], run: RunRecord) -> dict[str, Any]:
    shown = {key: row[key] for key in COLUMNS if key in row}
    return {**shown, "name": run.name, "mflops": row["flops"] / 1e6, "minutes": run.seconds / 60}


def _note(evaluation: dict[str, Any], runs: list[RunRecord], commands: list[dict[str, Any]]) -> str:
    start = runs[0].start
    note = f"All {evaluation['num_images']:,} test images, each once; {start['processor']}, {start['cores']} cores."
    if commands:
        note += f" The whole chain took {sum(step['seconds'] for step in commands) / 60:.1f} minutes."
    judged = verdict(evaluation["rows"], evaluation["num_images"])
    return note if judged is None else f"{note} {judged.text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
