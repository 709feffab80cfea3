"""Products with one matrix, in each layout that it is kept in."""

from __future__ import annotations

import pytest
import torch

from manytune.packing import products
from manytune.packing.kernels import Kernels
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.packing.products import Product


@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_those_of_torch(
    kernels: Kernels, dtype: torch.dtype, frozen: bool, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the compiled kernels, which multiply where AVX-512 is missing."""
    monkeypatch.setattr(products, "has_avx512", lambda: avx512)
    monkeypatch.setattr(kernels, "multiplies", kernels.lanes > 0 and not avx512)
    weight, x, grad = (torch.randn(*shape).to(dtype) for shape in ((24, 40), (16, 40), (16, 24)))
    product = Product(weight, kernels, frozen=frozen)
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(product.forward(x), x @ weight.t(), rtol=limit, atol=10 * limit)
    torch.testing.assert_close(product.backward(grad), grad @ weight, rtol=limit, atol=10 * limit)


def test_only_a_frozen_matrix_in_fp32_is_kept_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that trains must be read as it is now."""
    monkeypatch.setattr(products, "has_avx512", lambda: False)
    weight, x = torch.randn(24, 40), torch.randn(16, 40)
    training, frozen = (Product(weight, ReferenceKernels(), frozen=frozen) for frozen in (False, True))
    before = frozen.forward(x)
    weight.mul_(2)
    torch.testing.assert_close(training.forward(x), 2 * before)
    assert torch.equal(frozen.forward(x), before)
