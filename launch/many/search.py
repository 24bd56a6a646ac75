"""A search: workers, the tasks of one job array, take trials from one study until all have been run.

search.yaml -> base recipe and every edge of the space checked -> OUT/workers/K per worker -> array -> OUT/trials/NNNN
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.base import ConfigError
from launch.local import count_ranks, run_ranks
from launch.many.config import RangeConfig, SearchConfig
from launch.many.grid import config_digest, overrides_of
from launch.many.group import Member, check_all, mistake_lines, refuse, share_snapshot, write_parent
from launch.many.plan import Plan
from launch.many.sweep import submit_members
from launch.submission.job import Job
from launch.submission.record import launch_folder
from launch.submission.request import Request
from launch.submission.slurm import script_text
from launch.submission.snapshot import RECIPE, read_source
from launch.submission.validate import Checked

_MODULE = "launch.many.worker"
_FILE = "search.yaml"


def check_search(plan: Plan) -> Checked:
    """The recipe of all trials, checked with every outermost value of the space; ConfigError with all mistakes."""
    edges = dict(_edges(_search(plan)))
    wrong: dict[str, list[str]] = {}
    requests: dict[str, Request] = {}
    common = overrides_of({"tracking.parent": str(plan.out)})
    for label, overrides in edges.items():
        try:
            requests[label] = plan.request([*common, *overrides], plan.out)
        except ConfigError as error:
            wrong.setdefault(str(error), []).append(label)
    refuse(mistake_lines(wrong, len(edges)))
    return check_all(requests)[_BASE]


def describe_search(plan: Plan, checked: Checked) -> str:
    """The study and the script that would go to sbatch; writes nothing."""
    search = _search(plan)
    lines = [f"  {key}: {_described(space)}" for key, space in search.space.items()]
    text = (
        f"{search.trials} trials by {search.workers} workers in {plan.out}, {search.direction} {search.metric}\n"
        + "".join(f"{line}\n" for line in lines)
    )
    if plan.cluster.kind != "slurm":
        return text
    folder, source = launch_folder(plan.out), read_source()
    return f"{text}\n" + script_text(
        [Job(run_folder=_worker_folder(plan, worker)) for worker in range(search.workers)],
        plan.cluster,
        folder,
        snapshot=folder / f"snapshot-{source.commit}-{_digest(plan, checked)}",
        name=plan.name,
    )


def submit_search(plan: Plan, checked: Checked, *, max_parallel: int | None) -> list[str]:
    """Submits the workers as one array and returns SLURM's ids; an earlier study in the folder is gone on with."""
    recipes = {RECIPE: checked.request.loaded.yaml(), _FILE: _search_yaml(plan)}
    snapshot = share_snapshot(plan.out, recipes, digest=_digest(plan, checked))
    write_parent(plan.out, name=plan.name, settings=_space(plan))
    members = [
        Member(
            label=f"worker {worker}",
            program="search",
            command=(_MODULE, *_arguments(plan, snapshot.recipe(_FILE), snapshot.recipe(), worker)),
            recipe=plan.file,
            overrides=plan.overrides,
            cluster=plan.cluster,
            run_folder=_worker_folder(plan, worker),
            node_counts=checked.node_counts,
        )
        for worker in range(_search(plan).workers)
    ]
    return submit_members(plan, members, snapshot, program="search", max_parallel=max_parallel)


def run_search_here(plan: Plan, checked: Checked, *, again: str) -> int:
    """Runs the trials one after another on this machine, by one worker; returns the exit code."""
    plan.out.mkdir(parents=True, exist_ok=True)
    write_parent(plan.out, name=plan.name, settings=_space(plan))
    recipe, search = plan.out / RECIPE, plan.out / _FILE
    recipe.write_text(checked.request.loaded.yaml())
    search.write_text(_search_yaml(plan, workers=1))
    given = plan.cluster.tasks_per_node or plan.cluster.gpus_per_node
    return run_ranks(
        _MODULE,
        _arguments(plan, search, recipe, 0),
        num_ranks=given or count_ranks(checked.request.loaded.config.train.ranks),
        out=_worker_folder(plan, 0),
        again=again,
    )


_BASE = "the recipe itself"


def _edges(search: SearchConfig) -> Iterator[tuple[str, list[str]]]:
    """Overrides that set one key to one of its outermost values, by what they are; and none."""
    yield _BASE, []
    for key, space in search.space.items():
        for value in space if isinstance(space, list) else space.ends:
            overrides = overrides_of({key: value})
            yield overrides[0], overrides


def _search(plan: Plan) -> SearchConfig:
    if plan.config.search is None:
        raise ConfigError(f"{plan.file!r} has no 'search'")
    return plan.config.search


def _search_yaml(plan: Plan, **changes: Any) -> str:
    """The sweep's file for the workers, every default written out."""
    content = plan.config.model_dump(mode="json", exclude_none=True)
    content["search"] = {**_search(plan).model_dump(mode="json"), **changes}
    return yaml.safe_dump(content, sort_keys=False)


def _arguments(plan: Plan, search: Path, recipe: Path, worker: int) -> list[str]:
    return [str(search), str(recipe), "--out", str(plan.out), "--worker", str(worker)]


def _worker_folder(plan: Plan, worker: int) -> Path:
    return plan.out / "workers" / str(worker)


def _digest(plan: Plan, checked: Checked) -> str:
    recipe = checked.request.loaded.config.model_dump(mode="json")
    return config_digest({"recipe": recipe, "search": _search(plan).model_dump(mode="json")})


def _space(plan: Plan) -> dict[str, str]:
    return {key: _described(space) for key, space in _search(plan).space.items()}


def _described(space: RangeConfig | Sequence[Any]) -> str:
    if not isinstance(space, RangeConfig):
        return json.dumps(list(space))
    kind = " by powers" if space.log else f" in steps of {space.step:g}" if space.step is not None else ""
    return f"{space.low:g} to {space.high:g}{kind}"
