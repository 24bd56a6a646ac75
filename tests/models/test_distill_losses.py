"""models.distill_losses: each loss equals its formula, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from torch import Tensor

from models.distill_losses import (
    attention_transfer,
    correlation,
    dist_logits,
    feature_distance,
    kl_logits,
    map_divergence,
)

Floats = NDArray[np.float64]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tempered(logits: Tensor, t: float) -> Floats:
    found: Floats = softmax(logits.double().numpy() / t, axis=1)
    return found


def r(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("t", [1.0, 3.0])
def test_kl_is_the_sum_of_its_definition(t: float) -> None:
    student, teacher = randn(5, 4), randn(5, 4, seed=1)
    expected = rel_entr(tempered(teacher, t), tempered(student, t)).sum() / 5 * t * t
    assert kl_logits(student, teacher, temperature=t).item() == pytest.approx(expected, rel=1e-5)
    assert kl_logits(teacher, teacher, temperature=t) == 0


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_dist_is_one_minus_the_mean_correlation_of_rows_and_of_columns(t: float) -> None:
    student, teacher = randn(6, 5), randn(6, 5, seed=1)
    p, q = tempered(student, t), tempered(teacher, t)
    rows = 1 - np.mean([r(p[i], q[i]) for i in range(6)])
    columns = 1 - np.mean([r(p[:, c], q[:, c]) for c in range(5)])
    assert dist_logits(student, teacher, temperature=t).item() == pytest.approx(
        (rows + columns) * t * t, rel=1e-4
    )


def test_dist_of_equal_logits_is_zero_and_of_a_single_image_has_a_gradient_from_its_row_alone() -> None:
    teacher = randn(6, 5)
    assert dist_logits(teacher, teacher, temperature=1.0).item() == pytest.approx(0, abs=1e-5)
    student = randn(1, 5, seed=1).requires_grad_()
    dist_logits(student, teacher[:1], temperature=1.0).backward()
    assert student.grad is not None and student.grad.isfinite().all() and student.grad.abs().max() > 0


def test_correlation_is_numpys_and_zero_where_nothing_varies() -> None:
    a, b = randn(3, 7), randn(3, 7, seed=1)
    expected = [r(x.double().numpy(), y.double().numpy()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation(a, b, dim=1), expected, rtol=1e-5)
    assert correlation(torch.ones(1, 7), b[:1], dim=1).item() == 0.0


def test_attention_transfer_is_the_authors_formula_on_equal_grids() -> None:
    a, b = rand(3, 7, 7), rand(3, 7, 7, seed=1)
    expected = (F.normalize(a.view(3, -1)) - F.normalize(b.view(3, -1))).pow(2).mean()
    torch.testing.assert_close(attention_transfer(a, b), expected)


def test_attention_transfer_does_not_see_scale_and_is_zero_for_equal_maps() -> None:
    a, b = rand(2, 7, 7), rand(2, 7, 7, seed=1)
    torch.testing.assert_close(attention_transfer(30 * a, b / 5), attention_transfer(a, b))
    torch.testing.assert_close(attention_transfer(a, 3 * a), torch.tensor(0.0))
    assert attention_transfer(torch.zeros(2, 7, 7), b).isfinite()


@pytest.mark.parametrize("distance", [attention_transfer, map_divergence])
@pytest.mark.parametrize(("fine", "coarse"), [((14, 14), (7, 7)), ((8, 6), (4, 2)), ((5, 5), (5, 5))])
def test_the_finer_map_is_pooled_to_the_coarser_grid_whichever_side_it_is_on(
    distance: object, fine: tuple[int, int], coarse: tuple[int, int]
) -> None:
    assert callable(distance)
    a, b = rand(2, *fine), rand(2, *coarse, seed=1)
    ratio = (fine[0] // coarse[0], fine[1] // coarse[1])
    pooled = F.avg_pool2d(a.unsqueeze(1), ratio).squeeze(1)
    torch.testing.assert_close(distance(a, b), distance(pooled, b))
    torch.testing.assert_close(distance(b, a), distance(b, pooled))


def test_grids_of_which_neither_is_finer_meet_at_the_smaller_sides() -> None:
    assert attention_transfer(rand(2, 7, 4), rand(2, 3, 9)).ndim == 0


def test_map_divergence_is_kl_of_shares_of_which_a_ten_thousandth_is_spread_evenly() -> None:
    a, b = rand(3, 4, 4), rand(3, 4, 4, seed=1)
    p = (b / b.sum(dim=(1, 2), keepdim=True)).double().numpy()
    q = (a / a.sum(dim=(1, 2), keepdim=True)).double().numpy()
    expected = rel_entr(p, (q + 1e-4 / 16) / (1 + 1e-4)).sum() / 3
    assert map_divergence(a, b).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(map_divergence(9 * a, b / 3), map_divergence(a, b))
    assert map_divergence(b, b).item() < 1e-6


def test_a_student_without_energy_where_the_teacher_looks_has_a_finite_loss_and_gradient() -> None:
    student = torch.zeros(1, 2, 2)
    student[0, 0, 0] = 1.0
    student.requires_grad_()
    loss = map_divergence(student, torch.full((1, 2, 2), 0.25))
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()
    assert (student.grad.flatten()[1:] < 0).all()


def test_feature_distance_is_half_the_squared_distance_of_features_standardized_over_channels() -> None:
    a, b = randn(2, 8, 3, 3), randn(2, 8, 3, 3, seed=1)

    def standardized(x: Tensor) -> Floats:
        y = x.double().numpy()
        return np.asarray((y - y.mean(axis=1, keepdims=True)) / y.std(axis=1, keepdims=True))

    expected = ((standardized(a) - standardized(b)) ** 2).mean() / 2
    assert feature_distance(a, b).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(feature_distance(5 * a + 3, b), feature_distance(a, b))
    assert feature_distance(randn(2, 8, 6, 6), b).ndim == 0


def test_losses_of_low_precision_inputs_are_float32() -> None:
    a, b = randn(4, 5).bfloat16(), randn(4, 5, seed=1).bfloat16()
    maps = rand(2, 4, 4).bfloat16(), rand(2, 4, 4, seed=1).bfloat16()
    found = [kl_logits(a, b, temperature=2.0), dist_logits(a, b, temperature=2.0)]
    found += [attention_transfer(*maps), map_divergence(*maps)]
    assert {loss.dtype for loss in found} == {torch.float32}
