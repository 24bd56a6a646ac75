"""Students of every family: each is built, shows where it looks at every stage, and has a gradient from every loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from configs.attention import AttentionConfig as ModelAttention
from configs.attention import GatesConfig
from configs.base import ConfigError
from configs.teacher import AttentionConfig, FeaturesConfig, LogitsConfig, TeacherConfig
from configs.training import ModelConfig
from finetune.distill import DistillObjective
from finetune.lesson import student_stages
from models.apprentice import Apprentice
from models.build import build_model
from models.complexity import count_parameters
from models.energy_maps import EnergyMaps, stage_names
from models.features import feature_widths
from tests.support.distilling import STATS, make_batch, make_teacher

LOSSES = TeacherConfig(
    checkpoint="t", logits=LogitsConfig(loss="dist"), attention=AttentionConfig(), features=FeaturesConfig()
)
SMALL = {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]}

FAMILIES: list[tuple[str, dict[str, Any], str | None]] = [
    ("small_resnet", {"channels": [8, 16, 32, 64]}, None),
    ("small_resnet", {"channels": [8, 16, 32, 64]}, "se"),
    ("resnet18", SMALL, "eca"),
    ("resnet18", SMALL, "cbam"),
    ("seresnet18", SMALL, None),
    ("nf_seresnet26", {"depths": [1, 1], "channels": [16, 32], "stem_type": "3x3", "stem_chs": 8}, None),
    ("efficientnet_b0", {}, None),
    ("regnety_002", {}, None),
    ("regnetx_002", {}, None),
    ("mobilenetv3_small_050", {}, None),
]


@pytest.mark.parametrize(("name", "args", "gate"), FAMILIES, ids=lambda value: str(value)[:24])
def test_a_student_of_this_family_learns_from_a_teacher(
    name: str, args: dict[str, Any], gate: str | None
) -> None:
    torch.manual_seed(0)
    attention = ModelAttention() if gate is None else ModelAttention(gates=(GatesConfig(name=gate),))
    config = ModelConfig(name=name, args=args, attention=attention)
    student = build_model(config, num_classes=4, in_chans=1, image_size=28)
    batch = make_batch(4)
    with EnergyMaps(student, stage_names(student)) as maps, torch.no_grad():
        student.eval()(batch.images / 255)
    assert all(found.isfinite().all() and found.ndim == 3 for found in maps.take())
    apprentice = Apprentice(
        student.train(), (-2,), widths=[(feature_widths(student, (-2,), (1, 28, 28))[0], 24)]
    )
    goal = DistillObjective(apprentice, **STATS, teacher=make_teacher((-1,), (-1,)), losses=LOSSES)
    loss = goal(apprentice, batch)
    loss.total.backward()
    assert all(part.isfinite() for part in loss.parts.values())
    first = next(apprentice.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in apprentice.parameters())
    assert first.grad is not None and first.grad.abs().max() > 0


@pytest.mark.parametrize("wanted", [{"student_stages": "matched"}, {"student_map": "energy"}])
def test_a_transformer_may_show_the_energy_of_its_blocks(wanted: dict[str, Any]) -> None:
    args = {"patch_size": 7, "embed_dim": 24, "depth": 3, "num_heads": 3}
    config = ModelConfig(name="vit_tiny_patch16_224", args=args)
    student = build_model(config, num_classes=4, in_chans=1, image_size=28)
    losses = TeacherConfig(checkpoint="t", attention=AttentionConfig.model_validate(wanted))
    loss = DistillObjective(student, **STATS, teacher=make_teacher(), losses=losses)(student, make_batch(4))
    loss.total.backward()
    assert 0 < loss.parts["attention"] < 1


def test_a_student_without_stages_has_none_that_match() -> None:
    pairs = AttentionConfig(student_stages="matched")
    with pytest.raises(
        ConfigError, match="among the stages that timm lists in feature_info, and Linear has none"
    ):
        student_stages(nn.Linear(2, 2), pairs, (1.0,))


@pytest.mark.parametrize(
    ("name", "args", "millions"),
    [("small_resnet", {"channels": [8, 16, 32, 80]}, 0.1), ("resnet50", {}, 23.5), ("regnety_064", {}, 29.3)],
)
def test_students_have_a_tenth_of_a_million_to_thirty_million_parameters(
    name: str, args: dict[str, Any], millions: float
) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name, args=args), num_classes=10, in_chans=3, image_size=32)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.15)
