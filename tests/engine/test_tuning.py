"""engine.tuning: measured once for a machine, remembered, and the same on all ranks and after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import engine.tuning as tuning
from configs.training import ModelConfig, RunConfig
from engine.tuning import KERNELS_FILE, tune_kernels
from engine.world import World
from models.build import build_model
from models.dry_step import call_model
from models.kernel_choices import Chosen, Signature, use_choices
from models.kernel_report import report_kernels
from models.kernel_timing import Timing
from tests.support.tiny_run import SIZE, tiny_config

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


class Follower(World):
    """Rank 1 of 2, which hears what rank 0 found."""

    heard: Any = None

    def broadcast(self, value: Any) -> Any:
        assert value == {}  # it has found nothing of its own
        return Follower.heard


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "mirada" / "kernels"
    use_choices({})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Signature]:
    """What was measured, whereby math turns out to be the fastest."""
    seen: list[Signature] = []

    def measure(signature: Signature, device: torch.device) -> Timing:
        seen.append(signature)
        return Timing(kernel="math", auto="sdpa", ratios={"sdpa": 1.0, "math": 0.5})

    monkeypatch.setattr(tuning, "time_kernels", measure)
    return seen


def run_config(kernel: str = "tuned", **train: Any) -> RunConfig:
    config = tiny_config(stage=0, world_size=1, **train)
    args = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    chosen = {"name": "vit_tiny_patch16_224", "args": args, "attention": {"kernel": kernel}}
    return config.model_copy(update={"model": ModelConfig.model_validate(chosen)})


def network(config: RunConfig) -> nn.Module:
    return build_model(config.model, num_classes=10, in_chans=3, image_size=SIZE)


def tune(known: Path | None = None, world: World = ALONE, **given: Any) -> dict[str, Any]:
    config = run_config(**given)
    return tune_kernels(network(config), config, world, forward=call_model, known=known)


def kernels_of(record: dict[str, Any]) -> set[Chosen]:
    return {one["kernel"] for one in record["choices"]}


def test_training_and_evaluation_are_measured_and_the_report_says_what_is_taken(
    measured: list[Signature],
) -> None:
    config = run_config(micro_batch=4)
    model = network(config)
    tune_kernels(model, config, ALONE, forward=call_model, known=None)
    assert sorted((one.q[0], one.differentiates) for one in measured) == [(4, True), (16, False)]
    kernels = report_kernels(model, (3, SIZE, SIZE), device=ALONE.device, precision="fp32", batch=4)
    assert set(kernels.values()) == {"math"}
    kernels = report_kernels(model, (3, SIZE, SIZE), device=ALONE.device, precision="fp32", batch=5)
    assert set(kernels.values()) == {"sdpa: flash"}


def test_without_the_wish_nothing_is_measured(measured: list[Signature]) -> None:
    assert tune(kernel="auto") == {} and measured == []


def test_a_second_run_measures_nothing(measured: list[Signature], cache: Path) -> None:
    first = tune()
    assert len(measured) == 2 and kernels_of(first) == {"math"}
    assert tune() == first and len(measured) == 2
    assert len(list(cache.iterdir())) == 1


def test_another_shape_is_added_to_what_is_remembered(measured: list[Signature], cache: Path) -> None:
    tune()
    tune(micro_batch=4)
    assert len(measured) == 3
    (file,) = cache.iterdir()
    assert len(json.loads(file.read_text())["choices"]) == 3


def test_another_machine_torch_or_number_of_threads_is_measured_anew(
    measured: list[Signature], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 17)
        tune()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        tune()
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "describe_machine", lambda: {"processor": "another"})
        tune()
    assert len(measured) == 8 and len(list(cache.iterdir())) == 4
    tune()
    assert len(measured) == 8


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"environment": {}}', "\x00\x01"],
)
def test_a_damaged_file_is_ignored_and_made_anew(measured: list[Signature], cache: Path, damage: str) -> None:
    tune()
    (file,) = cache.iterdir()
    whole = file.read_text()
    file.write_text(damage)
    tune()
    assert len(measured) == 4 and json.loads(file.read_text()) == json.loads(whole)


@pytest.mark.parametrize("choices", [None, [1], [{"call": {}, "kernel": "math"}], [{"kernel": "math"}]])
def test_a_file_whose_entries_are_damaged_is_ignored(
    measured: list[Signature], cache: Path, choices: Any
) -> None:
    tune()
    (file,) = cache.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "choices": choices}))
    tune()
    assert len(measured) == 4


def test_a_run_goes_on_with_the_kernels_that_it_began_with(measured: list[Signature], tmp_path: Path) -> None:
    known = tmp_path / KERNELS_FILE
    record = tune()
    for one in record["choices"]:
        one["kernel"] = "sdpa"
    known.write_text(json.dumps(record))
    assert kernels_of(tune(known)) == {"sdpa"}
    assert kernels_of(tune(None)) == {"math"}  # the machine was told nothing
    record["environment"]["device"] = "another"
    known.write_text(json.dumps(record))
    assert kernels_of(tune(known)) == {"math"}
    known.write_text("{")
    assert kernels_of(tune(known)) == {"math"}
    assert len(measured) == 2


def test_what_a_run_knows_of_other_shapes_is_kept_with_it(measured: list[Signature], tmp_path: Path) -> None:
    known = tmp_path / KERNELS_FILE
    known.write_text(json.dumps(tune()))
    assert len(tune(known, micro_batch=4)["choices"]) == 3


def test_other_ranks_measure_nothing_and_take_what_rank_0_found(measured: list[Signature]) -> None:
    first = tune()
    Follower.heard = {Signature.from_dict(one["call"]): one["kernel"] for one in first["choices"]}
    follower = Follower(rank=1, size=2, local_rank=1, device=torch.device("cpu"))
    measured.clear()
    assert tune(world=follower) == first and measured == []


def test_a_cache_that_cannot_be_written_is_no_failure(measured: list[Signature], cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder would be")
    assert kernels_of(tune()) == {"math"}
