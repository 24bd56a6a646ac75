"""Every attention system is torch's to compile and to recompute: gradients are those of the plain forward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.activation_memory import checkpointing
from models.kernel_report import report_kernels
from models.regularizers import AttentionPenalties
from tests.support.systems import SYSTEMS, build_system, system_config
from tests.support.tiny_run import SIZE


class Trained:
    """A system with what a recipe makes it minimise beside its task."""

    def __init__(self, name: str) -> None:
        self.model = build_system(name)
        self._penalties = AttentionPenalties(self.model, system_config(name).attention.regularize)

    def gradients(self, images: Tensor) -> dict[str, Tensor]:
        """Of a loss that all logits and penalties are part of."""
        self.model.zero_grad()
        with self._penalties.watching():
            loss = self.model(images).square().mean()
        if found := self._penalties.take():
            loss = loss + self._penalties.weighted(found)
        loss.backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", SYSTEMS)
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    system, images = Trained(name), torch.rand(4, 3, SIZE, SIZE)
    wanted = system.gradients(images)
    with checkpointing(system.model, enabled=True) as is_possible:
        assert is_possible
        assert_same(system.gradients(images), wanted)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_the_compiler_traces_gives_the_same_gradients(name: str) -> None:
    """Traced and differentiated ahead of time; code is generated from the same graphs (test_swin_attention.py)."""
    images = torch.rand(4, 3, SIZE, SIZE)
    wanted = Trained(name).gradients(images)
    traced = Trained(name)
    traced.model.compile(backend="aot_eager")
    assert_same(traced.gradients(images), wanted)
    torch.compiler.reset()


@pytest.mark.parametrize("name", SYSTEMS)
def test_its_kernels_can_be_told(name: str) -> None:
    kernels = report_kernels(
        build_system(name), (3, SIZE, SIZE), device=torch.device("cpu"), precision="fp32"
    )
    has_heads = not any(word in name for word in ("local", "squeeze", "cbam", "eca", "efficientnet", "gates"))
    assert bool(kernels) == (has_heads and name != "resnet")
    expected = {"float8: emulated"} if "float8" in name else {"sdpa: flash", "math"}
    assert not set(kernels.values()) - expected
