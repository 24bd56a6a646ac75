"""``mirada pretrain`` that keeps what its model was given: ``recorded_run.py RECIPE OUT RECORDS``, as any rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pretrain.run
from configs.exit_code import run_main
from data_pipeline.batch import Batch
from engine.command import Command
from engine.objective import Loss
from pretrain.objectives import Supervised

_batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []


class Recording(Supervised):
    """Trains as ever, and keeps each micro-batch."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if model.training:
            _batches.append((batch.sample_ids.clone(), batch.targets.clone(), batch.images.clone()))
        return super().__call__(model, batch)


def main() -> int:
    recipe, out, records = sys.argv[1:]
    program: Any = pretrain.run
    program.Supervised = Recording
    code = pretrain.run.run(
        Command(program="pretrain", recipe=recipe, overrides=(), out=Path(out), fresh=False)
    )
    rank = int(os.environ.get("RANK", "0"))
    torch.save(_batches, Path(records) / f"rank_{rank}.pt")
    return code


if __name__ == "__main__":
    run_main(main)
