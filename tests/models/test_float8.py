"""models.float8: e4m3 as the format is defined, scales that round nothing, and the products of torch._scaled_mm."""

from __future__ import annotations

import math

import pytest
import torch

from models.float8 import E4M3, LARGEST, decode, encode, multiply, scales_of, uses_scaled_mm


def value_of(code: int) -> float:
    """A code's value by the format's definition (Micikevicius et al. 2022, table 1)."""
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = 2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else 2.0**-6 * mantissa / 8
    return -size if code & 128 else size


CODES = [code for code in range(256) if code & 127 != 127]
"""All but the two that are no numbers."""


def rounded(number: float) -> float:
    """The nearest value, of two as near the one with the even code."""
    nearest = min(CODES[:127], key=lambda code: (abs(value_of(code) - abs(number)), code & 1))
    return math.copysign(value_of(nearest), number)


def test_every_code_has_the_value_that_the_format_gives_it() -> None:
    coded = torch.tensor(CODES, dtype=torch.uint8).view(E4M3)
    expected = torch.tensor([value_of(code) for code in CODES])
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(decode(coded, dtype), expected.to(dtype))
    assert expected.max() == LARGEST == value_of(126)


def test_a_number_becomes_the_nearest_and_of_two_the_even_one() -> None:
    values = torch.tensor([value_of(code) for code in CODES[:127]], dtype=torch.float64)
    between = (values[1:] + values[:-1]) / 2
    numbers = torch.cat([values, between, between * (1 - 1e-6), between * (1 + 1e-6)]).float()
    numbers = torch.cat([numbers, -numbers])
    expected = torch.tensor([rounded(number) for number in numbers.tolist()])
    assert torch.equal(decode(encode(numbers, torch.ones(())), torch.float32), expected)


@pytest.mark.parametrize(
    ("largest", "scale"),
    [
        (448.0, 1.0),
        (448.0001, 2.0),
        (224.0001, 1.0),
        (224.0, 0.5),
        (1.0, 2.0**-8),
        (3e38, 2.0**120),
        (1e-30, 2.0**-108),
        (1e-44, 2.0**-126),
        (0.0, 2.0**-9),
    ],
)
def test_a_heads_scale_is_the_least_power_of_two_that_brings_it_into_range(
    largest: float, scale: float
) -> None:
    heads = torch.zeros(2, 3, 4, 8)
    heads[1, 2, 3, 5] = -largest
    scales = scales_of(heads)
    assert scales.shape == (2, 3, 1, 1) and scales[1, 2].item() == scale
    assert (decode(encode(heads, scales), torch.float32)[1, 2] * scale).abs().max() == pytest.approx(
        largest, rel=2**-4, abs=2.0**-135
    )


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_a_head_without_finite_numbers_has_no_scale(strange: float) -> None:
    heads = torch.ones(1, 2, 3, 4)
    heads[0, 1, 2, 3] = strange
    assert scales_of(heads).isnan().flatten().tolist() == [False, True]


@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 8), (17, 33, 24), (49, 49, 32), (197, 197, 64), (5, 300, 16)]
)
def test_products_are_those_of_scaled_mm_bit_for_bit(n: int, m: int, d: int) -> None:
    """On a CPU; its float32 is compared, and what it rounds to bfloat16 is that rounded."""
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(2, 3, rows, d, generator=generator) for rows in (n, m))
    a8, b8 = (encode(x, scales_of(x)) for x in (a, b))
    found = multiply(a8, b8, torch.float32)
    one = torch.ones(())
    for image in range(2):
        for head in range(3):
            for dtype in (torch.float32, torch.bfloat16):
                expected = torch._scaled_mm(
                    a8[image, head], b8[image, head].t(), scale_a=one, scale_b=one, out_dtype=dtype
                )
                assert torch.equal(found[image, head].to(dtype), expected)


def test_a_cpu_multiplies_heads_together() -> None:
    x = torch.zeros(1, 1, 8192, 64, dtype=torch.uint8).view(E4M3)
    assert not uses_scaled_mm(x, x)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m", "d"), [(49, 49, 32), (197, 197, 64), (4097, 4097, 64)])
def test_both_ways_of_multiplying_agree_on_a_gpu(n: int, m: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(1, 2, rows, d, generator=generator) for rows in (n, m))
    a8, b8 = (encode(x, scales_of(x)) for x in (a, b))
    expected = multiply(a8, b8, torch.float32)
    found = multiply(a8.cuda(), b8.cuda(), torch.float32).cpu()
    # NOTE: the accumulators of FP8 tensor cores keep fewer than float32's 24 bits.
    tolerance = 2**-11 if uses_scaled_mm(a8.cuda(), b8.cuda()) else 2**-20
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
