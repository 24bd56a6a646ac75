"""What each path of a supernet costs, without trying all: stages add up, since a gate leaves shapes as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.complexity import count_flops
from models.supernet import path_shape, searched_stages, set_path


@dataclass(frozen=True, slots=True, kw_only=True)
class PathCosts:
    """Operations of one image's forward, as `models.complexity.count_flops` counts them."""

    stages: tuple[int, ...]
    """The numbers of the stages that have the choice."""
    first: int
    """Of the path of first choices."""
    more: tuple[tuple[int, ...], ...]
    """[stage][choice]: what this choice takes more than the first one of its stage."""

    def flops(self, path: Sequence[int]) -> int:
        """Of a path."""
        return self.first + sum(more[choice] for more, choice in zip(self.more, path, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"stages": list(self.stages), "first": self.first, "more": [list(more) for more in self.more]}


def measure_paths(model: nn.Module, input_shape: tuple[int, ...]) -> PathCosts:
    """Of a supernet on images of `input_shape` (C, H, W), in shapes only; its first choices are active afterwards."""
    shape = path_shape(model)
    firsts = (0,) * len(shape)

    def flops_with(stage: int, choice: int) -> int:
        set_path(model, (*firsts[:stage], choice, *firsts[stage + 1 :]))
        return count_flops(model, input_shape)

    set_path(model, firsts)
    first = count_flops(model, input_shape)
    more = tuple(
        (0, *(flops_with(stage, choice) - first for choice in range(1, num_choices)))
        for stage, num_choices in enumerate(shape)
    )
    set_path(model, firsts)
    return PathCosts(stages=tuple(searched_stages(model)), first=first, more=more)
