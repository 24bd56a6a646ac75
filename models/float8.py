"""Numbers in e4m3 (four bits of exponent, three of mantissa), their scales, and their products.

A scale is a power of two: to divide by it and to multiply with it is exact, wherever in a sum of products that is done.
Beside the scale that would use the whole range, the error of attention is the same within 3 % (docs/float8.md).

Shapes: N rows of the first, M of the second factor, D what is summed over; `...` stands for images and heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""What e4m3 can hold at most."""

_WORTH_A_CALL = 1 << 31
"""Operations of a product that take a GPU about as long as to start it: torch._scaled_mm is one call per head."""
_DIVISOR = 16
"""torch._scaled_mm on a GPU takes sizes that this divides."""


def scales_of(x_ND: Tensor) -> Tensor:
    """float32 [..., 1, 1]: of each head the smallest power of two by which its largest number comes to 448 at most.

    Of a head with a number that is not finite it is NaN.
    """
    # One dimension after the other: both at once are slow where heads lie beside each other.
    largest = x_ND.abs().amax(dim=-2, keepdim=True).amax(dim=-1, keepdim=True).float()
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa 2^exponent, 0.5 <= mantissa < 1
    exponent = exponent - 9 + (mantissa > LARGEST / 512).to(exponent.dtype)
    scales = torch.ldexp(torch.ones_like(largest), exponent.clamp_min(_LEAST_EXPONENT))
    return scales.where(largest.isfinite(), torch.nan)


def encode(x_ND: Tensor, scales: Tensor) -> Tensor:
    """x / scales in e4m3, contiguous; of two numbers as near the even one."""
    exact = x_ND.contiguous().to(torch.promote_types(x_ND.dtype, torch.float32))
    return (exact * (1 / scales)).to(E4M3)


def decode(coded: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers in another type, without their scale. NOTE: NaN is lost on a CPU; scales keep it."""
    if coded.device.type != "cpu":
        return coded.to(dtype)
    # torch's own conversion is slow there. e4m3 without its sign is float16 with the exponent off by 8.
    half = (coded.view(torch.int8).to(torch.int16) << 7) & _ALL_BUT_EXPONENTS_FIRST_BIT
    decoded: Tensor = half.view(torch.float16).to(dtype) * 256.0
    return decoded


def multiply(a_ND: Tensor, b_MD: Tensor, dtype: torch.dtype) -> Tensor:
    """a b^T of numbers in e4m3 as [..., N, M], summed in float32 or, where that is `dtype`, in float64.

    By torch._scaled_mm where that pays, else as a batch of matrices in a type that holds e4m3 exactly.
    """
    if uses_scaled_mm(a_ND, b_MD):
        return _each_by_scaled_mm(a_ND, b_MD)
    if a_ND.is_cuda and dtype == torch.float32:
        a, b = (decode(x, torch.bfloat16).flatten(0, -3) for x in (a_ND, b_MD))
        product = torch.bmm(a, b.transpose(1, 2), out_dtype=torch.float32)
        return product.reshape(*a_ND.shape[:-1], b_MD.shape[-2])
    return decode(a_ND, dtype) @ decode(b_MD, dtype).transpose(-2, -1)


def uses_scaled_mm(a_ND: Tensor, b_MD: Tensor) -> bool:
    """Whether the GPU has products in e4m3 (compute capability 8.9), and those of a head are worth a call each.

    A CPU has torch._scaled_mm too, head by head; a batch in float32 has the same results.
    """
    if (
        a_ND.device.type != "cuda"
        or torch.version.hip
        or torch.cuda.get_device_capability(a_ND.device) < (8, 9)
    ):
        return False
    return 2 * a_ND.shape[-2] * b_MD.shape[-2] * a_ND.shape[-1] >= _WORTH_A_CALL


def _each_by_scaled_mm(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    one = torch.ones((), device=a_ND.device)
    a, b = (_padded(x).flatten(0, -3) for x in (a_ND, b_MD))
    products = [
        torch._scaled_mm(x, y.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
        for x, y in zip(a, b, strict=True)
    ]
    whole: Tensor = torch.stack(products).unflatten(0, a_ND.shape[:-2])
    return whole[..., : a_ND.shape[-2], : b_MD.shape[-2]]


def _padded(x_ND: Tensor) -> Tensor:
    """With zeros to sizes that 16 divides, contiguous."""
    rows, columns = (-size % _DIVISOR for size in x_ND.shape[-2:])
    return F.pad(x_ND.contiguous().view(torch.uint8), (0, columns, 0, rows)).view(E4M3)


_LEAST_EXPONENT = -126
_ALL_BUT_EXPONENTS_FIRST_BIT = ~(1 << 14)
