from __future__ import annotations

import pytest
import torch

from data_pipeline.batch import Batch, normalize


def make_batch(size: int) -> Batch:
    ids = torch.arange(size)
    return Batch(
        images=torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4),
        targets=ids % 10,
        sample_ids=ids,
        epochs=torch.full_like(ids, 3),
        copies=torch.zeros_like(ids),
        weights=torch.ones(size),
    )


@pytest.mark.parametrize(("size", "expected"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (8, [7])])
def test_split_gives_micro_batches_of_at_most_that_size_in_order(size: int, expected: list[int]) -> None:
    parts = make_batch(7).split(size)
    assert [len(part) for part in parts] == expected
    assert torch.cat([part.sample_ids for part in parts]).tolist() == list(range(7))
    assert torch.cat([part.images for part in parts])[:, 0, 0, 0].tolist() == list(range(7))


def test_split_into_empty_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 image, not 0"):
        make_batch(2).split(0)


def test_moving_a_batch_keeps_what_it_holds() -> None:
    moved = make_batch(3).to("cpu")
    assert moved.sample_ids.tolist() == [0, 1, 2]
    assert moved.images.dtype == torch.uint8


def test_normalize_scales_subtracts_the_mean_and_divides_by_the_deviation_per_channel() -> None:
    images = torch.randint(
        0, 256, (5, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = torch.stack([(images[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-6)
