"""The folder of a teacher cache: new, or gone on with by whoever would write the very same answers into it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from configs.base import ConfigError
from data_pipeline.sidecar import Part
from engine.world import World
from finetune.cache_manifest import CacheManifest, read_manifest, setting_differences, teacher_differences

_POLL_S = 0.5


def claim_cache(out: Path, manifest: CacheManifest, world: World) -> CacheManifest:
    """The manifest of all there will be, written; all ranks together, and all fail together.

    ConfigError where the folder holds something else.
    """
    problem: ConfigError | OSError | None = None
    if world.is_main:
        try:
            manifest = _joined(out, manifest)
            manifest.write(out)
        except (ConfigError, OSError) as error:
            problem = error
    problem, manifest = world.broadcast((problem, manifest))
    if problem is not None:
        raise problem
    return manifest


def missing_parts(out: Path, parts: list[Part], world: World) -> list[Part]:
    """Those whose files are not there, on every rank; only one of them asks the file system."""
    missing = [part for part in parts if not part.path(out).is_file()] if world.is_main else []
    return world.broadcast(missing)


def wait_for_parts(out: Path, parts: Iterable[Part]) -> None:
    """Returns when their files are there. Ranks may need hours more than others, and a collective waits for minutes."""
    for part in parts:
        while not part.path(out).is_file():
            time.sleep(_POLL_S)


def finish_cache(out: Path, manifest: CacheManifest) -> None:
    """All that is wanted is there."""
    for leftover in out.glob("pass-*/.*.partial"):  # of writers that were killed
        leftover.unlink(missing_ok=True)
    replace(manifest, taught=manifest.wanted).write(out)


def _joined(out: Path, manifest: CacheManifest) -> CacheManifest:
    former = read_manifest(out)
    if former is not None:
        _refuse_other(out, former, manifest)
        return replace(manifest, wanted=former.wanted.joined(manifest.wanted), taught=former.taught)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {str(out)!r} is there already and is no teacher cache: name a new folder")
    return manifest


def _refuse_other(out: Path, former: CacheManifest, manifest: CacheManifest) -> None:
    there, here = (
        {
            **of.crops,
            **of.how,
            "data digest": of.data,
            "top": of.answers.top,
            "layers": of.answers.maps.layers,
            "grids": of.answers.maps.shapes,
            "features of layers": of.answers.tokens.layers,
            "features": of.answers.tokens.shapes,
        }
        for of in (former, manifest)
    )
    teachers = teacher_differences(former.teachers, manifest.teachers)
    found = [*([teachers] if teachers else []), *setting_differences(there, here)]
    if found:
        raise ConfigError(
            f"--out {str(out)!r} holds other answers: {'; '.join(found)}; go on as it was begun ({former.command}), or "
            "name another folder"
        )
