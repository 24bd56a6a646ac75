"""models.flash: which generation of FlashAttention a GPU gets, and how each of them is called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models.flash
from models.flash import Flash, attend_flash, best_of, flash_obstacle

MODULES = {"FA2": "flash_attn", "FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}


def plain(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float) -> Tensor:
    """What the packages compute, in their layout [B, N, H, D]."""
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=softmax_scale)
    return out.transpose(1, 2)


def with_log_sums(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float) -> tuple[Tensor, Tensor]:
    return plain(q, k, v, softmax_scale=softmax_scale), torch.zeros(1)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> object:
    """Puts packages where imports find them; those not named cannot be imported."""
    for name in ("flash_attn", *MODULES.values()):
        monkeypatch.setitem(sys.modules, name, None)

    def put(*names: str) -> None:
        for name in names:
            module = ModuleType(MODULES[name])
            module.flash_attn_func = with_log_sums if name == "FA4" else plain  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, MODULES[name], module)
            if name == "FA4" and sys.modules["flash_attn"] is None:  # alone it is a folder without functions
                monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))

    return put


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        (8, ("FA2", "FA3", "FA4"), "FA2"),
        (9, ("FA2", "FA3", "FA4"), "FA3"),
        (9, ("FA2", "FA4"), "FA4"),
        (9, ("FA2",), "FA2"),
        (10, ("FA2", "FA3", "FA4"), "FA4"),
        (10, ("FA2", "FA3"), "FA2"),
        (12, ("FA2", "FA3", "FA4"), "FA2"),
    ],
)
def test_a_gpu_gets_the_newest_generation_that_is_written_for_it(
    capability: int, installed: tuple[str, ...], expected: str, install: object
) -> None:
    install(*installed)  # type: ignore[operator]
    flash = best_of(capability)
    assert isinstance(flash, Flash) and flash.name == expected
    q, k, v = (torch.randn(2, 3, length, 16) for length in (5, 7, 7))
    expected_out = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(flash.attend(q, k, v, scale=0.3), expected_out)


def test_without_a_package_every_generation_says_what_is_missing(install: object) -> None:
    reason = best_of(9)
    assert isinstance(reason, str)
    assert "no package of FlashAttention for this GPU imports" in reason
    for part in ("FA3 (flash-attn, folder hopper): ", "FA4 (flash-attn-4): ", "FA2 (flash-attn): "):
        assert part in reason
    install("FA4")  # type: ignore[operator]
    assert "FA2 (flash-attn): cannot import name 'flash_attn_func'" in str(best_of(8))


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every device is one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    models.flash._best_of_capability.cache_clear()
    yield
    models.flash._best_of_capability.cache_clear()


@pytest.mark.usefixtures("on_hopper")
def test_heads_that_a_generation_does_not_take_are_an_obstacle(install: object) -> None:
    install("FA4")  # type: ignore[operator]
    gpu = torch.device("cuda")
    assert flash_obstacle(gpu, 128) is flash_obstacle(gpu, 8) is None
    assert flash_obstacle(gpu, 136) == "heads are 136 wide, and FA4 takes multiples of 8 up to 128"
    assert flash_obstacle(gpu, 12) == "heads are 12 wide, and FA4 takes multiples of 8 up to 128"


@pytest.mark.usefixtures("on_hopper")
def test_torch_compile_takes_the_choice_as_given_and_cuts_around_the_call(install: object) -> None:
    install("FA3")  # type: ignore[operator]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if flash_obstacle(torch.device("cuda"), q.shape[-1]):
            return q
        return attend_flash(q * 2, k, v, scale=0.3) + 1

    compiled = torch.compile(attend, backend="aot_eager")
    for length, width in ((5, 16), (7, 16), (5, 12), (5, 24)):
        q, k, v = (torch.randn(2, 3, length, width) for _ in range(3))
        expected = q if width == 12 else F.scaled_dot_product_attention(q * 2, k, v, scale=0.3) + 1
        torch.testing.assert_close(compiled(q, k, v), expected)
    torch.compiler.reset()


def test_a_gpu_before_ampere_is_told_so() -> None:
    assert best_of(7) == "the GPU has compute capability 7, and FlashAttention begins with 8 (Ampere)"
