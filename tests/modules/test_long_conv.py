"""Tests of convolutions by Fourier transforms."""

import pytest
import torch
from torch import nn

from fairseq_samu import compat
from fairseq_samu.modules import long_conv
from fairseq_samu.modules.long_conv import LongConv, fast_length


def results(conv, x, weights):
    conv.zero_grad()
    leaf = x.clone().requires_grad_()
    out = conv(leaf)
    (out * weights).sum().backward()
    return [out, leaf.grad, *(p.grad for p in conv.parameters())]


@pytest.mark.parametrize("frames", [1, 60, 145])
@pytest.mark.parametrize("segment", [384, 30])
@pytest.mark.parametrize("bias, frozen", [(True, False), (False, False), (True, True)])
def test_equals_torchs(frames, segment, bias, frozen, monkeypatch):
    monkeypatch.setattr(long_conv, "SEGMENT", segment)
    monkeypatch.setattr(long_conv, "MANY", 0)
    torch.manual_seed(0)
    theirs = nn.Conv1d(6, 4, 70, padding=35, groups=2, bias=bias).requires_grad_(not frozen)
    ours = LongConv(6, 4, 70, padding=35, groups=2, bias=bias).requires_grad_(not frozen)
    ours.load_state_dict(theirs.state_dict())
    x, weights = torch.randn(3, 6, frames), torch.randn(3, 4, frames + 1)
    called = []
    apply = long_conv._Correlation.apply
    monkeypatch.setattr(long_conv._Correlation, "apply", lambda *a: called.append(1) or apply(*a))
    for mine, expected in zip(results(ours, x, weights), results(theirs, x, weights), strict=True):
        assert (mine is None) == (expected is None)
        assert mine is None or torch.allclose(mine, expected, atol=1e-4)
    assert called


@pytest.mark.parametrize(
    "dtype, kernel, frames",
    [(torch.float64, 70, 300), (torch.float32, 5, 300), (torch.float32, 70, 200)],
)
def test_other_precisions_short_kernels_and_short_batches_are_torchs(dtype, kernel, frames):
    conv, x = LongConv(2, 2, kernel, padding=40).to(dtype), torch.randn(1, 2, frames, dtype=dtype)
    expected = nn.functional.conv1d(x, conv.weight, conv.bias, padding=40)
    assert torch.equal(conv(x), expected)


@pytest.mark.skipif(not compat.CPU_BF16_TRAINS, reason="torch 1 cannot")
def test_autocast():
    conv, x = LongConv(2, 2, 70, padding=35), torch.randn(1, 2, 300)
    expected = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
    assert torch.equal(out, expected.bfloat16())


def test_fast_lengths():
    assert [fast_length(n) for n in (1, 2, 7, 22, 127, 382, 511)] == [2, 2, 8, 24, 128, 384, 512]
