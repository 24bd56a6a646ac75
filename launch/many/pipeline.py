"""The stages of a pipeline in the order in which they can run, with every ``${stage.output}`` turned into a path.

{teacher: pretrain, student: finetune with ${teacher.release}, scores: evaluate ${student.release}}
    -> [Stage teacher, Stage student after teacher, Stage scores after student]
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.base import ConfigError
from launch.many.config import PipelineConfig, StageConfig
from launch.many.grid import overrides_of

_OUTPUTS: Mapping[str, Callable[[Path], Path]] = {
    "folder": lambda folder: folder,
    "release": lambda folder: folder / "release",
    "checkpoints": lambda folder: folder / "checkpoints",
}
"""What a stage leaves behind, and where below its folder."""
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One program of a pipeline, ready to be submitted."""

    name: str
    program: str
    recipe: str | None
    arguments: tuple[str, ...]
    """Overrides of a recipe, or the arguments of a program without one; paths filled in."""
    folder: Path
    """Its run folder, or where it may leave files."""
    after: tuple[str, ...]
    """Names of the stages that must have ended well before."""
    cluster: Mapping[str, Any]


def order_stages(config: PipelineConfig, out: Path) -> list[Stage]:
    """Every stage behind those it builds on; ConfigError naming every wrong reference, or the circle they go in."""
    mistakes: list[str] = []
    stages = {
        name: _resolve(name, stage, config.stages, out, mistakes) for name, stage in config.stages.items()
    }
    if mistakes:
        raise ConfigError(
            "the stages do not fit together:\n" + "\n".join(f"  {mistake}" for mistake in mistakes)
        )
    return _sorted(stages)


def _resolve(
    name: str, stage: StageConfig, stages: Mapping[str, StageConfig], out: Path, mistakes: list[str]
) -> Stage:
    """The stage with paths for references; what is wrong with them goes to `mistakes`."""
    named: list[str] = []

    def path_of(reference: re.Match[str]) -> str:
        target, _, output = reference[1].partition(".")
        problem = _problem(name, target, output, stages)
        if problem is not None:
            mistakes.append(f"stages.{name}: ${{{reference[1]}}} {problem}")
            return ""
        named.append(target)
        return str(_OUTPUTS[output](out / target))

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return _REFERENCE.sub(path_of, value)
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return value

    arguments = filled(stage.arguments) if not stage.is_training else overrides_of(filled(stage.settings))
    mistakes += [
        f"stages.{name}.after: no stage {other!r}{_did_you_mean(other, stages)}"
        for other in stage.after
        if other not in stages
    ]
    after = dict.fromkeys(other for other in [*named, *stage.after] if other != name)
    return Stage(
        name=name,
        program=stage.program,
        recipe=stage.recipe,
        arguments=tuple(arguments),
        folder=out / name,
        after=tuple(after),
        cluster=stage.cluster,
    )


def _problem(name: str, target: str, output: str, stages: Mapping[str, StageConfig]) -> str | None:
    if target not in stages:
        return f"names no stage{_did_you_mean(target, stages)}"
    if output not in _OUTPUTS:
        return f"names no output; a stage has {', '.join(_OUTPUTS)}"
    if output != "folder" and not stages[target].is_training:
        return f"names what {stages[target].program} does not make; it has a folder alone"
    if target == name and output != "folder":
        return "is what this stage itself is to make"
    return None


def _did_you_mean(wrong: str, stages: Mapping[str, StageConfig]) -> str:
    close = difflib.get_close_matches(wrong, stages, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(stages)}"


def _sorted(stages: Mapping[str, Stage]) -> list[Stage]:
    """In the order of the file, but each behind those it waits for."""
    done: dict[str, Stage] = {}
    while len(done) < len(stages):
        ready = [s for s in stages.values() if s.name not in done and all(n in done for n in s.after)]
        if not ready:
            waiting = {name: stage for name, stage in stages.items() if name not in done}
            raise ConfigError(f"stages wait for each other: {' -> '.join(_circle(waiting))}")
        done[ready[0].name] = ready[0]
    return list(done.values())


def _circle(waiting: Mapping[str, Stage]) -> Sequence[str]:
    """Names from one stage of a circle round to itself, each waiting for the next."""
    path = list(_walk(waiting))
    return path[path.index(path[-1]) :]


def _walk(waiting: Mapping[str, Stage]) -> Iterator[str]:
    name, seen = next(iter(waiting)), set[str]()
    while name not in seen:
        yield name
        seen.add(name)
        name = next(other for other in waiting[name].after if other in waiting)
    yield name
