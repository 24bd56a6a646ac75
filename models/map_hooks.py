"""MapHooks: forward hooks that live for one `with` block and collect one map per layer asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from configs.base import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


class MapHooks(ABC):
    """Hooks that live for one `with` block, and what they saw; resolved, and found wanting, before any forward."""

    kind: ClassVar[Literal["attention", "energy", "gate", "features", "output"]]
    """What the maps are made of."""

    def __init__(self, chosen: Sequence[tuple[str, nn.Module]]) -> None:
        self.names = tuple(name for name, _ in chosen)
        self._modules = tuple(module for _, module in chosen)
        self._seen: dict[int, Tensor] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        self._seen.clear()
        for index, module in enumerate(self._modules):
            self._attach(index, module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def take(self) -> tuple[Tensor, ...]:
        """The maps of the forward inside the `with` block, in the order they were asked for."""
        unseen = [name for index, name in enumerate(self.names) if index not in self._seen]
        if unseen:
            raise RuntimeError(
                f"no map of {', '.join(unseen)}: the layer did not run inside the 'with' block (the model was not "
                "called, was compiled before, or skips the layer)"
            )
        maps = tuple(self._seen[index] for index in range(len(self.names)))
        self._seen.clear()
        return maps

    @abstractmethod
    def _attach(self, index: int, module: nn.Module) -> None:
        """Hooks what the map of this layer is made from."""

    def _keep(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)


class Outputs(MapHooks):
    """What the modules given put out, as it is."""

    kind = "output"

    def _attach(self, index: int, module: nn.Module) -> None:
        self._keep(module.register_forward_hook(partial(self._on_output, index)))

    def _on_output(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen[index] = output


def pick(
    available: Sequence[tuple[str, nn.Module]], wanted: Sequence[int | str], *, what: str
) -> list[tuple[str, nn.Module]]:
    """The layers wished for by index or name; ConfigError that lists what there is."""
    names = [name for name, _ in available]
    allowed = f"the model has {what} {', '.join(f'{i} ({name})' for i, name in enumerate(names)) or '(none)'}"
    if not wanted:
        raise ConfigError(f"no map is asked for; {allowed}")
    chosen = []
    for wish in wanted:
        index = names.index(wish) if isinstance(wish, str) and wish in names else wish
        if isinstance(index, str) or not -len(names) <= index < len(names):
            raise ConfigError(
                f"a map of {wish!r} is asked for, but {allowed}; negative numbers count from the last"
            )
        chosen.append(available[index])
    return chosen
