"""python -m finetune.evaluation CKPT... --data DIR: released networks side by side, on every image exactly once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from configs.exit_code import run_main
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.loader import EvalLoader
from engine.results.evaluate import Evaluator
from engine.world import World
from finetune.candidate import Candidate, load_candidates, parse_device
from models.complexity import count_flops, count_parameters

TIMED_BATCH = 64
"""Images per forward when speed is measured; the same for all, whatever the batch of the evaluation is."""

_WARM_UPS = 3
_TIMED_SECONDS = 1.0
_MIN_FORWARDS = 5

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known about one network."""

    name: str
    path: str
    top1: float
    """Percent."""
    top5: float
    """Percent."""
    ece: float
    """Expected calibration error over 15 bins, 0 to 1."""
    parameters: int
    flops: int
    """Of one image's forward; a multiply-add is two."""
    images_per_s: float
    """Forward passes alone, warm, in batches of 64, median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Networks evaluated on the same images, on the same machine."""

    data: str
    num_images: int
    rows: tuple[Row, ...]
    timing: str
    """How images_per_s was measured."""


def compare(
    candidates: Sequence[Candidate], location: str, *, batch_size: int, device: torch.device
) -> Comparison:
    """Evaluates each network on all of `location` as its own config wants the images."""
    index = open_index(location)
    for candidate in candidates:
        candidate.check_classes(index.classes, location=location)
    scored = [_evaluate(candidate, index, location, batch_size, device) for candidate in candidates]
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    return Comparison(
        data=location,
        num_images=scored[0][0],
        rows=tuple(row for _, row in scored),
        timing=f"forward alone, warm, batch {TIMED_BATCH}, {device.type}{threads}",
    )


@torch.no_grad()
def images_per_second(model: nn.Module, input_shape: tuple[int, int, int], *, device: torch.device) -> float:
    """Median speed of the forward pass on batches of 64 that already lie on the device."""
    images = torch.zeros(TIMED_BATCH, *input_shape, device=device)
    for _ in range(_WARM_UPS):
        model(images)
    durations: list[float] = []
    deadline = time.perf_counter() + _TIMED_SECONDS
    while len(durations) < _MIN_FORWARDS or time.perf_counter() < deadline:
        _finish(device)
        start = time.perf_counter()
        model(images)
        _finish(device)
        durations.append(time.perf_counter() - start)
    return TIMED_BATCH / sorted(durations)[len(durations) // 2]


def write_json(comparison: Comparison, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(asdict(comparison), indent=2) + "\n")
    aside.replace(path)


def as_table(comparison: Comparison) -> Table:
    """The comparison as people read it, a network per line, the best accuracy and calibration in bold."""
    table = Table(
        title=f"{comparison.num_images:,} images of {comparison.data}",
        caption=f"images/s: {comparison.timing}",
    )
    table.add_column("checkpoint", overflow="fold")
    for heading in ("top-1 %", "top-5 %", "ECE", "parameters", "FLOPs", "images/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    best_top1 = max(row.top1 for row in comparison.rows)
    best_ece = min(row.ece for row in comparison.rows)
    for row in comparison.rows:
        table.add_row(
            row.name,
            _emphasized(f"{row.top1:.2f}", row.top1 == best_top1 and len(comparison.rows) > 1),
            f"{row.top5:.2f}",
            _emphasized(f"{row.ece:.4f}", row.ece == best_ece and len(comparison.rows) > 1),
            with_prefix(row.parameters),
            with_prefix(row.flops),
            f"{row.images_per_s:,.0f}",
        )
    return table


def with_prefix(count: float) -> str:
    """Three significant digits and a prefix: 76858 is ``76.9 k``."""
    for prefix in ("", " k", " M", " G"):
        if count < 999.5:
            return f"{count:.3g}{prefix}" if prefix else f"{count:.0f}"
        count /= 1000
    return f"{count:.3g} T"


@app.command()
def main(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CKPT...", help="Run folders or releases.")],
    data: Annotated[str, typer.Option(help="Folder of indexed shards with labels.")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward while scoring.")] = 100,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Score released networks on every image of DATA exactly once, and print them side by side."""
    place = parse_device(device)
    comparison = compare(
        load_candidates(checkpoints, device=place), data, batch_size=batch_size, device=place
    )
    Console().print(as_table(comparison))
    if json_path is not None:
        write_json(comparison, json_path)


def _evaluate(
    candidate: Candidate, index: ShardIndex, location: str, batch_size: int, device: torch.device
) -> tuple[int, Row]:
    spec = candidate.spec
    batches = EvalLoader(index, candidate.data_config(location), batch_size=batch_size)
    world = World(rank=0, size=1, local_rank=0, device=device)
    scores = Evaluator(batches=batches, mean=spec.mean, std=spec.std, world=world).scores(candidate.model)
    shape = (spec.channels, spec.size, spec.size)
    row = Row(
        name=candidate.name,
        path=candidate.reference,
        top1=scores.top1,
        top5=scores.top5,
        ece=scores.ece,
        parameters=count_parameters(candidate.model),
        flops=count_flops(candidate.model, shape),
        images_per_s=images_per_second(candidate.model, shape, device=device),
    )
    return scores.num_images, row


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _emphasized(text: str, yes: bool) -> str:
    return f"[bold]{text}[/bold]" if yes else text


if __name__ == "__main__":
    run_main(lambda: app(prog_name="mirada evaluate"))
