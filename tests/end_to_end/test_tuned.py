"""``kernel: tuned`` in the real program: a run that is started again goes by its own folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.load import packaged_root
from engine.events import read_events

pytestmark = pytest.mark.slow

OVERRIDES = (
    "model.attention.kernel=tuned",
    "train.duration=2 steps",
    "train.evaluate_every=2 steps",
    "train.checkpoint_every=2 steps",
    "schedule.warmup=1 steps",
    "tracking.uri=off",
    "tracking.system_metrics=false",
)


def start(out: Path, cache: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(packaged_root()), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "launch.cli", "pretrain", "configs/smoke/pretrain_vit.yaml", *OVERRIDES]
    command += ["--ranks", "1", "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def kernels(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_run_keeps_what_was_measured_and_goes_by_it_when_it_is_started_again(tmp_path: Path) -> None:
    out, cache = tmp_path / "run", tmp_path / "cache"
    start(out, cache)
    record = kernels(out / "kernels.json")
    assert {one["call"]["differentiates"] for one in record["choices"]} == {True, False}
    assert {one["call"]["q"][0] for one in record["choices"]} == {64}
    (remembered,) = (cache / "mirada" / "kernels").iterdir()
    assert remembered.read_text() == (out / "kernels.json").read_text()

    for one in record["choices"]:
        one["kernel"] = "math"
    (out / "kernels.json").write_text(json.dumps(record))
    remembered.unlink()
    start(out, cache)
    events = [event for event in read_events(out / "events.jsonl") if event["kind"] == "kernels"]
    assert list(events[-1]["kernels"]) == ["math"] and len(events) == 2
    assert kernels(out / "kernels.json") == record
    assert not remembered.exists()  # nothing was measured
