"""finetune.answers: a teacher's answer in some hundred bytes says, within stated bounds, what the teacher said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.base import ConfigError
from data_pipeline.sidecar import write_records
from finetune.answers import AnswerFormat
from finetune.kept_layers import KeptLayers
from finetune.teacher import TeacherOutput
from models.distill_losses import attention_transfer, feature_distance


def telling(
    num_images: int = 64, num_classes: int = 1000, grids: tuple[tuple[int, int], ...] = ((14, 14),)
) -> TeacherOutput:
    """Logits with a few great ones, as a trained network's; maps with a peak."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(num_images, num_classes, generator=g) * 1.5
    logits[:, : num_classes // 50] += 8 * torch.rand(num_images, num_classes // 50, generator=g)
    maps = [
        torch.randn(num_images, *grid, generator=g).mul(2).flatten(1).softmax(1).unflatten(1, grid)
        for grid in grids
    ]
    return TeacherOutput(logits=logits, attention=tuple(maps))


def through_file(answers: AnswerFormat, told: TeacherOutput, path: Path) -> Tensor:
    """The records as a loader hands them over, read from a file."""
    write_records(path, answers.write(told), present=np.ones(len(told.logits), bool))
    rows = np.load(path)
    return torch.from_numpy(rows.view(np.uint8).reshape(len(rows), -1).copy())


def read_back(
    told: TeacherOutput,
    path: Path,
    *,
    top: int,
    grid: int = 14,
    temperature: float = 1.0,
    maps: tuple[int, ...] = (0,),
) -> TeacherOutput:
    layers = tuple(range(len(told.attention)))
    answers = AnswerFormat.of(told, top=top, maps=KeptLayers(layers=layers), grid=grid)
    return answers.read(through_file(answers, told, path), temperature=temperature, maps=maps)


@pytest.mark.parametrize("num_classes", [10, 11])
def test_with_all_classes_kept_logits_come_back_to_the_precision_of_float16(
    tmp_path: Path, num_classes: int
) -> None:
    told = telling(num_classes=num_classes)
    found = read_back(told, tmp_path / "a.npy", top=99)
    distance = (told.logits.amax(1, keepdim=True) - told.logits).abs()
    assert ((found.logits - told.logits).abs() <= distance * 2**-11 + 1e-6).all()


@pytest.mark.parametrize("top", [1, 10, 20, 999])
def test_at_temperature_1_the_kept_classes_have_their_probabilities(tmp_path: Path, top: int) -> None:
    told = telling()
    found, true = read_back(told, tmp_path / "a.npy", top=top).logits.softmax(1), told.logits.softmax(1)
    kept = true.topk(top).indices
    torch.testing.assert_close(found.gather(1, kept), true.gather(1, kept), rtol=0.01, atol=1e-7)
    # What is left is shared equally, and nothing of it is lost.
    rest = found.scatter(1, kept, 0.0)
    torch.testing.assert_close(rest.sum(1), true.scatter(1, kept, 0.0).sum(1), rtol=0.01, atol=1e-6)
    shares = rest.scatter(1, kept, rest.amax(1, keepdim=True).expand(-1, top))
    torch.testing.assert_close(shares, shares.amax(1, keepdim=True).expand_as(shares), rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [2.0, 4.0, 20.0])
def test_at_other_temperatures_what_is_left_follows_from_its_first_two_moments(
    tmp_path: Path, temperature: float
) -> None:
    """1,000 classes, 10 kept: the mass of the rest, which would be off by a half if it were taken for equal logits."""
    told = telling()
    found = read_back(told, tmp_path / "a.npy", top=10, temperature=temperature).logits
    kept = told.logits.topk(10).indices

    def left(logits: Tensor) -> Tensor:
        return (logits / temperature).softmax(1).scatter(1, kept, 0.0).sum(1)

    torch.testing.assert_close(left(found), left(told.logits), rtol=0.03, atol=0)


def test_maps_come_back_in_the_order_asked_for_and_sum_to_one(tmp_path: Path) -> None:
    told = telling(grids=((14, 14), (7, 9), (4, 4)))
    found = read_back(told, tmp_path / "a.npy", top=5, maps=(2, 0)).attention
    assert [part.shape for part in found] == [(64, 4, 4), (64, 14, 14)]
    for part, true in zip(found, (told.attention[2], told.attention[0]), strict=True):
        torch.testing.assert_close(part.sum((1, 2)), torch.ones(64))
        torch.testing.assert_close(part, true, rtol=2e-3, atol=1e-6)


def test_a_finer_map_is_pooled_and_the_loss_at_the_students_grid_stays(tmp_path: Path) -> None:
    told = telling()
    (found,) = read_back(told, tmp_path / "a.npy", top=5, grid=7).attention
    pooled = F.avg_pool2d(told.attention[0].unsqueeze(1), 2).squeeze(1) * 4
    torch.testing.assert_close(found, pooled, rtol=2e-3, atol=1e-6)
    student = torch.rand(64, 7, 7)
    torch.testing.assert_close(
        attention_transfer(student, found), attention_transfer(student, told.attention[0]), rtol=2e-3, atol=0
    )


@pytest.mark.parametrize(("top", "layers", "grid"), [(10, 1, 7), (20, 1, 14), (20, 3, 14)])
def test_an_answer_at_imagenet_settings_takes_less_than_2_kb_of_file(
    tmp_path: Path, top: int, layers: int, grid: int
) -> None:
    told = telling(num_images=1000, grids=((14, 14),) * layers)
    answers = AnswerFormat.of(told, top=top, maps=KeptLayers(layers=tuple(range(layers))), grid=grid)
    through_file(answers, told, tmp_path / "a.npy")
    size = (tmp_path / "a.npy").stat().st_size / 1000
    assert answers.record.itemsize <= size < 2048
    assert size == pytest.approx(16 + 4 * top + 2 * layers * grid**2, abs=3)


def test_without_maps_there_are_none(tmp_path: Path) -> None:
    found = read_back(telling(grids=()), tmp_path / "a.npy", top=5, maps=())
    assert found.attention == () and found.tokens == ()


def test_features_come_back_but_for_a_factor_and_the_loss_on_them_stays(tmp_path: Path) -> None:
    """Whatever they are: of both signs, far beyond float16's range, or nothing but zeros."""
    g = torch.Generator().manual_seed(1)
    fine, coarse = torch.randn(6, 24, 14, 14, generator=g) * 1e6, torch.randn(6, 5, 3, 4, generator=g)
    coarse[0] = 0.0
    told = replace(telling(num_images=6, num_classes=11), tokens=(fine, coarse))
    tokens = KeptLayers(layers=(3, -1), depths=(0.5, 1.0))
    answers = AnswerFormat.of(told, top=3, maps=KeptLayers(layers=(-1,)), tokens=tokens, grid=7)
    assert answers.tokens.shapes == ((24, 7, 7), (5, 3, 4)) and answers.maps.shapes == ((7, 7),)
    records = through_file(answers, told, tmp_path / "a.npy")
    last, first = answers.read(records, temperature=1.0, tokens=(1, 0)).tokens
    for found, true in ((first, F.avg_pool2d(fine, 2)), (last, coarse)):
        scale = true.abs().amax((1, 2, 3), keepdim=True)
        torch.testing.assert_close(found * scale, true, rtol=1e-3, atol=float(scale.max()) * 1e-6)
    student = torch.randn(6, 24, 7, 7, generator=g)
    torch.testing.assert_close(
        feature_distance(student, first), feature_distance(student, fine), rtol=1e-4, atol=0
    )


def test_classes_beyond_65536_are_told_apart(tmp_path: Path) -> None:
    logits = torch.zeros(1, 70_000)
    logits[0, 69_999], logits[0, 69_999 - (1 << 16)] = 9.0, 5.0
    found = read_back(TeacherOutput(logits=logits), tmp_path / "a.npy", top=2, maps=())
    assert found.logits.topk(2).indices.tolist() == [[69_999, 69_999 - (1 << 16)]]


def test_micro_batches_are_read_as_the_batch_is(tmp_path: Path) -> None:
    told = telling(num_images=7, num_classes=11, grids=((3, 3),))
    answers = AnswerFormat.of(told, top=3, maps=KeptLayers(layers=(0,)), grid=7)
    records = through_file(answers, told, tmp_path / "a.npy")
    whole = answers.read(records, temperature=2.0, maps=(0,))
    parts = [answers.read(records[i : i + 3], temperature=2.0, maps=(0,)) for i in range(0, 7, 3)]
    assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)
    assert torch.equal(torch.cat([part.attention[0] for part in parts]), whole.attention[0])


def test_equal_logits_are_kept_in_the_order_of_classes() -> None:
    told = TeacherOutput(logits=torch.zeros(2, 50))
    assert AnswerFormat.of(told, top=4, grid=7).write(told)["classes"].tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_teacher_that_answers_with_no_number_is_refused(wrong: float) -> None:
    told = TeacherOutput(logits=torch.tensor([[0.0, wrong, 1.0]]))
    with pytest.raises(ConfigError, match="the teacher answers with logits that are not finite"):
        AnswerFormat.of(told, top=2, grid=7).write(told)
