"""finetune.run: a mistake about the checkpoint or the mode ends with code 2, a message, and no run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from tests.support.run_distributed import run_ranks

pytestmark = pytest.mark.slow

CNN = ("model.name=resnet18", "model.args.channels=[8,8,8,8]", "model.args.layers=[1,1,1,1]")
RECIPE = """\
data: {train: mirada://sample/train, val: mirada://sample/test, workers: 0, image_size: 32}
optim: {lr: 1e-3}
train: {duration: 2 steps, global_batch: 8}
"""
REFUSALS = (
    (("checkpoint=bad.safetensors", *CNN), "'bad.safetensors' is damaged, or no safetensors file"),
    (("checkpoint=pickled.pth", *CNN), "could run code, which Mirada never does"),
    (("checkpoint=none.pth", *CNN), "checkpoint 'none.pth': no such file"),
    (("checkpoint=cnn.pth",), "does not say what network it is of: set model.name"),
    (("checkpoint=cnn.pth", "model.name=resnet18"), "checkpoint 'cnn.pth' does not fit 'resnet18'"),
    (("checkpoint=cnn.pth", "model.name=resnet81"), "'resnet81' is no architecture of timm"),
    (("checkpoint=cnn.pth", "mode=lora", *CNN), "'resnet18' has no attention layer with linear projections"),
    (
        ("checkpoint=cnn.pth", "mode.name=last_blocks", "mode.count=9", *CNN),
        "mode.count is 9, but 'resnet18' has 4 blocks behind its stem",
    ),
    (("checkpoint=cnn.pth", "mode=lorra"), "'lorra' is not a name; allowed are 'full'"),
)


def test_what_cannot_be_started_from_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    model = timm.create_model("resnet18", channels=(8, 8, 8, 8), layers=(1, 1, 1, 1), num_classes=10)
    torch.save(model.state_dict(), tmp_path / "cnn.pth")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    cases = [
        [str(tmp_path / "recipe.yaml"), *_placed(words, tmp_path), "--out", str(tmp_path / "run")]
        for words, _ in REFUSALS
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (output,) = run_ranks(["tests/support/refused_runs.py", str(tmp_path)], world_size=1)
    answers = json.loads(output.splitlines()[-1])
    for (code, said), (words, message) in zip(answers, REFUSALS, strict=True):
        assert code == 2 and message in said.replace(f"{tmp_path}/", ""), (words, code, said)
        assert said.startswith("error: ") and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def _placed(words: tuple[str, ...], folder: Path) -> list[str]:
    return [word.replace("checkpoint=", f"checkpoint={folder}/") for word in words]
