"""models.kernel_choices: a choice is for the very call that it was made for, and survives JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.base import ConfigError
from models.attention import attend, choose_kernel
from models.kernel_choices import Signature, choice_for, is_kernel, use_choices


@pytest.fixture(autouse=True)
def _none_chosen() -> Iterator[None]:
    yield
    use_choices({})


def inputs(batch: int = 4, **given: Any) -> list[Tensor]:
    return [torch.randn(batch, 2, 5, 8, **given) for _ in range(3)]


def signature(*tensors: Tensor, bias: Tensor | None = None) -> Signature:
    q, k, v = tensors
    return Signature.of(q, k, v, bias)


def test_a_signature_survives_json() -> None:
    plain, biased = signature(*inputs()), signature(*inputs(requires_grad=True), bias=torch.zeros(1, 2, 5, 5))
    for one in (plain, biased):
        assert Signature.from_dict(json.loads(json.dumps(asdict(one)))) == one
    assert plain != biased and (plain.dtype, biased.bias) == ("float32", (1, 2, 5, 5))


@pytest.mark.parametrize(
    "damaged", [{}, {"q": [1]}, {"q": "x"}, {"bias": "x"}, {"k": ["a", 2]}, {"more": 1}, {"q": None}]
)
def test_what_is_no_signature_is_refused(damaged: dict[str, Any]) -> None:
    whole = {} if damaged == {} else asdict(signature(*inputs()))
    with pytest.raises((TypeError, ValueError)):
        Signature.from_dict({**whole, **damaged})


def test_a_choice_is_taken_for_the_very_call_and_auto_for_all_others() -> None:
    q, k, v = inputs(requires_grad=True)
    use_choices({signature(q, k, v): "math"})
    assert choose_kernel(q, k, v, kernel="tuned") == "math"
    assert choose_kernel(q, k, v) == "sdpa"
    bias = torch.zeros(1, 2, 5, 5)
    others = [inputs(batch=3, requires_grad=True), inputs(), inputs(dtype=torch.float64, requires_grad=True)]
    assert [choose_kernel(*other, kernel="tuned") for other in others] == ["sdpa"] * 3
    assert choose_kernel(q, k, v, bias, kernel="tuned") == "sdpa"
    with torch.no_grad():
        assert choice_for(q, k, v, None) is None


def test_flash_that_was_chosen_is_refused_as_flash_that_is_wished_for_where_it_cannot_be() -> None:
    q, k, v = inputs()
    use_choices({signature(q, k, v): "flash"})
    with pytest.raises(ConfigError, match="kernel 'flash' cannot be used: the tensors are on 'cpu'"):
        attend(q, k, v, kernel="tuned")


def test_the_compiler_follows_a_choice_at_every_size() -> None:
    q, k, v = inputs(requires_grad=True)
    use_choices({signature(q, k, v): "math"})
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, _: object) -> Any:
        names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        seen.append("sdpa" if any("scaled_dot_product" in name for name in names) else "math")
        return graph

    traced = torch.compile(lambda q, k, v: attend(q, k, v, kernel="tuned"), backend=note, fullgraph=True)
    for batch in (4, 3, 2, 4):
        given = inputs(batch, requires_grad=True)
        torch.testing.assert_close(traced(*given), attend(*given, kernel="math"))
    assert seen[:2] == ["math", "sdpa"] and len(seen) <= 3
    torch.compiler.reset()


def test_what_torch_is_told_to_take_computes_the_same() -> None:
    q, k, v = inputs(requires_grad=True)
    for name in ("sdpa: flash", "math"):
        assert is_kernel(name)
        use_choices({signature(q, k, v): name})  # type: ignore[dict-item]
        torch.testing.assert_close(attend(q, k, v, kernel="tuned"), attend(q, k, v, kernel="math"))
    assert not is_kernel("fast")
