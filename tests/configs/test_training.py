"""Which optimizers, stages and places of the optimizer state go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from configs.training import RunConfig


def run_config(optim: dict[str, Any], zero: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"train": "shards"},
            "model": {"name": "vit_tiny_patch16_224"},
            "optim": {"lr": 1e-3, **optim},
            "train": {"duration": "1 epoch", "global_batch": 16},
            "zero": zero,
        }
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lamb_on_shards_is_refused_with_the_reason(stage: int) -> None:
    run_config({"name": "lamb"}, {"stage": 0})
    with pytest.raises(ValidationError, match=rf"lamb works at zero.stage 0, not {stage}: its trust ratio"):
        run_config({"name": "lamb"}, {"stage": stage})


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_clipping_muons_updates_instead_of_gradients_is_refused(stage: int) -> None:
    run_config({"name": "muon"}, {"stage": 0})
    run_config({"name": "muon", "clip_grad": None}, {"stage": stage})
    with pytest.raises(ValidationError, match=r"optim.clip_grad is 1.0, but for muon .*clip_grad: null"):
        run_config({"name": "muon"}, {"stage": stage})


@pytest.mark.parametrize(("offload", "lowest"), [("none", 0), ("optimizer", 1), ("parameters", 3)])
def test_only_what_is_sharded_is_offloaded(offload: str, lowest: int) -> None:
    for stage in range(lowest, 4):
        run_config({}, {"stage": stage, "offload": offload})
    for stage in range(lowest):
        with pytest.raises(
            ValidationError, match=f"{offload} works from zero.stage {lowest} on, not at {stage}"
        ):
            run_config({}, {"stage": stage, "offload": offload})
