"""finetune.distill: each loss equals its formula, and how a batch is split never changes the gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.base import ConfigError
from configs.data import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.mix import draw_mix, mix_images
from engine.objective import Loss, Objective
from finetune.config import AttentionConfig, LogitsConfig, TeacherConfig
from finetune.distill import DistillObjective, attention_transfer, kl_logits
from finetune.teacher import Teacher

STATS = {"mean": (0.5,), "std": (0.25,)}
LOSSES = TeacherConfig(
    checkpoint="teacher", logits=LogitsConfig(weight=0.5), attention=AttentionConfig(weight=20.0)
)


def make_student() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(
        "nf_seresnet26",
        in_chans=1,
        num_classes=4,
        depths=(1, 1),
        channels=(16, 32),
        stem_type="3x3",
        stem_chs=8,
    )
    return model


def make_teacher() -> Teacher:
    torch.manual_seed(2)
    stats = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.25,)}
    args = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, in_chans=1, pretrained_cfg_overlay=stats, **args
    )
    return Teacher(model, attention_layers=(-1,))


def make_batch(size: int = 8, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (size, 1, 28, 28), dtype=torch.uint8, generator=g),
        targets=torch.randint(-1, 4, (size,), generator=g),
        sample_ids=torch.arange(size),
        epochs=torch.zeros(size, dtype=torch.int64),
        copies=torch.zeros(size, dtype=torch.int64),
        weights=torch.ones(size),
    )


def objective(student: nn.Module, **changes: object) -> DistillObjective:
    arguments: dict[str, object] = {
        **STATS,
        "teacher": make_teacher(),
        "losses": LOSSES,
        "label_fraction": 0.8,
        **changes,
    }
    return DistillObjective(student, **arguments)  # type: ignore[arg-type]


def test_kl_is_the_sum_of_its_definition() -> None:
    student, teacher, t = torch.randn(5, 4).double(), torch.randn(5, 4).double(), 3.0
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    expected = (p * (p.log() - q.log())).sum() / 5 * t * t
    torch.testing.assert_close(
        kl_logits(student, teacher, temperature=t).double(), expected, rtol=1e-5, atol=1e-6
    )
    assert kl_logits(teacher, teacher, temperature=t) == 0


def test_attention_transfer_is_the_authors_formula_on_equal_grids() -> None:
    a, b = torch.rand(3, 7, 7), torch.rand(3, 7, 7)
    expected = (F.normalize(a.view(3, -1)) - F.normalize(b.view(3, -1))).pow(2).mean()
    torch.testing.assert_close(attention_transfer(a, b), expected)


def test_attention_transfer_does_not_see_scale_and_is_zero_for_equal_maps() -> None:
    a, b = torch.rand(2, 7, 7), torch.rand(2, 7, 7)
    torch.testing.assert_close(attention_transfer(30 * a, b / 5), attention_transfer(a, b))
    torch.testing.assert_close(attention_transfer(a, 3 * a), torch.tensor(0.0))
    assert attention_transfer(torch.zeros(2, 7, 7), b).isfinite()


@pytest.mark.parametrize(("fine", "coarse"), [((14, 14), (7, 7)), ((8, 6), (4, 2)), ((5, 5), (5, 5))])
def test_the_finer_map_is_pooled_to_the_coarser_grid_whichever_side_it_is_on(
    fine: tuple[int, int], coarse: tuple[int, int]
) -> None:
    a, b = torch.rand(2, *fine), torch.rand(2, *coarse)
    ratio = (fine[0] // coarse[0], fine[1] // coarse[1])
    pooled = F.avg_pool2d(a.unsqueeze(1), ratio).squeeze(1)
    torch.testing.assert_close(attention_transfer(a, b), attention_transfer(pooled, b))
    torch.testing.assert_close(attention_transfer(b, a), attention_transfer(b, pooled))


def test_grids_of_which_neither_is_finer_meet_at_the_smaller_sides() -> None:
    assert attention_transfer(torch.rand(2, 7, 4), torch.rand(2, 3, 9)).ndim == 0


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    student, batch = make_student(), make_batch()
    loss = objective(student, task_weight=2.0)(student, batch)
    assert list(loss.parts) == ["task", "logits", "attention"]
    expected = 2.0 * loss.parts["task"] + 0.5 * loss.parts["logits"] + 20.0 * loss.parts["attention"]
    torch.testing.assert_close(loss.total, expected)


def test_an_objective_is_what_the_engine_calls() -> None:
    student = make_student()
    taken: Objective = objective(student)
    assert isinstance(taken(student, make_batch()), Loss)


def mixed(batch: Batch) -> Batch:
    ids = batch.sample_ids.numpy()
    mix = draw_mix(
        AugmentConfig(mixup=0.8, cutmix=1.0), size=28, seed=0, epochs=0 * ids, sample_ids=ids, copies=0 * ids
    )
    return replace(batch, mix=mix)


def test_the_teacher_sees_the_images_mixed_as_the_student_does() -> None:
    student, batch = make_student(), mixed(make_batch())
    seen: list[Tensor] = []
    teacher = make_teacher()
    teacher._model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    student.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    objective(student, teacher=teacher)(student, batch)
    theirs, ours = seen
    pixels = mix_images(batch.images / 255, batch.mix)
    torch.testing.assert_close(theirs * 0.25 + 0.5, pixels, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours * STATS["std"][0] + STATS["mean"][0], pixels, rtol=0, atol=1e-5)
    assert not torch.allclose(pixels, batch.images / 255, atol=0.1)


def gradients(parts: int, *, mixes: bool = False) -> dict[str, Tensor]:
    student, batch = make_student(), mixed(make_batch()) if mixes else make_batch()
    goal = objective(student)
    for micro in batch.split(len(batch) // parts):
        (goal(student, micro).total / parts).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("parts", "mixes"), [(2, False), (8, False), (4, True)])
def test_accumulating_over_micro_batches_gives_the_gradient_of_the_batch(parts: int, mixes: bool) -> None:
    whole, split = gradients(1, mixes=mixes), gradients(parts, mixes=mixes)
    assert whole.keys() == split.keys() == dict(make_student().named_parameters()).keys()
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_losses_of_weight_zero_are_not_computed() -> None:
    student, batch = make_student(), make_batch()
    only_task = TeacherConfig(checkpoint="t", logits=LogitsConfig(weight=0.0), attention=None)
    assert list(objective(student, losses=only_task)(student, batch).parts) == ["task"]
    assert list(objective(student, task_weight=0.0)(student, batch).parts) == ["logits", "attention"]
    assert list(objective(student, teacher=None, losses=None)(student, batch).parts) == ["task"]


def test_several_stages_are_compared_one_by_one() -> None:
    student, batch = make_student(), make_batch()

    def attention(*stages: int) -> Tensor:
        losses = LOSSES.model_copy(update={"attention": AttentionConfig(student_stages=stages)})
        return objective(student, losses=losses)(student, batch).parts["attention"]

    torch.testing.assert_close(attention(-1, -2), (attention(-1) + attention(-2)) / 2)


def test_a_stage_the_student_does_not_have_is_refused_before_training() -> None:
    losses = LOSSES.model_copy(update={"attention": AttentionConfig(student_stages=(7,))})
    with pytest.raises(ConfigError, match=r"map of 7 is asked for, but the model has stages 0 \(stem.conv\)"):
        objective(make_student(), losses=losses)


def test_no_hook_is_left_on_the_student_and_no_teacher_in_it() -> None:
    student = make_student()
    keys = list(student.state_dict())
    objective(student)(student, make_batch()).total.backward()
    assert list(student.state_dict()) == keys
    assert not any(module._forward_hooks for module in student.modules())


def test_a_student_learns_its_teachers_outputs_and_maps_without_any_label() -> None:
    student, batch = make_student(), make_batch(16)
    goal = objective(student, task_weight=0.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        loss = goal(student, batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        history.append({name: part.item() for name, part in loss.parts.items()})
    assert history[-1]["logits"] < 0.7 * history[0]["logits"]
    assert history[-1]["attention"] < 0.7 * history[0]["attention"]
