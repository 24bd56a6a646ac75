"""Checks that fast decoding costs no accuracy: the same small CNN and budget, several seeds, both of `data.decode`.

python -m benchmarks.photographs CORPORA --only which_train which_test
python -m benchmarks.decode_accuracy CORPORA [--seeds 3] [--runs FOLDER]     # a run that was cut goes on
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from benchmarks.result_file import write_result_file
from engine.results.run_record import RunRecord, read_run

ROOT = Path(__file__).resolve().parents[1]
_RECIPE = "benchmarks/decode_accuracy.yaml"
_MODES = ("exact", "fast")
_COLUMNS = {
    "name": ["data.decode", "s"],
    "top1": ["top-1, %: mean", ".2f"],
    "spread": ["of the seeds", "s"],
    "ece": ["calibration error", ".3f"],
}


def main(arguments: list[str]) -> int:
    """Trains what is missing and writes benchmarks/results/decode_accuracy.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path, help="folder that benchmarks.photographs filled")
    parser.add_argument("--runs", type=Path, help="default: CORPORA/decode_accuracy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "decode_accuracy.json")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's"
    )
    given = parser.parse_intermixed_args(arguments)
    folder = given.runs or given.corpora / "decode_accuracy"
    runs: dict[str, list[RunRecord]] = {mode: [] for mode in _MODES}
    for seed in range(given.seeds):  # interleaved, so that both modes meet the same machine
        for mode in _MODES:
            runs[mode].append(_trained(folder / f"{mode}_{seed}", given, mode, seed))
    _write(given.out, runs)
    return 0


def _trained(folder: Path, given: argparse.Namespace, mode: str, seed: int) -> RunRecord:
    corpora = given.corpora.resolve()
    settings = [f"data.train={corpora / 'which_train'}", f"data.val={corpora / 'which_test'}"]
    settings += [f"data.decode={mode}", f"train.seed={seed}", *given.overrides]
    if folder.is_dir() and read_run(folder).status == "finished":  # seconds less for each
        return read_run(folder)
    command = [sys.executable, "-m", "launch.cli", "pretrain", _RECIPE, *settings, "--out", folder.resolve()]
    subprocess.run(command, check=True, cwd=ROOT)
    return read_run(folder)


def _write(path: Path, runs: dict[str, list[RunRecord]]) -> None:
    top1 = {mode: [_last(run, "val/top1") for run in runs[mode]] for mode in _MODES}
    rows = [
        {
            "name": mode,
            "top1": mean(top1[mode]),
            "spread": " ".join(f"{value:.2f}" for value in top1[mode]),
            "ece": mean(_last(run, "val/ece") for run in runs[mode]),
        }
        for mode in _MODES
    ]
    start = runs["fast"][0].start
    note = _note(top1["fast"], top1["exact"], start["num_samples"])
    write_result_file(path, columns=_COLUMNS, rows=rows, note=note, versions=start["versions"])
    print(note)


def _note(fast: list[float], exact: list[float], num_images: int) -> str:
    differences = [a - b for a, b in zip(fast, exact, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return (
        f"Which of 31 photographs a crop is from, trained on {num_images:,} crops of their left parts and tested on "
        f"1,860 of their right parts; a CNN of 0.5 M parameters at 64x64, seeds {list(range(len(fast)))}. "
        f"Fast - exact, seed by seed: {mean(differences):+.2f} points with a standard error of {error:.2f}."
    )


def _last(run: RunRecord, key: str) -> float:
    value = run.last(key)
    if value is None:
        raise ValueError(f"{run.path}: no {key}; the run is {run.status}")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
