"""finetune.evaluating.scoring: too many images that cannot be decoded are refused, counted over all ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.releases import make_release
from tests.support.shards import make_shards

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_two_ranks_stop_together_where_too_many_images_cannot_be_decoded(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", [30, 30], bad={3: b"no image", 40: b"no image"})
    command = [sys.executable, "-m", "launch.cli", "evaluate", str(make_release(tmp_path / "student"))]
    options = ["--data", str(tmp_path / "shards"), "--ranks", "2", "--batch-size", "8"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "2 of 60 images cannot be used" in done.stderr

    allowed = subprocess.run(
        [*command, *options, "--max-bad-fraction", "0.05"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert allowed.returncode == 0 and "2 more cannot be decoded" in allowed.stdout, allowed.stderr
