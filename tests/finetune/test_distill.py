"""finetune.distill: each loss equals its formula, and how a batch is split never changes the gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from configs.base import ConfigError, Duration
from configs.data import AugmentConfig
from configs.fade import Fade
from configs.teacher import AttentionConfig, FeaturesConfig, LogitsConfig, TeacherConfig
from data_pipeline.batch import Batch
from data_pipeline.mix import draw_mix, mix_images
from engine.objective import Loss, Objective
from finetune.distill import DistillObjective
from models.apprentice import Apprentice, Classroom
from models.distill_losses import attention_transfer
from models.features import Features
from tests.support.distilling import STATS, make_batch, make_student, make_teacher

LOSSES = TeacherConfig(
    checkpoint="teacher", logits=LogitsConfig(weight=0.5), attention=AttentionConfig(weight=20.0)
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


def test_layers_and_stages_are_compared_pair_by_pair() -> None:
    student, batch = make_student(), make_batch()

    def attention(layers: tuple[int, ...], stages: tuple[int, ...]) -> Tensor:
        wanted = AttentionConfig(teacher_layers=layers, student_stages=stages)
        losses = LOSSES.model_copy(update={"attention": wanted})
        goal = objective(student, losses=losses, teacher=make_teacher(layers))
        return goal(student, batch).parts["attention"]

    pairs = (attention((0,), (1,)) + attention((1,), (2,))) / 2
    torch.testing.assert_close(attention((0, 1), (1, 2)), pairs)
    crossed = (attention((0,), (2,)) + attention((1,), (2,))) / 2
    torch.testing.assert_close(attention((0, 1), (2,)), crossed)
    assert not torch.allclose(pairs, crossed)


def test_matched_stages_are_those_at_the_depth_of_the_layers() -> None:
    student, batch = make_student(), make_batch()
    # Of 16 layers with weights 5 and 11 have come by the end of the teacher's attention, 1, 8 and 15 in the student.
    found = []
    for stages in ("matched", (1, 1)):
        wanted = AttentionConfig(teacher_layers=(0, 1), student_stages=stages)
        losses = LOSSES.model_copy(update={"attention": wanted})
        goal = objective(student, losses=losses, teacher=make_teacher((0, 1)))
        found.append(goal(student, batch).parts["attention"])
    torch.testing.assert_close(found[0], found[1])


def test_another_distance_and_other_logits_are_what_the_config_says() -> None:
    student, batch = make_student(), make_batch()
    other = TeacherConfig(
        checkpoint="t",
        logits=LogitsConfig(loss="dist", temperature=1.0),
        attention=AttentionConfig(distance="kl", weight=1.0),
    )
    ours = objective(student)(student, batch).parts
    theirs = objective(student, losses=other)(student, batch).parts
    assert ours.keys() == theirs.keys()
    assert ours["task"] == theirs["task"]
    assert ours["logits"] != theirs["logits"] and ours["attention"] != theirs["attention"]


def test_features_train_projections_that_the_student_is_released_without() -> None:
    student, batch = make_student(), make_batch()
    losses = TeacherConfig(checkpoint="t", logits=None, attention=None, features=FeaturesConfig(weight=3.0))
    apprentice = Apprentice(student, (-2,), widths=[(16, 24)])
    goal = objective(apprentice, losses=losses, teacher=make_teacher((), (-1,)))
    loss = goal(apprentice, batch)
    torch.testing.assert_close(loss.total, loss.parts["task"] + 3.0 * loss.parts["features"])
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in apprentice.projections.parameters())


def test_a_weight_that_fades_is_a_function_of_the_step_alone() -> None:
    student, batch = make_student(), make_batch()
    fade = Fade(to=0.0, over=Duration(10, "steps"), shape="linear")
    losses = LOSSES.model_copy(update={"attention": None, "logits": LogitsConfig(weight=2.0, fade=fade)})
    goal = objective(student, losses=losses, steps=lambda duration: round(duration.amount))
    for step, weight in ((0, 2.0), (5, 1.0), (10, 0.0), (11, 0.0), (5, 1.0)):
        goal.follow(step)
        loss = goal(student, batch)
        torch.testing.assert_close(loss.total, loss.parts["task"] + weight * loss.parts["logits"])


def test_a_map_of_a_single_place_is_refused() -> None:
    student = make_student()
    losses = LOSSES.model_copy(update={"attention": AttentionConfig(student_stages=(-1,))})
    one_place = make_teacher(patch_size=28)
    with pytest.raises(
        ConfigError, match=r"a map of 4 x 4 of the student .* with one of 1 x 1 of the teacher"
    ):
        objective(student, losses=losses, teacher=one_place)(student, make_batch())


def test_each_of_several_students_learns_as_it_would_alone_from_one_pass_of_the_teacher() -> None:
    batch, teacher, calls = make_batch(), make_teacher((-1,), (-1,)), []
    teacher.network.register_forward_hook(lambda *_: calls.append(1))
    losses = LOSSES.model_copy(update={"features": FeaturesConfig(weight=2.0)})

    def apprentice(scale: float) -> Apprentice:
        student = make_student()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(scale)
        torch.manual_seed(5)
        return Apprentice(student, (-2,), widths=[(16, 24)])

    room = Classroom({"": apprentice(1.0), "b": apprentice(0.9), "c": apprentice(1.1)})
    together = objective(room, teacher=teacher, losses=losses)(room, batch)
    together.total.backward()
    assert len(calls) == 1
    total = torch.zeros(())
    for name, scale, student in zip(("", "b/", "c/"), (1.0, 0.9, 1.1), room.students, strict=True):
        alone = apprentice(scale)
        loss = objective(alone, teacher=teacher, losses=losses)(alone, batch)
        loss.total.backward()
        total = total + loss.total.detach()
        for part, value in loss.parts.items():
            torch.testing.assert_close(together.parts[f"{name}{part}"], value, rtol=1e-6, atol=0)
        if name:
            torch.testing.assert_close(together.parts[f"{name}loss"], loss.total, rtol=1e-6, atol=0)
        for ours, theirs in zip(student.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(together.total, total)


def test_heads_are_compared_each_with_its_group_of_channels() -> None:
    student, batch, teacher = make_student(), make_batch(), make_teacher(by_head=True)
    losses = LOSSES.model_copy(update={"attention": AttentionConfig(heads="matched")})
    found = objective(student, losses=losses, teacher=teacher)(student, batch).parts["attention"]
    told = teacher.observe(batch)
    (heads,) = told.heads
    assert heads.shape == (8, 3, 7, 7)
    torch.testing.assert_close(heads.sum(dim=(2, 3)), torch.ones(8, 3))
    with Features(student, (-2,)) as features:
        student(batch.images / 255 / 0.25 - 0.5 / 0.25)
    groups = features.take()[0].square().tensor_split(3, dim=1)
    distances = [attention_transfer(group.mean(dim=1), heads[:, i]) for i, group in enumerate(groups)]
    torch.testing.assert_close(found, torch.stack(distances).mean())
    with pytest.raises(ConfigError, match=r"shows no heads, only their mean; set it to mean"):
        objective(student, losses=losses)(student, batch)
