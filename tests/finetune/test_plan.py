"""finetune.plan: every student and every teacher of a recipe is in what it would train."""

from __future__ import annotations

from pathlib import Path

import torch

from configs.load import load_config
from configs.training import ModelConfig
from data_pipeline.index import open_index
from engine.planning.inputs import measure_workload
from finetune.config import FinetuneConfig
from finetune.plan import build
from models.apprentice import Classroom
from models.build import build_model
from models.release import save_for_timm

SAMPLE = ("data.train=mirada://sample/train", "data.val=mirada://sample/test")


def test_all_students_are_trained_and_all_teachers_are_frozen_beside_them(tmp_path: Path) -> None:
    model = build_model(ModelConfig(name="small_resnet"), num_classes=10, in_chans=1, image_size=28)
    stats = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,), "classes": ()}
    save_for_timm(model, model.state_dict(), tmp_path, **stats)
    teachers = (f"teacher.checkpoint={tmp_path}", f"teacher.ensemble=[{tmp_path}]", "teacher.precision=bf16")
    recipe = "configs/finetune/fashion_mnist_students.yaml"
    config = load_config(FinetuneConfig, recipe, (*SAMPLE, *teachers)).config
    trained = build(config, open_index("mirada://sample/train"))
    assert isinstance(trained.model, Classroom) and trained.model.names == ("", "tiny", "eca")
    assert len(trained.frozen) == 2 and trained.note == ""
    assert next(trained.frozen[1].parameters()).dtype == torch.bfloat16
    images = torch.zeros(2, 1, 28, 28)
    assert trained.forward(trained.model.eval(), images).shape == (6, 10)


def test_recomputing_is_no_remedy_where_layers_are_watched() -> None:
    recipe = "configs/finetune/fashion_mnist_student.yaml"
    config = load_config(FinetuneConfig, recipe, SAMPLE).config
    model = build_model(config.model, num_classes=10, in_chans=1, image_size=28)
    assert measure_workload(model, config, micro_batch=4).checkpointed is None
    logits_alone = config.model_copy(update={"teacher": None})
    assert measure_workload(model, logits_alone, micro_batch=4).checkpointed is not None


def test_a_teacher_that_is_missing_is_left_out_and_said_so() -> None:
    recipe = "configs/finetune/fashion_mnist_student.yaml"
    config = load_config(FinetuneConfig, recipe, (*SAMPLE, "teacher.checkpoint=/nowhere")).config
    trained = build(config, open_index("mirada://sample/train"))
    assert not trained.frozen and "without the teacher, which is not there yet" in trained.note
