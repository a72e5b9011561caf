"""Tests of attention by fused kernels."""

from unittest import mock

import pytest
import torch
from fairseq.modules import MultiheadAttention

from fairseq_samu.models import attention
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
    for module in (theirs.train(training), ours.train(training)):
        leaf = x.clone().requires_grad_()
        out, weights = module(leaf, leaf, leaf, mask, attn_mask=above, need_weights=False)
        assert weights is None
        out.pow(2).sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in module.parameters())])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_other_keys_than_queries():
    theirs, ours = make(encoder_decoder_attention=True, kdim=16, vdim=16)
    query, key = torch.randn(5, 2, 16), torch.randn(9, 2, 16)
    mask = torch.arange(9) >= torch.tensor([[9], [6]])
    # As a decoder layer calls it.
    options = {"need_weights": False, "static_kv": True}
    expected, _ = theirs(query, key, key, mask, **options)
    with mock.patch.object(MultiheadAttention, "forward", None if FUSED else theirs.forward):
        assert torch.allclose(ours(query, key, key, mask, **options)[0], expected, atol=1e-6)


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


@pytest.mark.skipif(not FUSED, reason="torch has no fused attention")
@pytest.mark.parametrize("keys", [attention.FEW_KEYS, attention.FEW_KEYS + 1])
@pytest.mark.parametrize("padding", [False, True])
def test_halves_on_a_cpu(keys, padding):
    """Few keys are attended to in 32 bits."""
    _, ours = make(encoder_decoder_attention=True, kdim=16, vdim=16)
    query, key = torch.randn(5, 2, 16, requires_grad=True), torch.randn(keys, 2, 16)
    mask = torch.arange(keys) >= torch.tensor([[keys], [6]]) if padding else None
    expected = ours(query, key, key, mask, need_weights=False)[0]
    scores = []
    spy = mock.patch.object(
        attention.F,
        "scaled_dot_product_attention",
        lambda q, *rest: (
            scores.append(q.dtype) or torch.ops.aten.scaled_dot_product_attention(q, *rest)
        ),
    )
    with torch.autocast("cpu", torch.bfloat16), spy:
        found = ours(query, key, key, mask, need_weights=False)[0]
    assert scores == [torch.float32 if keys == attention.FEW_KEYS else torch.bfloat16]
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.02)
    found.float().sum().backward()
    assert query.grad.abs().sum() > 0
