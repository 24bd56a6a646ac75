"""A run that goes on, with as many ranks or with others, is the run that was never stopped."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.events import read_events
from tests.distributed.elastic_program import STAGES, STEPS
from tests.support.run_distributed import run_ranks
from tests.support.tiny_run import history

FOLDER = "tests/distributed"

pytestmark = pytest.mark.slow


def test_from_two_ranks_to_one_to_four_samples_losses_and_weights_stay_the_same(tmp_path: Path) -> None:
    run_ranks([f"{FOLDER}/elastic_program.py", str(tmp_path), "--whole", "--until", "5"], world_size=2)
    run_ranks([f"{FOLDER}/elastic_program.py", str(tmp_path), "--until", "8"], world_size=1)
    run_ranks([f"{FOLDER}/elastic_program.py", str(tmp_path)], world_size=4)
    for stage in STAGES:
        whole, cut = tmp_path / f"whole{stage}", tmp_path / f"cut{stage}"
        samples = [json.loads((folder / "samples.json").read_text()) for folder in (whole, cut)]
        assert samples[0] == samples[1] and len(samples[0]) == STEPS
        expected, found = history(whole), history(cut)
        assert expected.keys() == found.keys()
        for point, values in expected.items():
            assert found[point] == pytest.approx(values, rel=1e-4), f"stage {stage}, {point}"
        torch.testing.assert_close(weights_in(cut), weights_in(whole), rtol=1e-3, atol=1e-5)
        assert not [path for path in (cut / "checkpoints").iterdir() if "universal" in path.name]


def test_after_kill_9_of_all_ranks_every_stage_ends_with_the_same_losses_and_weights(tmp_path: Path) -> None:
    seed = secrets.randbelow(1000)
    run_ranks([f"{FOLDER}/killed_program.py", str(tmp_path), str(seed)], world_size=1)
    for stage in (0, 1, 2, 3):
        whole, cut = tmp_path / f"whole{stage}", tmp_path / f"cut{stage}"
        assert "resumed" in [event["kind"] for event in read_events(cut / "events.jsonl")]
        assert history(whole) == history(cut), f"stage {stage}, seed {seed}"
        expected, found = torch.load(whole / "weights.pt"), torch.load(cut / "weights.pt")
        assert all(torch.equal(expected[name], found[name]) for name in expected), (
            f"stage {stage}, seed {seed}"
        )


def weights_in(folder: Path) -> dict[str, Tensor]:
    """Released weights, less the biases of keys: softmax ignores them, and their gradients are rounding errors."""
    weights: dict[str, Tensor] = torch.load(folder / "weights.pt")
    for name, tensor in weights.items():
        if name.endswith("qkv.bias"):
            tensor.view(3, -1)[1] = 0.0
    return weights
