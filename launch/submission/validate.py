"""Everything about a submission that can be known to be wrong before it is queued, at once, on the login node.

Reads small files and asks SLURM nothing but whether an earlier job of the same folder is still there; imports no torch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.base import ConfigError
from configs.estimates import find_estimate
from configs.load import packaged_root
from configs.same_run import refuse_other_run
from configs.training import RunConfig
from launch.submission.folder import refuse_foreign
from launch.submission.record import read_submission
from launch.submission.releases import cache_mistakes, release_folder, release_mistakes
from launch.submission.request import Request
from launch.submission.slurm import refuse_without_slurm

_PACKAGED = "mirada://"
_INDEX = "_info.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A request with which nothing is known to be wrong."""

    request: Request
    node_counts: tuple[int, ...]
    """Those between the cluster's least and most whose ranks can share the global batch."""
    notes: tuple[str, ...]
    """What its user should know."""


def check(request: Request, *, promised: Collection[Path] = ()) -> Checked:
    """Looks at everything; raises ConfigError with all mistakes.

    `promised` are run folders whose releases earlier jobs will have written: they need not be there yet.
    """
    mistakes = list(find_mistakes(request, promised))
    if mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError(f"{count}, nothing was submitted\n" + "\n".join(f"  {line}" for line in mistakes))
    return Checked(
        request=request,
        node_counts=tuple(_usable_counts(request)),
        notes=tuple(_time_notes(request)),
    )


def find_mistakes(request: Request, promised: Collection[Path] = ()) -> Iterator[str]:
    """One line each, with the key or option to change."""
    config: RunConfig = request.loaded.config
    yield from _data_mistakes(config)
    yield from _length_mistakes(config)
    yield from release_mistakes(config.releases, promised)
    yield from cache_mistakes(config.kept_answers, promised)
    yield from _share_mistakes(request)
    if request.cluster.kind == "slurm":
        yield from _place_mistakes(request)
        yield from _time_mistakes(request)
        yield from _folder_mistakes(request)


def _data_mistakes(config: RunConfig) -> Iterator[str]:
    needed = config.train.global_batch
    locations = {"data.train": config.data.train}
    if config.data.val is not None:
        locations["data.val"] = config.data.val
    locations |= {f"data.mixture {corpus.train!r}": corpus.train for corpus in config.data.mixture}
    for key, location in locations.items():
        try:
            found = count_samples(location)
        except ConfigError as error:
            yield f"{key}: {error}"
            continue
        if key == "data.train" and not config.data.mixture and found < needed:
            yield (
                f"data.train: {location!r} has {found:,} samples, and train.global_batch takes {needed:,} a step: "
                "lower train.global_batch or add data"
            )


def _length_mistakes(config: RunConfig) -> Iterator[str]:
    """A run without a step, or with nothing but warm-up; where the index alone says how long an epoch is."""
    train, warmup = config.train, config.schedule.warmup
    try:
        epoch = count_samples(config.data.train) // train.global_batch
    except ConfigError:
        return
    if epoch == 0 or config.data.mixture or config.data.held_out or config.data.unlabelled == "drop":
        return
    total = train.duration.steps(steps_per_epoch=epoch, global_batch=train.global_batch)
    if total < 1:
        yield f"train.duration: '{train.duration}' is less than one step: make it longer or train.global_batch smaller"
    elif total <= warmup.steps(steps_per_epoch=epoch, global_batch=train.global_batch):
        yield (
            f"schedule.warmup: '{warmup}' is as long as the whole run, {total} steps ('{train.duration}'): "
            "make it shorter"
        )


def count_samples(location: str) -> int:
    """Samples in a folder of shards, by its index; ConfigError where there is none or it cannot be read."""
    path = data_folder(location) / _INDEX
    try:
        info = json.loads(path.read_bytes())
        if "mirada" not in info:
            raise ValueError("it was not written by Mirada")
        return sum(int(split["num_samples"]) for split in info["splits"].values())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no index in {location!r}; make it with: mirada data index {location}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the index {str(path)!r} cannot be read ({error}); make it again with: mirada data index {location}"
        ) from None


def data_folder(location: str) -> Path:
    """The folder behind a location; ``mirada://sample/train`` ships with the package."""
    if location.startswith(_PACKAGED):
        return packaged_root() / "data_pipeline" / location.removeprefix(_PACKAGED)
    return Path(location)


def _usable_counts(request: Request) -> list[int]:
    cluster, config = request.cluster, request.loaded.config
    parts = 2 if config.data.augment.mixes else 1  # mixed images stay with their neighbour
    counts = range(cluster.min_nodes, cluster.max_nodes + 1)
    return [n for n in counts if config.train.global_batch % (n * cluster.ranks_per_node * parts) == 0]


def _share_mistakes(request: Request) -> Iterator[str]:
    cluster, config = request.cluster, request.loaded.config
    if cluster.kind != "slurm" or cluster.min_nodes in _usable_counts(request):
        return
    ranks, is_mixed = cluster.min_nodes * cluster.ranks_per_node, config.data.augment.mixes
    yield (
        f"nodes: {cluster.min_nodes} with {cluster.ranks_per_node} ranks each are {ranks} ranks, which cannot share "
        f"train.global_batch of {config.train.global_batch} equally{' in pairs (mixup, cutmix)' if is_mixed else ''}: "
        f"choose a multiple of {ranks * 2 if is_mixed else ranks}, or other nodes"
    )


def _place_mistakes(request: Request) -> Iterator[str]:
    """Paths that compute nodes would not see under the same name."""
    shared = [Path(folder) for folder in request.cluster.shared]
    yield from (f"shared: there is no folder {str(path)!r} here" for path in shared if not path.is_dir())
    if not shared:
        return
    roots = [path.resolve() for path in shared]
    for name, path in _paths(request):
        if not any(path.resolve().is_relative_to(root) for root in roots):
            yield (
                f"{name}: {str(path)!r} is not below {' or '.join(map(repr, map(str, shared)))}, the folders that all "
                "nodes share (key 'shared' of the cluster file): move it there"
            )


def _paths(request: Request) -> Iterator[tuple[str, Path]]:
    """Every path that the job will use, by the name of what sets it."""
    config: RunConfig = request.loaded.config
    yield "--out", request.out
    yield "the working directory", Path.cwd()
    if request.cluster.container is None and sys.prefix != sys.base_prefix:
        yield "the virtual environment", Path(sys.prefix)
    locations = {"data.train": config.data.train, "data.val": config.data.val}
    locations |= {f"data.mixture {corpus.train!r}": corpus.train for corpus in config.data.mixture}
    for key, location in locations.items():
        if location is not None and "://" not in location:
            yield key, Path(location)
    for role, reference in config.releases.items():
        folder = release_folder(reference)
        if folder is not None:
            yield role, folder
    for key, cache in config.kept_answers.items():
        yield key, Path(cache)


def _time_mistakes(request: Request) -> Iterator[str]:
    cluster, needed = request.cluster, _hours(request)
    allowed = (cluster.time_s or 0) / 3600 * (cluster.requeue.budget + 1)
    if needed is not None and needed > allowed:
        yield (
            f"time: mirada plan expects {needed:.1f} h, and {cluster.requeue.budget + 1} starts of {cluster.time} are "
            f"{allowed:.1f} h: raise 'time' or 'requeue.budget', or take more nodes"
        )


def _time_notes(request: Request) -> Iterator[str]:
    needed, limit_s = _hours(request), request.cluster.time_s
    if needed is not None and limit_s is not None:
        starts = max(1, -(-int(needed * 3600) // limit_s))
        often = "once" if starts == 1 else f"{starts} times"
        yield f"mirada plan expects {needed:.1f} h: with a limit of {request.cluster.time} it starts {often}"


def _hours(request: Request) -> float | None:
    """What the run takes on the fewest nodes, if `mirada plan` was asked."""
    ranks = request.cluster.min_nodes * request.cluster.ranks_per_node
    estimate = find_estimate(request.loaded.digest, ranks)
    return None if estimate is None else estimate.hours_on(ranks)


def _folder_mistakes(request: Request) -> Iterator[str]:
    try:
        refuse_without_slurm()
    except ConfigError as error:
        yield str(error)
    try:
        refuse_foreign(request.out)
        if not request.fresh and (request.out / "config.yaml").exists():
            refuse_other_run(request.out, request.loaded.config)
        yield from live_job(request.out)
    except ConfigError as error:
        yield f"--out: {error}"


def live_job(out: Path) -> Iterator[str]:
    """A line where a job that was submitted from this folder waits or runs."""
    former = read_submission(out)
    if former is None or not former.job_ids or shutil.which("squeue") is None:
        return
    asked = ["squeue", "-h", "-j", ",".join(former.job_ids), "-o", "%i is %T"]
    waiting = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    if waiting:
        yield (
            f"--out: job {waiting} in {str(out)!r} already: wait for it, stop it (mirada cancel {out}), or name "
            "another folder"
        )
