"""The table of benchmarks/search.py: accuracy, operations, and what each row gains over those above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.result_file import write_result_file
from benchmarks.seeded_runs import Results, errors_saved, half_interval, points_gained

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
    "over_se": ["over SE", "+.2f"],
    "over_se_interval": ["+-", ".2f"],
    "over_random": ["over random", "+.2f"],
    "over_random_interval": ["+-", ".2f"],
    "pairs": ["by seeds", "s"],
    "saved": ["errors saved, %", ".1f"],
}
_HELD_AGAINST = {"cnn": "gain", "se": "over_se", "random": "over_random"}
"""Column of the points over each of these rows, of the rows below it."""


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
    """A row for each kind of network; gains are over runs of the same seed."""
    return [_row(name, runs) for name in TITLES if _of(name, runs)]


def _of(name: str, runs: Results) -> Results:
    return [run for run in runs if run["row"] == name]


def _row(name: str, runs: Results) -> dict[str, Any]:
    found, above = _of(name, runs), list(TITLES)[: list(TITLES).index(name)]
    top1 = [run["top1"] for run in found]
    gains = {other: points_gained(found, _of(other, runs)) for other in above}
    pairs = [len(gained) for gained in gains.values() if gained]
    saved = errors_saved(found, _of("cnn", runs)) if above else []
    columns: dict[str, float | None] = {}
    for other, gained in gains.items():
        columns[_HELD_AGAINST[other]] = fmean(gained) if gained else None
        columns[f"{_HELD_AGAINST[other]}_interval"] = half_interval(gained)
    return {
        "name": TITLES[name],
        "runs": len(found),
        "flops": _span([run["flops"] / 1e6 for run in found], ".3f"),
        "parameters": _span([run["parameters"] for run in found], ",d"),
        "top1": fmean(top1),
        "interval": half_interval(top1),
        **columns,
        "pairs": _span(pairs, "d") if pairs else None,
        "saved": fmean(saved) if saved else None,
    }


def _span(numbers: Sequence[float], form: str) -> str:
    low, high = min(numbers), max(numbers)
    return format(low, form) if low == high else f"{format(low, form)}-{format(high, form)}"


def _note(runs: Results, search: Mapping[str, Any]) -> str:
    images, steps = sorted({run["num_images"] for run in runs}), sorted({run["steps"] for run in runs})
    return (
        f"{_listed(images)} test images, each once; {_listed(steps)} steps from scratch on all training images. "
        "Intervals are of the mean over seeds (Student's t); gains are over the run of the same seed, by as many seeds "
        f"as both rows have. Found: {search['found']}; "
        f"{search['num_scored']} of {search['num_members']} networks were scored with the weights "
        f"of a supernet of {search['supernet_steps']:,} steps ({search['supernet_minutes']:.0f} minutes), this one "
        f"{search['held_out_top1']:.2f} % on held-out images. The search was run once, so its own chance is not in the "
        "interval."
    )


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)
