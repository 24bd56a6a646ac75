"""The attention systems a recipe asks for, put into a network; one place, so that all mistakes are told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from configs.attention import AttentionConfig
from configs.base import ConfigError
from models.attention import use_attend
from models.dynamic import use_dynamic
from models.gates import use_gates
from models.progressive import use_progressive
from models.regularizers import check_beginning, check_penalties
from models.supernet import use_supernet
from models.two_stage import use_two_stage


def apply_attention(model: nn.Module, config: AttentionConfig) -> nn.Module:
    """The network with `config`'s systems, in place; names of its own parameters stay as they are.

    Raises ConfigError with a line for each option that the network has no use for.
    """
    mistakes = []
    for step in _steps(config):
        try:
            step(model)
        except ConfigError as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return model


def _steps(config: AttentionConfig) -> Iterator[Callable[[nn.Module], object]]:
    """What adds layers comes before what changes how they are computed, and both before what watches them."""
    gates, search, two_stage = config.gates, config.search, config.two_stage
    dynamic, progressive = config.dynamic, config.progressive
    if gates:
        yield lambda model: use_gates(model, gates)
    if search is not None:
        yield lambda model: use_supernet(model, search)
    yield lambda model: use_attend(model, config.kernel)
    if two_stage is not None:
        yield lambda model: use_two_stage(model, two_stage, kernel=config.kernel)
    if dynamic is not None:
        yield lambda model: use_dynamic(model, dynamic, kernel=config.kernel)
    if progressive is not None:
        yield lambda model: use_progressive(model, progressive)
    if config.regularize:
        yield lambda model: check_penalties(model, config.regularize)
    if config.regularize and progressive is not None:
        yield lambda model: check_beginning(model, config.regularize, start=progressive.start)
