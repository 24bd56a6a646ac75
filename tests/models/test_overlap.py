"""models.overlap: correlation is NumPy's, and pointing finds the teacher's quarter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.overlap import map_correlation, map_pointing


def test_correlation_is_numpys_over_the_places_of_each_image() -> None:
    a, b = torch.rand(4, 5, 5), torch.rand(4, 5, 5)
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(map_correlation(a, b), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(map_correlation(a, 7 * a + 1), torch.ones(4))
    torch.testing.assert_close(map_correlation(a, -a), -torch.ones(4))
    assert map_correlation(torch.ones(1, 5, 5), b[:1]).item() == 0.0


def test_pointing_hits_where_the_students_peak_is_in_the_teachers_highest_quarter() -> None:
    teacher = torch.arange(16.0).view(1, 4, 4)
    hits = []
    for place in range(16):
        student = torch.zeros(1, 16)
        student[0, place] = 1.0
        hits.append(map_pointing(student.view(1, 4, 4), teacher).item())
    assert hits == [0.0] * 12 + [1.0] * 4


@pytest.mark.parametrize("side", [8, 16])
def test_a_student_that_points_anywhere_hits_a_quarter(side: int) -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.rand(4000, side, side, generator=g) for _ in range(2))
    assert map_pointing(student, teacher).mean().item() == pytest.approx(0.25, abs=0.03)


def test_maps_meet_on_the_coarser_grid() -> None:
    fine, coarse = torch.rand(3, 8, 8), torch.rand(3, 4, 4)
    pooled = torch.nn.functional.avg_pool2d(fine.unsqueeze(1), 2).squeeze(1)
    torch.testing.assert_close(map_correlation(fine, coarse), map_correlation(pooled, coarse))
    torch.testing.assert_close(map_pointing(coarse, fine), map_pointing(coarse, pooled))
