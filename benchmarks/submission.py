"""Measures how long a submitted run takes to begin: from the command to the first line in the job, and of its program.

python -m benchmarks.submission --out benchmarks/results/submission.json [--rounds 5]

Beside it, on the same cluster: plain `srun date`. The cluster is a real SLURM of two nodes on this machine; needs root.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.result_file import ROOT, installed_versions, write_result_file
from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

WANTED_S = 3.0
COLUMNS = {
    "start": ["start", "s"],
    "seconds": ["from the command to the first line, s", ".2f"],
    "spread": ["lowest-highest", "s"],
    "above": ["above plain srun, s", ".2f"],
}
_RECIPE = "configs/smoke/pretrain_vit.yaml"
_SRUN, _SBATCH = "srun date", "sbatch, then srun date"
_JOB, _PROGRAM = "mirada launch pretrain: in the job", "mirada launch pretrain: of the training program"
_STAMP = """
import os, sys, time
with open(os.environ["STAMP"], "a") as lines:
    lines.write(f"{time.time()} {'pretrain' in sys.orig_argv}\\n")
"""
"""What every interpreter of the job runs first: that of a task, then that of its program."""
_DEADLINE_S = 60.0


def main(arguments: list[str]) -> int:
    """Writes one row per way to start something on two nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    reason = missing_for_slurm()
    if reason is not None:
        parser.error(reason)
    ways = (_time_srun, _time_sbatch, _time_launch)
    found: dict[str, list[float]] = {name: [] for name in (_SRUN, _SBATCH, _JOB, _PROGRAM)}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="mirada-") as folder, slurm_cluster(num_nodes=2) as cluster:
        version = cluster.run("sinfo", "--version").split()[-1]
        for number in range(given.rounds):
            for measure in ways:
                place = Path(folder) / f"{number}-{measure.__name__}"
                place.mkdir()
                for name, seconds in measure(cluster, place).items():
                    found[name].append(seconds)
    plain = median(found[_SRUN])
    rows = [
        {
            "start": name,
            "seconds": median(seconds),
            "spread": f"{min(seconds):.2f}-{max(seconds):.2f}",
            "above": median(seconds) - plain,
        }
        for name, seconds in found.items()
    ]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"Two nodes, one task each; medians of {given.rounds} interleaved rounds. Validation, snapshot, sbatch, "
            "SLURM's scheduling and the start of an interpreter are included, for the program rendezvous and another. "
            "Wanted is at most "
            f"{WANTED_S:g} s above plain srun for the first line in the job: it is {rows[2]['above']:.2f} s. "
            f"When it began, {load:.1f} other processes wanted the {os.cpu_count()} cores."
        ),
        versions=installed_versions(["submitit"]) | {"slurm": version},
    )
    return 0


def _time_srun(cluster: SlurmCluster, place: Path) -> dict[str, float]:
    start = time.time()
    printed = cluster.run("srun", "-N2", "-n2", "date", "+%s.%N")
    return {_SRUN: min(map(float, printed.split())) - start}


def _time_sbatch(cluster: SlurmCluster, place: Path) -> dict[str, float]:
    """What SLURM itself takes for a batch job."""
    start = time.time()
    output = place / "date"
    cluster.run(
        "sbatch", "-N2", "-n2", f"--output={place / 'log'}", f"--wrap=srun --output={output} date +%s.%N"
    )
    cluster.wait_until(
        lambda: output.exists() and len(output.read_text().split()) == 2,
        what="the first line",
        timeout_s=_DEADLINE_S,
    )
    cluster.wait_until(
        lambda: not cluster.run("squeue", "-h"), what="the end of the job", timeout_s=_DEADLINE_S
    )
    return {_SBATCH: min(map(float, output.read_text().split())) - start}


def _time_launch(cluster: SlurmCluster, place: Path) -> dict[str, float]:
    stamp = place / "stamp"
    (place / "hook").mkdir()
    (place / "hook" / "sitecustomize.py").write_text(_STAMP)
    (place / "c.yaml").write_text(
        f"kind: slurm\ntime: 10 min\nnodes: 2\nenvironment: {{PYTHONPATH: {place / 'hook'}, STAMP: {stamp}}}\n"
    )
    start = time.time()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.cli",
            "launch",
            "pretrain",
            _RECIPE,
            "--cluster",
            "c.yaml",
            "--out",
            "run",
        ],
        cwd=place,
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    cluster.wait_until(
        lambda: stamp.exists() and "True" in stamp.read_text(), what="the first line", timeout_s=_DEADLINE_S
    )
    cluster.run("scancel", "--user", str(os.getuid()))
    cluster.wait_until(
        lambda: not cluster.run("squeue", "-h"), what="the end of the job", timeout_s=_DEADLINE_S
    )
    lines = [line.split() for line in stamp.read_text().splitlines()]
    return {
        _JOB: float(lines[0][0]) - start,
        _PROGRAM: min(float(seconds) for seconds, is_program in lines if is_program == "True") - start,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
