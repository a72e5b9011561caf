"""Pooling and the head against hand-computed values; padding changes nothing."""

import pytest
import torch

from fairseq_samu.modules.pooling import MaxPooling, MeanPooling, SelfAttentionPooling
from fairseq_samu.modules.sentence_head import POOLINGS, SentenceHead

FRAMES = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
PADDED = torch.tensor([[False, False, True]])


def test_mean_and_maximum_by_hand():
    pooled, weights = MeanPooling()(FRAMES, PADDED)
    assert pooled.tolist() == [[2.0, 1.0]] and weights.tolist() == [[0.5, 0.5, 0.0]]
    pooled, weights = MaxPooling()(FRAMES, PADDED)
    assert pooled.tolist() == [[3.0, 2.0]] and weights.tolist() == [[0.0, 1.0, 0.0]]


def test_self_attention_by_hand():
    """w = (1, 0), b = 5: scores 6 and 8, weights 1/(1+e²) and e²/(1+e²)."""
    pooling = SelfAttentionPooling(2)
    with torch.no_grad():
        pooling.score.weight.copy_(torch.tensor([[1.0, 0.0]]))
        pooling.score.bias.fill_(5.0)
    pooled, weights = pooling(FRAMES, PADDED)
    share = torch.exp(torch.tensor(2.0)) / (1 + torch.exp(torch.tensor(2.0)))
    torch.testing.assert_close(weights, torch.tensor([[1 - share, share, 0.0]]))
    torch.testing.assert_close(pooled, torch.stack([1 + 2 * share, 2 * share]).unsqueeze(0))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_nothing(pooling):
    torch.manual_seed(0)
    head = SentenceHead(8, 5, pooling).eval()
    frames = torch.randn(2, 7, 8)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    together = head(frames, mask)
    torch.testing.assert_close(together[1:], head(frames[1:, :4]))
    frames[1, 4:] = 1e4
    torch.testing.assert_close(together, head(frames, mask))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_have_length_one_and_every_parameter_gets_a_gradient(pooling):
    torch.manual_seed(0)
    head = SentenceHead(8, 5, pooling)
    vectors = head(torch.randn(3, 6, 8))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    vectors[:, 0].sum().backward()
    without = [name for name, p in head.named_parameters() if p.grad is None]
    assert without == []
    assert head.projection.weight.grad.abs().max() > 0


def test_the_projection_is_linear_then_tanh():
    head = SentenceHead(2, 2, "mean")
    with torch.no_grad():
        head.projection.weight.copy_(torch.eye(2))
        head.projection.bias.zero_()
    expected = torch.tensor([2.0, 1.0]).tanh()
    torch.testing.assert_close(head(FRAMES, PADDED)[0], expected / expected.norm())


def test_unknown_pooling():
    with pytest.raises(ValueError, match="expected one of attention, mean, max, transformer"):
        SentenceHead(2, 2, "median")
