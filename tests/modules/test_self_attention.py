"""Tests of self-attention beside torch's own."""

import pytest
import torch
from torch import nn

from fairseq_samu.modules import self_attention
from fairseq_samu.modules.self_attention import SelfAttention


@pytest.mark.parametrize("padded", ["bool", "float", "none"])
def test_equals_torchs_where_nothing_is_dropped(
    monkeypatch: pytest.MonkeyPatch, padded: str
) -> None:
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(12, 3, 0.0), SelfAttention(12, 3, 2**-17)
    ours.load_state_dict(theirs.state_dict())
    calls = []
    attend = self_attention.attention_with_dropout
    monkeypatch.setattr(
        self_attention, "attention_with_dropout", lambda *a: calls.append(1) or attend(*a)
    )
    mask = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    if padded == "float":
        mask = torch.zeros(2, 7).masked_fill(mask, -torch.inf)
    x, weights = torch.randn(7, 2, 12), torch.randn(7, 2, 12)
    results = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        given = None if padded == "none" else mask
        out, none = module(leaf, leaf, leaf, key_padding_mask=given, need_weights=False)
        assert none is None
        (out * weights).sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in module.parameters())])
    assert calls == [1]
    for mine, expected in zip(results[1], results[0]):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_weights_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(12, 3, 0.5), SelfAttention(12, 3, 0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 12)
    assert not torch.allclose(*(ours(x, x, x, need_weights=False)[0] for _ in range(2)))
    for mine, expected in zip(ours.eval()(x, x, x), theirs.eval()(x, x, x)):
        assert torch.equal(mine, expected)
