from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_pipeline.__main__ import app
from data_pipeline.errors import DataError
from data_pipeline.inspection.recipe import load_recipe
from data_pipeline.inspection.run_step import read_run_step, write_step_sheet
from tests.support.run_distributed import run_ranks
from tests.support.shards import make_shards

RECIPE = """
data:
  train: {data}
  image_size: 16
  workers: 2
  max_bad_fraction: 0.5
  label_fraction: 0.7
  augment: {{crop: random_resized, flip: true, erase: 0.5}}
model: {{name: vit_tiny_patch16_224, args: {{img_size: 16, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}}}}
optim: {{lr: 1.0e-3}}
train: {{duration: 7 steps, global_batch: 12, ranks: 2, seed: 3, checkpoint_every: 7 steps}}
tracking: {{uri: "off"}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretraining of 7 steps over 2.3 epochs by two ranks, on shards with images that cannot be used."""
    folder = tmp_path_factory.mktemp("recorded")
    make_shards(folder / "data", [20, 17], channels=3, size=(30, 40), bad={3: b"broken", 21: b"\xff\xd8\xff"})
    (folder / "recipe.yaml").write_text(RECIPE.format(data=folder / "data"))
    program = "tests/support/recorded_run.py"
    run_ranks([program, str(folder / "recipe.yaml"), str(folder / "run"), str(folder)], timeout_s=280)
    return folder


@pytest.mark.slow
def test_every_step_is_drawn_again_exactly_as_the_model_was_given_it(run: Path) -> None:
    ranks = [torch.load(run / f"rank_{rank}.pt") for rank in (0, 1)]
    assert [len(batches) for batches in ranks] == [7, 7]
    replaced = set()
    for step in range(1, 8):
        drawn = read_run_step(run / "run", step)
        given = [torch.cat(parts) for parts in zip(*(batches[step - 1] for batches in ranks), strict=True)]
        assert torch.equal(drawn.batch.sample_ids, given[0])
        assert torch.equal(drawn.batch.targets, given[1])
        assert torch.equal(drawn.batch.images, given[2])
        assert [name.key for name in drawn.names] == [f"{number:06d}" for number in given[0].tolist()]
        replaced |= {sample.key for sample in drawn.replaced}
    assert replaced == {"000003", "000021"}


@pytest.mark.slow
def test_the_sheet_of_a_step_holds_exactly_these_pixels(run: Path, tmp_path: Path) -> None:
    drawn = read_run_step(run / "run", 4)
    write_step_sheet(drawn, tmp_path / "step.png")
    sheet = cv2.imread(str(tmp_path / "step.png"))[:, :, ::-1]
    assert sheet.shape == (2 * 118, 8 * 100 - 4, 3)
    for slot in range(12):
        top, left = slot // 8 * 118 + 18, slot % 8 * 100
        shown = sheet[top : top + 96 : 6, left : left + 96 : 6]
        np.testing.assert_array_equal(shown, drawn.batch.images[slot].permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_the_command_lists_a_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["inspect", "--run", str(run / "run"), "--step", "7", "--json"], standalone_mode=False)
    listed = json.loads(capsys.readouterr().out)
    assert (listed["epoch"], listed["batch_of_epoch"], listed["batches_per_epoch"]) == (2, 0, 3)
    assert len(listed["samples"]) == 12
    app(["inspect", "--run", str(run / "run"), "--step", "7"], standalone_mode=False)
    assert "step 7: 12 images; epoch 2, batch 0 of 3" in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_the_step_of_then_is_refused(run: Path, tmp_path: Path) -> None:
    for step in (0, 8):
        with pytest.raises(DataError, match=rf"step {step} is not one of the run .* from 1 to 7"):
            read_run_step(run / "run", step)
    with pytest.raises(DataError, match=r"is not a run folder: it has no config\.yaml"):
        read_run_step(tmp_path, 1)
    other = tmp_path / "run"
    other.mkdir()
    config = (run / "run" / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace(str(run / "data"), str(tmp_path / "data")))
    (other / "events.jsonl").write_bytes((run / "run" / "events.jsonl").read_bytes())
    make_shards(tmp_path / "data", [20, 17], channels=3)
    with pytest.raises(DataError, match=r"is not what the run .* was trained on"):
        read_run_step(other, 1)


def test_a_run_that_learned_from_captions_left_out_what_has_none() -> None:
    recipes = {name: load_recipe(f"configs/smoke/pretrain_{name}.yaml") for name in ("siglip", "mae", "vit")}
    assert [name for name, recipe in recipes.items() if recipe.needs_captions] == ["siglip"]
    assert not load_recipe("configs/smoke/finetune_student.yaml").needs_captions


@pytest.mark.slow
def test_after_a_rollback_steps_are_drawn_without_the_batches_that_were_left_out(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "run", tmp_path / "run")
    windows = [{"step": 5, "first": 4, "last": 4}, {"step": 3, "first": 1, "last": 2}]
    (tmp_path / "run" / "skipped_windows.jsonl").write_text("".join(json.dumps(w) + "\n" for w in windows))
    for step, original in ((1, 1), (2, 4), (3, 6), (4, 7)):  # 2, 3 and 5 of the whole order are left out
        drawn, before = read_run_step(tmp_path / "run", step), read_run_step(run / "run", original)
        assert drawn.batch.sample_ids.tolist() == before.batch.sample_ids.tolist()
        assert torch.equal(drawn.batch.images, before.batch.images)
