"""models.token_pack: attention within the images of one sequence, however they are grouped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.token_pack import TokenPack, alike, attend_packed

CPU = torch.device("cpu")


@pytest.mark.parametrize("slack", [0.0, 0.125, 1.0])
@pytest.mark.parametrize("counts", [(5,), (4, 4, 4), (7, 3, 7, 1), (9, 8, 2, 8, 9, 1)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_softmax_of_each_image_alone(
    counts: tuple[int, ...], slack: float, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(sum(counts))
    total, dtype = sum(counts), torch.float64
    q, k, v = (torch.randn(total, 2, 4, generator=generator, dtype=dtype).requires_grad_() for _ in range(3))
    bias = torch.randn(total, generator=generator, dtype=dtype) if with_bias else None
    mixed = attend_packed(q, k, v, TokenPack(counts, CPU, slack=slack), bias)
    ends = torch.tensor(counts).cumsum(0).tolist()
    expected = []
    for begin, end in zip([0, *ends], ends, strict=False):
        scores = torch.einsum("nhe,mhe->hnm", q[begin:end], k[begin:end]) / 2
        scores = scores if bias is None else scores + bias[begin:end]
        expected.append(torch.einsum("hnm,mhe->nhe", scores.softmax(dim=2), v[begin:end]))
    torch.testing.assert_close(mixed, torch.cat(expected), rtol=0, atol=1e-12)
    weights = torch.randn(mixed.shape, generator=generator, dtype=dtype)
    got = torch.autograd.grad((mixed * weights).sum(), (q, k, v))
    wanted = torch.autograd.grad((torch.cat(expected) * weights).sum(), (q, k, v))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from([0.0, 0.125, 0.5, 1.0]))
def test_taken_in_groups_and_packed_again_everything_is_in_its_place(counts: list[int], slack: float) -> None:
    pack = TokenPack(counts, CPU, slack=slack)
    numbers = torch.arange(sum(counts)).unsqueeze(1)
    assert torch.equal(pack.pack([group.take(numbers) for group in pack.groups]), numbers)
    assert pack.image_of_token().bincount().tolist() == counts


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.sampled_from([0.0, 0.125, 1.0]))
def test_groups_hold_each_image_once_and_pad_by_no_more_than_the_slack(
    counts: list[int], slack: float
) -> None:
    groups = alike(counts, slack=slack)
    assert sorted(image for group in groups for image in group) == list(range(len(counts)))
    for group in groups:
        lengths = [counts[image] for image in group]
        assert min(lengths) >= (1 - slack) * max(lengths)
    if slack == 1.0:
        assert len(groups) == 1


def test_images_of_one_length_are_cut_without_a_copy() -> None:
    pack = TokenPack((3, 3), CPU)
    x = torch.randn(6, 4)
    (group,) = pack.groups
    assert group.take(x).data_ptr() == x.data_ptr() and group.is_token_bM is None
    assert pack.pack([group.take(x)]).data_ptr() == x.data_ptr()
