"""python -m launch.submission.after RUN_FOLDER: the end of a batch script: what comes after this start of the job."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from configs.base import ConfigError
from configs.exit_code import run_main
from launch.comeback.requeue import come_back
from launch.submission.job import job_id_of, restart_of
from launch.submission.record import read_submission


def main(run_folder: Path) -> int:
    """Decides and acts; returns the job's exit code."""
    submission = read_submission(run_folder)
    if submission is None:
        raise ConfigError(f"no submission in {str(run_folder)!r}")
    return come_back(submission, job_id=job_id_of(os.environ), restart=restart_of(os.environ))


if __name__ == "__main__":
    run_main(lambda: main(Path(sys.argv[1])))
