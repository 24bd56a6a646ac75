"""Supernet: a ResNet that holds every choice of attention in each stage, one of which is active; `mirada search`.

All paths (a choice for each stage) share the weights of the network and are trained in turn, one at a step: single path
one-shot (Guo et al. 2020). Which one is active is a function of the seed and the step alone, so a run that was stopped
goes on with the same paths, and all ranks use the same modules. Paths are drawn as in FairNAS (Chu et al. 2021): in as
many steps as there are choices each stage has each of them once, in an order of its own. docs/search.md.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor, nn

from configs.attention import SupernetConfig
from configs.base import ConfigError
from models.gates import gate_mistakes, new_gate, places, put_gates, stages_of

Path = tuple[int, ...]
"""For each stage that has the choice, in order: the number of what is active there."""


class Candidates(nn.Module):
    """What may stand in one place; one of them does."""

    def __init__(self, candidates: Sequence[nn.Module], *, stage: int) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(candidates)
        self.stage = stage
        self.active = 0

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        active: Tensor = self.candidates[self.active](maps_BCHW)
        return active


class PathSwitch:
    """Makes the path of each step the active one; nothing is there to switch in a network that is no supernet."""

    def __init__(self, model: nn.Module, *, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._shape = path_shape(model)

    def follow(self, step: int) -> None:
        """The path of optimizer step `step` (from 0)."""
        if self._shape:
            set_path(self._model, path_at(step, seed=self._seed, shape=self._shape))


def use_supernet(model: nn.Module, config: SupernetConfig) -> nn.Module:
    """Puts every choice into every place, in place; the first choices are active.

    Raises ConfigError for what the network, or a gate, has no place for.
    """
    gates = [choice for choice in config.choices if choice is not None]
    where = "model.attention.search"
    mistakes = [line for gate in gates for line in gate_mistakes(model, gate, config.stages, where=where)]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    for stage in stages_of(model, config.stages):
        put_gates(
            model,
            stage,
            [
                Candidates(
                    [
                        nn.Identity() if choice is None else new_gate(choice, channels, count)
                        for choice in config.choices
                    ],
                    stage=stage,
                )
                for count, channels in enumerate(places(model, stage))
            ],
        )
    return model


def path_at(step: int, *, seed: int, shape: Sequence[int]) -> Path:
    """The path of a step; `shape` is the number of choices of each stage."""
    return tuple(
        _order(seed, step // num_choices, stage, num_choices)[step % num_choices]
        for stage, num_choices in enumerate(shape)
    )


def set_path(model: nn.Module, path: Path) -> None:
    """Makes a path the active one, and nothing else."""
    stages = searched_stages(model)
    if len(path) != len(stages):
        raise ValueError(f"the path {path} is not one of {len(stages)} stages")
    chosen = dict(zip(stages, path, strict=True))
    for candidates in _all_candidates(model):
        candidates.active = chosen[candidates.stage]


def path_shape(model: nn.Module) -> tuple[int, ...]:
    """The number of choices of each stage, from the input on; empty for a network that is no supernet."""
    numbers = {found.stage: len(found.candidates) for found in _all_candidates(model)}
    return tuple(numbers[stage] for stage in sorted(numbers))


def searched_stages(model: nn.Module) -> list[int]:
    """The stages that have the choice, from the input on."""
    return sorted({candidates.stage for candidates in _all_candidates(model)})


def _order(seed: int, round_index: int, stage: int, num_choices: int) -> list[int]:
    """The choices of a stage in the order in which a round of steps has them; the same on every machine."""
    return random.Random(f"{seed} {round_index} {stage}").sample(range(num_choices), num_choices)


def _all_candidates(model: nn.Module) -> list[Candidates]:
    return [module for module in model.modules() if isinstance(module, Candidates)]
