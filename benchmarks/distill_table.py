"""The table of benchmarks/distill.py: means, 95 % intervals, errors saved and costs, from the files of single runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.result_file import write_result_file
from benchmarks.seeded_runs import Results, errors_saved, half_interval, points_gained

TITLES = {
    "none": "no teacher",
    "logits": "logits",
    "attention": "attention",
    "both": "logits + attention",
    "features": "logits + attention + features",
}
_LABELS = {"all": "all", "10": "10 %", "1": "1 %", "1-alone": "1 %, no other images"}
_BESIDE_LOGITS = ("both", "features")
COLUMNS = {
    "labels": ["labels", "s"],
    "name": ["losses", "s"],
    "steps": ["steps", ",d"],
    "runs": ["seeds", "d"],
    "top1": ["top-1, %", ".2f"],
    "interval": ["95 % interval, +-", ".2f"],
    "saved": ["errors saved, %", ".1f"],
    "saved_interval": ["+-", ".1f"],
    "gained": ["more than logits alone, points", "+.2f"],
    "gained_interval": ["+-", ".2f"],
    "correlation": ["map correlation, before -> after", "s"],
    "pointing": ["map pointing, before -> after", "s"],
    "cost": ["time of a step", ".2f"],
}


def write_table(runs: Results, out: Path) -> None:
    """The result file that docs show, of what `run` left."""
    write_result_file(
        out,
        columns=COLUMNS,
        rows=table_rows(runs),
        note=_note(runs),
        machine=runs[0]["machine"],
        versions=runs[0]["versions"],
    )


def table_rows(runs: Results) -> list[dict[str, Any]]:
    """A row for each choice of labels and of losses, held against runs of the same seeds: errors saved of those without
    a teacher, and what is gained beside logits over those with logits alone.
    """
    rows = []
    for labels in _LABELS:
        baseline, logits = (_chosen(runs, labels, name) for name in ("none", "logits"))
        for name in TITLES:
            found = _chosen(runs, labels, name)
            if found:
                rows.append(_row(found, baseline, logits))
    return rows


def _chosen(runs: Results, labels: str, name: str) -> Results:
    return [run for run in runs if run["labels"] == labels and run["row"] == name]


def _row(found: Results, baseline: Results, logits: Results) -> dict[str, Any]:
    top1, name = [run["top1"] for run in found], found[0]["row"]
    saved = [] if name == "none" else errors_saved(found, baseline)
    gained = points_gained(found, logits) if name in _BESIDE_LOGITS else []
    return {
        "labels": _LABELS[found[0]["labels"]],
        "name": TITLES[name],
        "steps": found[0]["steps"],
        "runs": len(found),
        "top1": fmean(top1),
        "interval": half_interval(top1),
        "saved": fmean(saved) if saved else None,
        "saved_interval": half_interval(saved),
        "gained": fmean(gained) if gained else None,
        "gained_interval": half_interval(gained),
        "correlation": _before_after(found, "correlation"),
        "pointing": _before_after(found, "pointing"),
        "cost": _cost(found, baseline),
    }


def _before_after(found: Results, name: str) -> str | None:
    keys = (f"{name}_before", f"{name}_after")
    if any(key not in run for run in found for key in keys):
        return None
    before, after = (fmean(run[key] for run in found) for key in keys)
    return f"{before:.2f} -> {after:.2f}"


def _cost(found: Results, baseline: Results) -> float | None:
    """Seconds of a step over those without a teacher."""
    if not baseline:
        return None
    return fmean(run["step_s"] for run in found) / fmean(run["step_s"] for run in baseline)


def _note(runs: Results) -> str:
    images = sorted({run["num_images"] for run in runs})
    return (
        f"{_listed(images)} test images, each once; {runs[0]['parameters']:,} parameters. "
        "Intervals are of the mean over seeds (Student's t); errors saved are relative to the run of the same seed "
        "without a teacher, points gained to that with logits alone, and the time of a step to that without a teacher. "
        "The teacher's answers were kept before: the time of `mirada teach`, once for each seed, is in no step. "
        "Runs were trained one after another, not in turns: a ratio of times also has what else the machine did."
    )


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)
