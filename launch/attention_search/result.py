"""What a search leaves behind: OUT/paths.json, all that were scored; OUT/best.yaml, the best as a plain recipe."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from configs.load import Loaded
from launch.attention_search.space import Space
from launch.many.study import Study
from pretrain.config import PretrainConfig

BEST = "best.yaml"
PATHS = "paths.json"


def write_result(
    out: Path, space: Space, study: Study, loaded: Loaded[PretrainConfig]
) -> list[dict[str, Any]]:
    """Writes both, each whole or not at all, and returns the paths that were scored, the best first."""
    rows = scored_paths(space, study)
    _write(out / PATHS, json.dumps(rows, indent=1) + "\n")
    if rows:
        _write(out / BEST, best_recipe(out, space, rows[0], loaded))
    return rows


def scored_paths(space: Space, study: Study) -> list[dict[str, Any]]:
    """Those under the limit with their scores and operations, the best first, of equal ones the cheapest."""
    members = set(space.members())
    rows = [
        {"path": path, "name": space.describe(path), "flops": space.flops(path), "top1": row["value"]}
        for row in study.rows()
        if row["value"] is not None and (path := space.path(row["settings"])) in members
    ]
    return sorted(rows, key=lambda row: (-row["top1"], row["flops"]))


def best_recipe(out: Path, space: Space, best: dict[str, Any], loaded: Loaded[PretrainConfig]) -> str:
    """The recipe of the search with the gates of the best path in place of the choice, for all training images."""
    attention = loaded.config.model.attention
    gates = (*attention.gates, *space.config.gates(best["path"], stages=space.stages))
    model = loaded.config.model.model_copy(
        update={"attention": attention.model_copy(update={"search": None, "gates": gates})}
    )
    content = yaml.safe_load(loaded.yaml())
    content["model"] = model.model_dump(mode="json", exclude_defaults=True)
    content["data"]["held_out"] = 0.0
    limit = "no limit" if space.max_flops is None else f"a limit of {space.max_flops:.6g}"
    head = [
        f"mirada pretrain {shlex.quote(str(out / BEST))}",
        f"Found by mirada search {shlex.quote(str(loaded.path))}: {best['name']}.",
        f"{best['flops']:,} floating point operations for an image, under {limit}; {best['top1']:.2f} % top-1 on",
        "held-out images with the supernet's weights, which is not what it has when trained from scratch: not run.",
    ]
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(content, sort_keys=False)


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
