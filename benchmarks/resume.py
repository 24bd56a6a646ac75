"""Measures the start of a run that goes on, wherever it stood, against a cold start: to the end of its first step.

python -m benchmarks.resume --out benchmarks/results/resume.json [--rounds 5] [--minutes 8] [--quick]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.result_file import ROOT, installed_versions, write_result_file
from benchmarks.training_loops.clock import read_times
from benchmarks.training_rounds import (
    Setting,
    Variant,
    parser_of,
    ratios,
    training_command,
    training_environment,
)

WANTED = 1.2
COLUMNS = {
    "place": ["start", "s"],
    "first_step_s": ["from the process' start to the end of its first step, s", ".2f"],
    "ratio": ["of a cold start", ".3f"],
    "ratios": ["round by round", "s"],
}
COLD = "cold, in a new folder"
_OURS = Variant(name="mirada pretrain", loop="ours")
_STEPS = 1000
_SETTING = Setting(
    recipe="configs/smoke/pretrain_vit.yaml",
    global_batch=64,
    turn=_STEPS,
    settings=("data.val=null", "tracking.uri=off", "train.checkpoint_every=1000 steps"),
)
_EPOCH = 93  # steps: 6,000 images in batches of 64
PLACES = {
    "after a quarter of an epoch": _EPOCH // 4,
    "after half": _EPOCH // 2,
    "after nine tenths": _EPOCH * 9 // 10,
    "in the second epoch": _EPOCH + _EPOCH // 2,
}


def main(arguments: list[str]) -> int:
    """Writes one row per place that a run stood at."""
    given = parser_of(__doc__, rounds=5).parse_args(arguments)
    deadline = time.monotonic() + given.minutes * 60
    places = dict(list(PLACES.items())[:1]) if given.quick else PLACES
    with tempfile.TemporaryDirectory(prefix="mirada-") as folder:
        stopped = _stopped_runs(Path(folder), places)
        found: dict[str, list[float]] = {name: [] for name in (COLD, *stopped)}
        for number in range(1 if given.quick else given.rounds):
            begun = time.monotonic()
            names = list(found)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].append(_first_step_s(stopped.get(name), Path(folder) / "again"))
            if time.monotonic() + (time.monotonic() - begun) > deadline:
                break
    rows = [
        {
            "place": name,
            "first_step_s": median(seconds),
            "ratio": median(ratios(seconds, found[COLD])),
            "ratios": " ".join(f"{ratio:.2f}" for ratio in ratios(seconds, found[COLD])),
        }
        for name, seconds in found.items()
    ]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            "The smoke recipe, one rank, ZeRO 2; interpreter, imports and loading of the checkpoint included. Medians "
            f"over {len(found[COLD])} interleaved rounds. Wanted is at most {WANTED}: the largest is "
            f"{max(row['ratio'] for row in rows):.3f}."
        ),
        versions=installed_versions(["torch", "deepspeed"]),
    )
    return 0


def _stopped_runs(folder: Path, places: dict[str, int]) -> dict[str, Path]:
    """Run folders whose runs stand at these steps: one run, stopped and copied at each."""
    run, done, stopped = folder / "run", 0, {}
    for name, step in places.items():
        _train_until(run, step - done)
        stopped[name] = folder / str(step)
        shutil.copytree(run, stopped[name])
        done = step
    return stopped


def _first_step_s(stopped: Path | None, run: Path) -> float:
    """Goes on with a copy of a stopped run, or begins one; the second step's beginning is the first one's end."""
    if stopped is not None:
        shutil.copytree(stopped, run)
    start = time.monotonic()
    times = _train_until(run, 2)
    shutil.rmtree(run)
    return times[1] - start


def _train_until(out: Path, step: int) -> list[float]:
    """Trains until a signal in this step of the process stops it; returns when each step began."""
    done = subprocess.run(
        training_command(_OURS, _SETTING, steps=_STEPS, out=out),
        cwd=ROOT,
        env={**training_environment(_OURS), "STOP_AT": str(step)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the training ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return read_times(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
