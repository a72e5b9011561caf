"""Views of a SAMU-XLS-R encoder."""

import math

import pytest
import torch

from fairseq_samu.modules.encoder_view import FeatureNoise, PooledView, ProjectedView
from fairseq_samu.modules.sentence_head import POOLINGS, SentenceHead


def frames_and_mask(frames=7, lengths=(7, 4), dim=6):
    torch.manual_seed(0)
    mask = torch.arange(frames)[None, :] >= torch.tensor(lengths)[:, None]
    return torch.randn(frames, len(lengths), dim), mask


def test_projected_frames_by_hand():
    head = SentenceHead(2, 1)
    with torch.no_grad():
        head.pooling.score.weight.copy_(torch.tensor([[math.log(3.0), 0.0]]))
        head.pooling.score.bias.fill_(5.0)  # the same for all frames: changes nothing
        head.projection.weight.copy_(torch.tensor([[0.0, 2.0]]))
        head.projection.bias.fill_(0.5)
    frames = torch.tensor([[1.0, 0.25], [0.0, 1.0]]).unsqueeze(1)
    found, _ = ProjectedView(head)(frames, torch.zeros(1, 2, dtype=torch.bool))
    # weights 3 : 1, so a = .75 and .25 over two frames
    expected = [math.tanh(1.0) * math.sqrt(1.5), math.tanh(2.5) * math.sqrt(0.5)]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_pooled_vector_is_the_utterance_vector_scaled():
    head = SentenceHead(6, 4)
    frames, mask = frames_and_mask()
    found, found_mask = PooledView(head)(frames, mask)
    assert found.shape == (1, 2, 4) and not found_mask.any() and found_mask.shape == (2, 1)
    torch.testing.assert_close(found[0], 2.0 * head(frames.transpose(0, 1), mask))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("make_view", [ProjectedView, PooledView])
def test_padding_changes_nothing_and_gradients_are_finite(make_view, pooling):
    head = SentenceHead(8, 5, pooling)
    head.eval()
    view = make_view(head)
    frames, mask = frames_and_mask(dim=8)
    frames.requires_grad_(True)
    batch, _ = view(frames, mask)
    alone, _ = view(frames[:4, 1:], torch.zeros(1, 4, dtype=torch.bool))
    torch.testing.assert_close(batch[: len(alone), 1:], alone, atol=1e-5, rtol=1e-5)
    batch.masked_fill(mask.t().unsqueeze(2), 0.0).sum().backward() if len(batch) > 1 else (
        batch.sum().backward()
    )
    assert torch.isfinite(frames.grad).all() and frames.grad[:4].abs().sum() > 0
    without = [n for n, p in view.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "distributed training would wait for these for ever"


def test_noise_follows_every_feature_and_stops_in_evaluation():
    torch.manual_seed(1)
    x = torch.randn(4000, 2, 2) * torch.tensor([1.0, 10.0])
    mask = torch.zeros(2, 4000, dtype=torch.bool)
    mask[1, 2000:] = True
    x[2000:, 1] = 1e4  # padded: does not count
    noise = FeatureNoise(0.7)
    deviation = (noise(x, mask) - x).reshape(-1, 2).std(dim=0)
    torch.testing.assert_close(deviation, torch.tensor([0.7, 7.0]), rtol=0.05, atol=0.0)
    assert torch.equal(noise.eval()(x, mask), x)
