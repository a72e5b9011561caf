"""Tests of convolutions as matrix products."""

import pytest
import torch
from torch import nn

from fairseq_samu.modules.strided_conv import StridedConv

SHAPES = [
    (3, 7, 3, 2), (3, 4, 2, 2), (1, 12, 10, 5), (2, 3, 7, 2), (4, 3, 1, 1), (3, 2, 4, 1), (2, 5, 2, 3),
    (5, 40, 3, 2),
]  # fmt: skip


@pytest.mark.parametrize("channels, width, kernel, stride", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torchs_convolution(channels, width, kernel, stride, bias):
    torch.manual_seed(0)
    conv = nn.Conv1d(channels, width, kernel, stride, bias=bias).double()
    ours = StridedConv(conv)
    assert dict(ours.named_parameters()) == dict(conv.named_parameters())
    x = torch.randn(3, 8 * stride, channels, dtype=torch.float64, requires_grad=True)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    found = ours(x)
    assert found.shape == (3, 8, width) and torch.isfinite(found).all()
    # What reaches beyond the end is nobody's.
    found = found[:, : expected.size(1)]
    assert torch.allclose(found, expected)
    weights = torch.randn_like(expected)
    inputs = [x, *conv.parameters()]
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for mine, gradient in zip(
        torch.autograd.grad((found * weights).sum(), inputs), theirs, strict=True
    ):
        assert torch.allclose(mine, gradient)


@pytest.mark.parametrize("channels, width, kernel, stride", SHAPES)
def test_gradients_of_all_windows(channels, width, kernel, stride):
    torch.manual_seed(0)
    ours = StridedConv(nn.Conv1d(channels, width, kernel, stride).double())
    x = torch.randn(2, 2 * stride, channels, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (x,))


def test_halves_under_autocast():
    ours = StridedConv(nn.Conv1d(3, 4, 3, 2))
    x = torch.randn(2, 6, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), ours(x), atol=0.05)
    found.float().sum().backward()
    assert x.grad.dtype == ours.weight.grad.dtype == torch.float32
