"""A comparison as people read it on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from finetune.evaluating.comparison import Comparison, Row

_COSTS = ("params", "FLOPs", "ms", "images/s")
_UNKNOWN = "-"


def as_table(comparison: Comparison) -> Table:
    """A network per line, the best accuracy and calibration in bold."""
    rows = comparison.rows
    is_corrupted = any(row.corrupted_top1 is not None for row in rows)
    is_dynamic = any(row.tokens is not None for row in rows)
    left_out = f"; {comparison.num_left_out:,} more cannot be decoded" if comparison.num_left_out else ""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=f"{comparison.num_images:,} images of {comparison.data}{left_out}",
        caption=f"Accuracy in %; ms: one image; images/s: in the fastest batch. {comparison.timing}",
    )
    table.add_column("checkpoint", overflow="fold")
    asked = [name for name, is_there in (("corrupt", is_corrupted), ("tokens", is_dynamic)) if is_there]
    for heading in ("top-1", "top-5", "ECE", *asked, *_COSTS):
        table.add_column(heading, justify="right", no_wrap=True)
    best_top1, best_ece = max(row.top1 for row in rows), min(row.ece for row in rows)
    for row in rows:
        corrupted = [_UNKNOWN if row.corrupted_top1 is None else f"{row.corrupted_top1:.2f}"]
        tokens = [_UNKNOWN if row.tokens is None else f"{row.tokens:.1f}"]
        table.add_row(
            row.name,
            _emphasized(f"{row.top1:.2f}", row.top1 == best_top1 and len(rows) > 1),
            f"{row.top5:.2f}",
            _emphasized(f"{row.ece:.4f}", row.ece == best_ece and len(rows) > 1),
            *(corrupted if is_corrupted else []),
            *(tokens if is_dynamic else []),
            *_costs(row),
        )
    return table


def with_prefix(count: float) -> str:
    """Three significant digits and a prefix: 76858 is ``76.9 k``."""
    for prefix in ("", " k", " M", " G"):
        if count < 999.5:
            return f"{count:.3g}{prefix}" if prefix else f"{count:.0f}"
        count /= 1000
    return f"{count:.3g} T"


def _costs(row: Row) -> list[str]:
    counts = [_UNKNOWN if count is None else with_prefix(count) for count in (row.parameters, row.flops)]
    return [*counts, f"{row.latency_ms:.3g}", f"{row.images_per_s:,.0f}"]


def _emphasized(text: str, yes: bool) -> str:
    return f"[bold]{text}[/bold]" if yes else text
