"""The table of benchmarks/attention.py, and its figure of accuracy against compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

from benchmarks.attention_systems import DISTILLED, SYSTEMS, System
from benchmarks.result_file import write_result_file
from benchmarks.seeded_runs import Results, errors_saved, half_interval

COLUMNS = {
    "title": ["system", "s"],
    "runs": ["seeds", "d"],
    "top1": ["top-1, %", ".2f"],
    "interval": ["95 % interval, +-", ".2f"],
    "saved": ["errors saved of its base, %", ".1f"],
    "saved_interval": ["+-", ".1f"],
    "pairs": ["by seeds", "d"],
    "parameters": ["parameters", ",.0f"],
    "mflops": ["MFLOPs", ".2f"],
    "train": ["training, images/s", ",.0f"],
    "infer": ["inference, images/s", ",.0f"],
    "memory": ["MB an image", ".2f"],
}
_COLOURS = ("#2463c9", "#d1650c", "#2f7d4f", "#8a3ea8")


def table_rows(
    results: Results, systems: Mapping[str, System], costs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each system that has a result; errors saved are of the run of the same seed of its base."""
    by_row = {row: [result for result in results if result["row"] == row] for row in systems}
    return [
        _row(system, found, by_row[system.base] if system.base else [], costs.get(row, {}))
        for (row, system), found in zip(systems.items(), by_row.values(), strict=True)
        if found
    ]


def write_table(results: Results, students: Results, *, costs: Path, out: Path, figure: Path) -> None:
    """The result file that docs show, and the figure beside it; `students` are those of benchmarks/distill.py."""
    measured = {row["row"]: row for row in json.loads(costs.read_text())["rows"]} if costs.exists() else {}
    rows = table_rows(results, SYSTEMS, measured) + table_rows(students, DISTILLED, {})
    write_result_file(
        out,
        columns=COLUMNS,
        rows=rows,
        note=_note([*results, *students]),
        machine=results[0]["machine"],
        versions=results[0]["versions"],
    )
    draw(rows, figure)


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Top-1 against operations, with 95 % intervals, a colour for each network; names stand in a column beside it,
    since systems of one network have nearly the same operations.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 5.0))
    colours = dict(zip(sorted({row["network"] for row in rows}), _COLOURS, strict=False))
    for row in rows:
        place, colour = (row["mflops"], row["top1"]), colours[row["network"]]
        axes.errorbar(*place, yerr=row["interval"], color=colour, marker="o", markersize=4)
    lowest, highest = axes.get_ylim()
    heights = apart([(row["top1"] - lowest) / (highest - lowest) for row in rows], least=1 / 22)
    for row, height in zip(rows, heights, strict=True):
        axes.annotate(
            f"{row['title']}  {row['top1']:.2f}",
            (row["mflops"], row["top1"]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            fontsize=7,
            va="center",
            color=colours[row["network"]],
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0.0, 0.5),
                "shrinkA": 2.0,
                "color": colours[row["network"]],
                "alpha": 0.35,
                "linewidth": 0.6,
            },
        )
    axes.set_xlabel("MFLOPs of an image's forward")
    axes.set_ylabel("top-1 on the 10,000 test images, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def apart(heights: Sequence[float], *, least: float) -> list[float]:
    """The same in the same order, moved as little as it takes for neighbours to be this far from each other."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Of what is left of each when its rank is taken off, the nearest rising sequence: regression in blocks that pool.
    blocks: list[list[float]] = []
    for rank, place in enumerate(order):
        blocks.append([heights[place] - rank * least])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    bases = [fmean(block) for block in blocks for _ in block]
    moved = dict(zip(order, (base + rank * least for rank, base in enumerate(bases)), strict=True))
    return [moved[place] for place in range(len(heights))]


def _row(system: System, found: Results, base: Results, cost: Mapping[str, Any]) -> dict[str, Any]:
    top1, saved = [result["top1"] for result in found], errors_saved(found, base)
    return {
        "title": system.title,
        "network": system.network,
        "runs": len(found),
        "top1": fmean(top1),
        "interval": half_interval(top1),
        "saved": fmean(saved) if saved else None,
        "saved_interval": half_interval(saved),
        "pairs": len(saved) or None,
        "parameters": fmean(result["parameters"] for result in found),
        "mflops": fmean(result["flops"] for result in found) / 1e6,
        **{key: cost.get(key) for key in ("train", "infer", "memory")},
    }


def _note(results: Results) -> str:
    steps = sorted({result["steps"] for result in results})
    return (
        f"{results[0]['num_images']:,} test images, each once; {' or '.join(f'{count:,}' for count in steps)} steps. "
        "Intervals are of the mean over seeds (Student's t); errors saved are relative to the run of the same seed of "
        "the network without the system, by as many seeds as both have. Gates of reduction 16 have 8 hidden channels "
        "in every stage. A multiply-add is two operations, and they are of the whole network: what progressive "
        "attention and penalties change of them is in the images/s alone. Those of merged tokens are counted on test "
        "images, after merging. Networks of which each seed has another have mean parameters and operations; images/s "
        "and memory are of the first seed's."
    )
