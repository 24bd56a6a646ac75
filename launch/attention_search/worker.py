"""python -m launch.attention_search.worker OUT --worker K ...: scores paths of OUT/supernet until the study has enough.

study (OUT/study.log, shared by all workers) -> next path -> Scorer -> its score to the study -> ... -> OUT/best.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.exit_code import run_main
from launch.attention_search.result import BEST, write_result
from launch.attention_search.scorer import ScorerEndedError, open_scorer
from launch.attention_search.search import COSTS, RECIPE, SUPERNET, read_space
from launch.attention_search.space import Space
from launch.many.study import Study
from launch.many.worker import take_signals
from launch.submission.request import load_recipe
from launch.supervise import STOPPED

_SHOWN = 5


def main(arguments: Sequence[str]) -> int:
    """One worker; returns what its job should end with."""
    parser = argparse.ArgumentParser(prog="python -m launch.attention_search.worker", allow_abbrev=False)
    parser.add_argument("out", type=Path, help="folder of the search")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--max-flops", type=float)
    given = parser.parse_args(arguments)
    loaded = load_recipe("pretrain", given.out / RECIPE)
    space = read_space(given.out / COSTS, loaded.config, max_flops=given.max_flops)
    study = Study(
        given.out,
        space.study(trials=given.trials, workers=given.workers, seed=loaded.config.train.seed),
        members=[space.settings(path) for path in space.members()],
    )
    received = take_signals()
    try:
        _score(space, study, given, received)
    except ScorerEndedError as ended:
        return ended.code or 1
    _show(space, write_result(given.out, space, study, loaded), given.out)
    return STOPPED if received else 0


def _score(space: Space, study: Study, given: argparse.Namespace, received: Sequence[int]) -> None:
    """Takes paths from the study until it has given out all, or a signal came."""
    trial = study.next(given.worker)
    if trial is None:
        return
    with open_scorer(given.out / SUPERNET) as scorer:
        while trial is not None and not received:
            path = space.path(trial.settings)
            top1 = scorer.top1(path)
            study.complete(trial, top1)
            _say(f"trial {trial.number} ({space.describe(path)}): {top1:.2f} %")
            trial = study.next(given.worker)


def _show(space: Space, rows: Sequence[dict[str, Any]], out: Path) -> None:
    for row in rows[:_SHOWN]:
        _say(f"{row['top1']:.2f} % on held-out images, {row['flops']:,} operations: {row['name']}")
    _say(
        f"{len(rows)} of {len(space.members())} networks were scored; train the best: mirada pretrain {out / BEST}"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"search: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
