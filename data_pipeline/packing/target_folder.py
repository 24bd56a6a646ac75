"""The folder a build writes to: what may be there before it, and what is removed after it."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME
from data_pipeline.packing.build_plan import PLAN_FILE, BuildPlan, save_plan, saved_digest
from data_pipeline.packing.claim import remove_claims
from data_pipeline.packing.shard_writer import remove_partials
from data_pipeline.packing.written_shard import remove_notes

SKIPPED_FILE = "_skipped.jsonl"
"""Lists images that were left out, one JSON object per line."""

_OWN_FILE = re.compile(r"[A-Za-z0-9_-]+-\d{6,}\.tar(\.gz)?(\.index\.npy)?|" + re.escape(SKIPPED_FILE))


def refuse_nesting(source: Path, target: Path) -> None:
    """DataError for a target within its own source, or one that is a file."""
    inner, outer = target.resolve(), source.resolve()
    if source.is_dir() and inner.is_relative_to(outer):
        raise DataError(f"{target} lies in the source {source}: choose a folder outside of it for the shards")
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file: name a folder for the shards")


def prepare(plan: BuildPlan, target: Path, *, alone: bool, fresh: bool) -> None:
    """Leaves in `target` only what this very plan wrote before; DataError when something else is there."""
    if fresh:
        _remove_build(target)
    if saved_digest(target) is None:
        others = sorted(path.name for path in target.iterdir() if not path.name.startswith("."))
        # Looked at again: another task may have begun this very build a moment ago.
        if others and saved_digest(target) is None:
            raise DataError(
                f"{target} is not empty (it holds {others[0]!r}): choose a new folder for the shards"
            )
        save_plan(plan, target)
    if saved_digest(target) != plan.digest:
        raise DataError(
            f"{target} holds a build of other input: the source or an option changed since; choose a new folder, or "
            "give up what is there and begin anew: --fresh"
        )
    if alone:
        remove_partials(target)


def tidy(plan: BuildPlan, target: Path) -> None:
    """Removes what only an unfinished build needs."""
    remove_notes(target)
    remove_claims(target)
    remove_partials(target, plan.jobs)


def _remove_build(target: Path) -> None:
    """Deletes an earlier build's own files, its plan last; a folder without a plan is left alone."""
    if not (target / PLAN_FILE).exists():
        return
    remove_partials(target)
    remove_notes(target)
    (target / INFO_NAME).unlink(missing_ok=True)
    for path in target.iterdir():
        if _OWN_FILE.fullmatch(path.name):
            path.unlink()
    (target / PLAN_FILE).unlink()
