"""Tests of attention by fused kernels."""

import pytest
import torch
from fairseq.modules import MultiheadAttention

from fairseq_samu.models.attention import FUSED, fused


def make(**options):
    torch.manual_seed(0)
    theirs = MultiheadAttention(16, 4, **options)
    torch.manual_seed(0)
    return theirs, fused(MultiheadAttention(16, 4, **options))


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_equals_fairseqs(padding, causal, training):
    theirs, ours = make(self_attention=True)
    x = torch.randn(7, 3, 16)
    mask = torch.arange(7) >= torch.tensor([[7], [4], [5]]) if padding else None
    above = torch.full((7, 7), float("-inf")).triu(1) if causal else None
    results = []
    for attention in (theirs.train(training), ours.train(training)):
        leaf = x.clone().requires_grad_()
        out, weights = attention(leaf, leaf, leaf, mask, attn_mask=above, need_weights=False)
        assert weights is None
        out.pow(2).sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in attention.parameters())])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_other_keys_than_queries():
    theirs, ours = make(encoder_decoder_attention=True, kdim=16, vdim=16)
    query, key = torch.randn(5, 2, 16), torch.randn(9, 2, 16)
    mask = torch.arange(9) >= torch.tensor([[9], [6]])
    expected, _ = theirs(query, key, key, mask, need_weights=False)
    assert torch.allclose(ours(query, key, key, mask, need_weights=False)[0], expected, atol=1e-6)


def test_weights_are_there_outside_of_training():
    theirs, ours = make(self_attention=True)
    x = torch.randn(4, 2, 16)
    expected = theirs.eval()(x, x, x, need_weights=True)[1]
    assert torch.allclose(ours.eval()(x, x, x, need_weights=True)[1], expected, atol=1e-6)
    if FUSED:
        assert ours.train()(x, x, x, need_weights=True)[1] is None


def test_dropout_in_training_alone():
    _, ours = make(self_attention=True, dropout=0.5)
    x = torch.randn(6, 2, 16)
    once, again = (ours.train()(x, x, x, need_weights=False)[0] for _ in range(2))
    assert not torch.allclose(once, again)
    once, again = (ours.eval()(x, x, x, need_weights=False)[0] for _ in range(2))
    assert torch.equal(once, again)


def test_dropout_keeps_the_mean():
    _, ours = make(self_attention=True, dropout=0.2)
    x = torch.randn(9, 1, 16).repeat(1, 4000, 1)
    padded = (torch.arange(9) >= 7).repeat(4000, 1)
    with torch.no_grad():
        expected = ours.eval()(x, x, x, padded, need_weights=False)[0][:, 0]
        found = ours.train()(x, x, x, padded, need_weights=False)[0].mean(1)
    assert torch.allclose(found, expected, atol=0.01)
