"""Tests of dropout that remembers a byte for each number."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fairseq_samu.modules.dropout import (
    Dropout,
    attention_with_dropout,
    keep_mask,
    masked,
    share_kept,
    use_fast_dropout,
)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_keeps_the_share_that_it_says(p):
    torch.manual_seed(0)
    kept = keep_mask((1000, 501), p).float().mean().item()
    assert share_kept(p) == pytest.approx(1 - p, abs=2**-16)
    assert kept == pytest.approx(1 - p, abs=4 * (p * (1 - p) / 501_000) ** 0.5)


def test_draws_are_independent():
    """Of 64 random bits every number has its own 16."""
    torch.manual_seed(0)
    kept = keep_mask((50_000, 4), 0.5).double()
    assert torch.corrcoef(kept.t()).fill_diagonal_(0).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_that_of_what_was_kept(dtype):
    torch.manual_seed(0)
    x = torch.randn(40, 30).to(dtype).requires_grad_()
    dropout = Dropout(0.25)
    out = dropout(x)
    assert out.dtype == dtype
    kept = out != 0
    assert torch.equal(out[kept], x[kept] * (1 / 0.75)) and 0.6 < kept.float().mean() < 0.9
    out.sum().backward()
    assert torch.equal(x.grad, kept.to(dtype) * (1 / 0.75))


@pytest.mark.parametrize("p, training", [(0.0, True), (0.5, False), (1.0, True)])
def test_where_nothing_is_drawn(p, training):
    x = torch.randn(5, 4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(p).train(training)(x), F.dropout(x, p, training))
    assert p == 1 or torch.equal(torch.get_rng_state(), before)


def test_remembers_a_byte_for_each_number():
    kept = []
    x = torch.randn(64, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        Dropout(0.1)(x)
    assert [tensor.dtype for tensor in kept] == [torch.bool]


MASKS = {
    "none": lambda: None,
    "padding": lambda: torch.zeros(3, 1, 1, 7).masked_fill_(
        torch.arange(7) >= torch.tensor([7, 4, 5]).view(3, 1, 1, 1), float("-inf")
    ),
    "causal": lambda: torch.full((5, 7), float("-inf")).triu(1),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_equals_the_formula(mask):
    mask = mask()
    leaves = [torch.randn(3, 2, n, 4, dtype=torch.float64) for n in (5, 7, 7)]
    weight = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    mask = None if mask is None else mask.double()
    results = []
    for ours in (True, False):
        torch.manual_seed(1)
        q, k, v = (leaf.clone().requires_grad_() for leaf in leaves)
        if ours:
            out = attention_with_dropout(q, k, v, mask, 0.3)
        else:
            scores = q @ k.transpose(2, 3) / 2
            weights = (scores if mask is None else scores + mask).softmax(-1)
            keep = keep_mask(weights.shape, 0.3)
            out = masked(weights, keep) / share_kept(0.3) @ v
        (out * weight).sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected)


def test_attention_remembers_no_weights():
    kept = []
    q, k, v = (torch.randn(2, 2, 50, 4, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attention_with_dropout(q, k, v, None, 0.1)
    assert {t.dtype for t in kept if t.shape == (2, 2, 50, 50)} == {torch.bool}


def test_dropout_of_torchs_layers_is_exchanged():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 12, 0.25)
    x = torch.randn(5, 3, 8)
    expected = layer.eval()(x)
    use_fast_dropout(layer)
    assert [type(m) is Dropout and m.p == 0.25 for m in (layer.dropout, layer.dropout1)] == [
        True
    ] * 2
    assert not layer.dropout.training and torch.equal(layer(x), expected)
    assert not torch.allclose(layer.train()(x), expected)
