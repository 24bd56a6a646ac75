"""benchmarks.tuned: networks are timed where kernels differ, and once where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.tuned import NETWORKS, Network, measure
from models.attention import use_attend
from models.kernel_choices import Chosen, Signature, use_choices
from models.kernel_timing import Timing, attention_signatures

NAME = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(NETWORKS, NAME, Network(size=224, depth=1))
    yield
    use_choices({})


def takes(monkeypatch: pytest.MonkeyPatch, training: Chosen, inference: Chosen) -> None:
    def found(signature: Signature, device: torch.device) -> Timing:
        kernel = training if signature.differentiates else inference
        return Timing(kernel=kernel, auto="sdpa", ratios={"sdpa": 1.0, "math": 0.5})

    monkeypatch.setattr("benchmarks.tuned.time_kernels", found)


def networks(rows: list[dict[str, Any]]) -> list[tuple[str, str | None, bool]]:
    return [
        (row["kind"], row["others"], "ratio" in row) for row in rows if row["what"].startswith("the network")
    ]


def test_what_has_the_same_kernels_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    takes(monkeypatch, "sdpa", "sdpa")
    same = [("training", "same kernels", True), ("inference", "same kernels", False)]
    assert networks(measure(NAME, 1, 1)) == same
    assert networks(measure(NAME, 1, 1, time_same=False)) == [
        (kind, others, False) for kind, others, _ in same
    ]


def test_what_has_other_kernels_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    takes(monkeypatch, "sdpa", "math")
    wanted = [("training", "same kernels", False), ("inference", None, True)]
    assert networks(measure(NAME, 1, 1, time_same=False)) == wanted


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224"])
def test_the_calls_of_the_whole_network_are_among_those_of_two_blocks_a_stage(name: str) -> None:
    def calls(network: Network) -> set[Signature]:
        model = use_attend(network.build(name), "tuned")
        shape = (3, network.size, network.size)
        return set(attention_signatures(model, shape, device=torch.device("cpu"), precision="fp32", batch=8))

    whole = Network(size=224, depth=(2, 2, 6, 2))
    assert calls(whole) == calls(NETWORKS[name])
