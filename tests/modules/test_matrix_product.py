"""Tests of matrix products."""

import torch

from fairseq_samu.modules import matrix_product


def test_products_are_those_of_torch(monkeypatch):
    """Whatever the library and the strides; large enough for oneDNN, where that is there."""
    monkeypatch.setattr(matrix_product, "SMALL", 0)
    torch.manual_seed(0)
    a, b, bias = torch.randn(48, 40), torch.randn(40, 24), torch.randn(24)
    for left in (
        a,
        a.t().contiguous().t(),
        torch.randn(48, 80)[:, ::2],
        torch.randn(48, 50)[:, :40],
    ):
        for right in (
            b,
            b.t().contiguous().t(),
            torch.randn(40, 72)[:, :24],
            torch.randn(24, 50)[:, 5:45].t(),
        ):
            for addend in (None, bias):
                expected = left.double() @ right.double() + (0 if addend is None else addend)
                found = matrix_product.product(left, right, addend)
                assert found.dtype == torch.float32
                assert torch.allclose(found.double(), expected, atol=1e-4)
