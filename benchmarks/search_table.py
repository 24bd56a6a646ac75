"""The table of benchmarks/search.py: accuracy, operations, and what each row gains over the base network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.result_file import write_result_file
from benchmarks.seeded_runs import Results, errors_saved, half_interval

TITLES = {
    "cnn": "none (base network)",
    "se": "SE everywhere, reduction 16 (8 hidden channels)",
    "random": "drawn at random, another for each seed",
    "searched": "searched",
}
COLUMNS = {
    "name": ["attention", "s"],
    "runs": ["seeds", "d"],
    "flops": ["MFLOPs", "s"],
    "parameters": ["parameters", "s"],
    "top1": ["top-1, %", ".2f"],
    "interval": ["95 % interval, +-", ".2f"],
    "gain": ["points over base", "+.2f"],
    "gain_interval": ["+-", ".2f"],
    "saved": ["errors saved, %", ".1f"],
}


def write_table(runs: Results, search: Mapping[str, Any], out: Path) -> None:
    """The result file that docs show, of runs of benchmarks/attention.py and of what the search told."""
    rows = table_rows(runs)
    shown = [run for run in runs if run["row"] in TITLES]
    write_result_file(
        out,
        columns=COLUMNS,
        rows=rows,
        note=_note(shown, search),
        machine=shown[0]["machine"],
        versions=shown[0]["versions"],
    )


def table_rows(runs: Results) -> list[dict[str, Any]]:
    """A row for each kind of network; gains are over the base network of the same seed."""
    base = _of("cnn", runs)
    return [_row(found, base) for name in TITLES if (found := _of(name, runs))]


def gains(runs: Results, base: Results) -> list[float]:
    """Points of top-1 that a run has over the base network's, seed by seed where both are there."""
    plain = {run["seed"]: run["top1"] for run in base}
    return [run["top1"] - plain[run["seed"]] for run in runs if run["seed"] in plain]


def _of(name: str, runs: Results) -> Results:
    return [run for run in runs if run["row"] == name]


def _row(found: Results, base: Results) -> dict[str, Any]:
    top1, is_base = [run["top1"] for run in found], found[0]["row"] == "cnn"
    gained = [] if is_base else gains(found, base)
    saved = [] if is_base else errors_saved(found, base)
    return {
        "name": TITLES[found[0]["row"]],
        "runs": len(found),
        "flops": _span([run["flops"] / 1e6 for run in found], ".3f"),
        "parameters": _span([run["parameters"] for run in found], ",d"),
        "top1": fmean(top1),
        "interval": half_interval(top1),
        "gain": fmean(gained) if gained else None,
        "gain_interval": half_interval(gained),
        "saved": fmean(saved) if saved else None,
    }


def _span(numbers: Sequence[float], form: str) -> str:
    low, high = min(numbers), max(numbers)
    return format(low, form) if low == high else f"{format(low, form)}-{format(high, form)}"


def _note(runs: Results, search: Mapping[str, Any]) -> str:
    images, steps = sorted({run["num_images"] for run in runs}), sorted({run["steps"] for run in runs})
    return (
        f"{_listed(images)} test images, each once; {_listed(steps)} steps from scratch on all training images. "
        "Intervals are of the mean over seeds (Student's t); gains are over the base network of the same seed. Found: "
        f"{search['found']}; {search['num_scored']} of {search['num_members']} networks were scored with the weights "
        f"of a supernet of {search['supernet_steps']:,} steps ({search['supernet_minutes']:.0f} minutes), this one "
        f"{search['held_out_top1']:.2f} % on held-out images. The search was run once, so its own chance is not in the "
        "interval."
    )


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)
