"""finetune.ensemble: several teachers are one whose probabilities and maps are their means."""

from __future__ import annotations

import torch

from finetune.ensemble import Ensemble, as_one
from finetune.teacher import Teacher
from tests.support.distilling import make_batch, make_teacher


def test_probabilities_and_maps_are_means_layer_by_layer() -> None:
    first, second = make_teacher((0, 1)), Teacher(make_teacher().network, attention_layers=(1, 0))
    with torch.no_grad():
        for parameter in second.network.parameters():
            parameter.mul_(1.5)
    batch = make_batch()
    told = Ensemble([first, second]).observe(batch)
    one, two = first.observe(batch), second.observe(batch)
    expected = (one.logits.softmax(dim=1) + two.logits.softmax(dim=1)) / 2
    torch.testing.assert_close(told.logits.softmax(dim=1), expected)
    torch.testing.assert_close(told.logits.exp().sum(dim=1), torch.ones(8))
    for found, ours, theirs in zip(told.attention, one.attention, two.attention, strict=True):
        torch.testing.assert_close(found, (ours + theirs) / 2)
    assert told.tokens == ()


def test_maps_of_different_grids_meet_on_the_coarser_and_sum_to_one() -> None:
    fine, coarse = make_teacher(), make_teacher(patch_size=14)
    told = Ensemble([fine, coarse]).observe(make_batch())
    assert told.attention[0].shape == (8, 2, 2)
    torch.testing.assert_close(told.attention[0].sum(dim=(1, 2)), torch.ones(8))


def test_one_teacher_is_itself_and_none_is_nobody() -> None:
    teacher = make_teacher()
    assert as_one([teacher]) is teacher and as_one([]) is None
