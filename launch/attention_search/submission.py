"""A search on a cluster: the supernet's job, and an array of workers that wait for it and share one study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from launch.attention_search.search import RECIPE, WORKER, Search, keep, read_search, supernet_is_finished
from launch.attention_search.space import Space
from launch.many.config import SweepConfig
from launch.many.grid import config_digest
from launch.many.group import Member, share_snapshot
from launch.many.plan import Plan, load_place
from launch.many.sweep import submit_members
from launch.submission.job import Job
from launch.submission.record import launch_folder
from launch.submission.request import Request, load_recipe, split_overrides
from launch.submission.run import submit_run
from launch.submission.slurm import script_text
from launch.submission.snapshot import read_source
from launch.submission.validate import Checked, check


def read_launched(
    recipe: str,
    words: Sequence[str],
    *,
    cluster: str,
    out: Path | None,
    trials: int,
    workers: int,
    max_flops: float | None,
) -> tuple[Search, ClusterConfig]:
    """Recipe and cluster file; `words` are settings of both. ConfigError with the mistakes in either."""
    of_recipe, of_cluster, mistakes = split_overrides("pretrain", words)
    search: Search | None = None
    try:
        search = read_search(recipe, of_recipe, out=out, trials=trials, workers=workers, max_flops=max_flops)
    except ConfigError as error:
        mistakes.append(str(error))
    place = load_place(cluster, of_cluster, mistakes)
    if mistakes or search is None or place is None:
        raise ConfigError("\n".join(mistakes))
    return search, place


def check_supernet(search: Search, cluster: ClusterConfig) -> Checked:
    """The supernet as a run that can be submitted; ConfigError with all mistakes."""
    overrides = search.supernet_overrides
    return check(
        Request(
            program="pretrain",
            recipe=search.recipe,
            overrides=overrides,
            loaded=load_recipe("pretrain", search.recipe, overrides),
            cluster=cluster,
            out=search.supernet,
        )
    )


def describe_search(search: Search, space: Space, checked: Checked) -> str:
    """What would be trained and scored, and the workers' script."""
    plan = _plan(search, space, checked.request.cluster)
    folder, source = launch_folder(search.out), read_source()
    is_trained = supernet_is_finished(search)
    trained = "is trained already" if is_trained else "is trained first"
    jobs = [Job(run_folder=_worker_folder(search, worker)) for worker in range(search.workers)]
    script = script_text(
        jobs,
        plan.cluster,
        folder,
        snapshot=folder / f"snapshot-{source.commit}-{_digest(search, space)}",
        name=plan.name,
        dependency=None if is_trained else "afterok:supernet",
    )
    return (
        f"{len(space.members()):,} networks; the supernet in {search.supernet} {trained}; {search.trials} of them are "
        f"scored by {search.workers} workers\n\n{script}"
    )


def submit_search(search: Search, space: Space, checked: Checked) -> dict[str, str]:
    """Submits what is missing; returns SLURM's ids by what they are of."""
    supernet: Sequence[str] = () if supernet_is_finished(search) else submit_run(checked).job_ids
    plan = _plan(search, space, checked.request.cluster)
    snapshot = share_snapshot(search.out, {RECIPE: search.loaded.yaml()}, digest=_digest(search, space))
    keep(search, space)
    members = [
        Member(
            label=f"worker {worker}",
            program="search",
            command=(WORKER, *search.worker_arguments(worker)),
            recipe=search.recipe,
            overrides=search.overrides,
            cluster=plan.cluster,
            run_folder=_worker_folder(search, worker),
        )
        for worker in range(search.workers)
    ]
    job_ids = submit_members(
        plan,
        members,
        snapshot,
        program="search",
        max_parallel=None,
        dependency=f"afterok:{supernet[0]}" if supernet else None,
    )
    trained = {"supernet": supernet[0]} if supernet else {}
    return {**trained, **{f"worker {number}": job_id for number, job_id in enumerate(job_ids)}}


def _plan(search: Search, space: Space, cluster: ClusterConfig) -> Plan:
    """What the workers have in common; each is one process, with one GPU where the cluster file has some."""
    study = space.study(trials=search.trials, workers=search.workers, seed=0)
    alone = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(1, cluster.gpus_per_node)}
    return Plan(
        name=search.out.name,
        file=search.recipe,
        config=SweepConfig(program="pretrain", recipe=search.recipe, search=study),
        overrides=search.overrides,
        cluster=ClusterConfig.model_validate({**cluster.model_dump(mode="json"), **alone}),
        out=search.out,
    )


def _worker_folder(search: Search, worker: int) -> Path:
    return search.out / "workers" / str(worker)


def _digest(search: Search, space: Space) -> str:
    recipe = search.loaded.config.model_dump(mode="json")
    return config_digest({"recipe": recipe, "limit": space.max_flops, "trials": search.trials})
