"""From the command to a model's forward there are few frames of ours to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import packaged_root

MOST_FRAMES = 6

PROGRAM = """
import json, os, sys, traceback
from pathlib import Path
from timm.models import VisionTransformer
from engine.command import parse_command
from pretrain.run import run

root = sys.argv.pop(1)
forward = VisionTransformer.forward

def seen_forward(model, *inputs):
    stack = traceback.extract_stack()[:-1]
    if not model.training or any(f.name == "examine" for f in stack):  # looked at before it is trained
        return forward(model, *inputs)
    ours = [f for f in stack if f.filename.startswith(root) and "site-packages" not in f.filename]
    print(json.dumps([Path(f.filename).name + ":" + f.name for f in ours]), flush=True)
    os._exit(0)

VisionTransformer.forward = seen_forward
run(parse_command("pretrain", sys.argv[1:]))
"""


@pytest.mark.slow
def test_at_most_six_frames_of_ours_lie_between_the_command_and_forward(tmp_path: Path) -> None:
    root = packaged_root()
    arguments = ["configs/smoke/pretrain_vit.yaml", "tracking.uri=off", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", PROGRAM, f"{root}{os.sep}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    frames = json.loads(done.stdout.splitlines()[-1])
    ours = ["__main__.py:main", *frames, "model.forward"]
    assert frames[0] == "run.py:run"
    assert len(ours) <= MOST_FRAMES, ours
