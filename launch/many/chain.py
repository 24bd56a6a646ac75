"""Chain: a pipeline whose stages are all checked, before the first of them is submitted.

pipeline.yaml -> stages in order -> every recipe and place checked -> Chain -> jobs (chain_jobs.py) -> OUT/<stage>/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from configs.load import load_config
from launch.many.config import PipelineConfig
from launch.many.grid import config_digest, overrides_of
from launch.many.group import is_finished, refuse
from launch.many.pipeline import Stage, order_stages
from launch.many.program import ONE_PROCESS, argument_mistakes
from launch.submission.folder import refuse_foreign
from launch.submission.request import Request, load_cluster, load_recipe
from launch.submission.validate import Checked, check, find_mistakes


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stage with nothing known to be wrong."""

    stage: Stage
    cluster: ClusterConfig
    checked: Checked | None
    """None for a program without a recipe."""
    is_done: bool
    """Its folder holds the release of this very config."""

    @property
    def settings(self) -> str:
        """What it does, for the snapshot's name and its recipe."""
        return "\n".join(self.stage.arguments) if self.checked is None else self.checked.request.loaded.yaml()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A pipeline, checked."""

    name: str
    file: str
    cluster: ClusterConfig
    out: Path
    steps: tuple[Step, ...]
    """Each behind those it waits for."""


def check_pipeline(file: str, overrides: Sequence[str], *, cluster: str, out: Path | None) -> Chain:
    """Reads and checks every stage; raises one ConfigError with the mistakes of all. `overrides` are the cluster's."""
    folder = Path.cwd() / (out or Path("runs") / Path(file).stem)
    given = [text.removeprefix("cluster.") for text in overrides]
    common = load_cluster(cluster, given)
    stages = order_stages(load_config(PipelineConfig, file).config, folder)
    mistakes: list[str] = []
    steps = [_check_stage(stage, stages, cluster, given, mistakes) for stage in stages]
    refuse(iter(mistakes))
    return Chain(
        name=Path(file).stem,
        file=file,
        cluster=common,
        out=folder,
        steps=tuple(step for step in steps if step is not None),
    )


def _check_stage(
    stage: Stage, stages: Sequence[Stage], cluster: str, overrides: Sequence[str], mistakes: list[str]
) -> Step | None:
    """The stage if nothing is wrong with it; what is goes to `mistakes`."""
    single = () if stage.recipe is not None else ONE_PROCESS
    promised = {other.folder for other in stages}
    try:
        place = load_cluster(cluster, [*overrides, *single, *overrides_of(stage.cluster)])
        if place.kind == "debug":
            raise ConfigError("kind debug becomes the one process it runs: use kind local")
        if stage.recipe is None:
            refuse_foreign(stage.folder)
            request, is_done = None, False
            found = list(argument_mistakes(stage.program, stage.arguments, promised))
        else:
            request = _request(stage, stage.recipe, place)
            is_done = _is_done(request)
            found = list(find_mistakes(request, promised))
    except ConfigError as error:
        found = [str(error)]
    mistakes += [f"stages.{stage.name}: {mistake}" for mistake in found]
    if found:
        return None
    checked = None if request is None else check(request, promised=promised)
    return Step(stage=stage, cluster=place, checked=checked, is_done=is_done)


def _request(stage: Stage, recipe: str, place: ClusterConfig) -> Request:
    return Request(
        program=stage.program,
        recipe=recipe,
        overrides=stage.arguments,
        loaded=load_recipe(stage.program, recipe, stage.arguments),
        cluster=place,
        out=stage.folder,
    )


def _is_done(request: Request) -> bool:
    """Whether the run is finished; ConfigError where another config was trained there."""
    kept = request.out / "config.yaml"
    if not kept.is_file() or not is_finished(request.out):
        return False
    trained = request.loaded.config.__class__.model_validate(yaml.safe_load(kept.read_text()))
    if config_digest(trained.model_dump(mode="json")) != config_digest(
        request.loaded.config.model_dump(mode="json")
    ):
        raise ConfigError(
            f"{str(request.out)!r} holds a finished run of another config: name another folder with --out"
        )
    return True
