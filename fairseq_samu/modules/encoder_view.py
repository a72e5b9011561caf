"""What a decoder reads of a speech encoder that has a sentence head (SAMU-XLS-R)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_samu.modules.pooling import SelfAttentionPooling
from fairseq_samu.modules.sentence_head import SentenceHead

#: Names of the views.
VIEWS = ("hidden", "projected", "pooled")


class ProjectedView(nn.Module):
    r"""Frames as the sentence head sees them: in the sentence space, weighted as they are pooled.

    .. math:: x_t = \tanh(W h_t + b) \sqrt{a_t T + 10^{-6}}

    with the pooling's weights a_t over T frames (one each under a uniform pooling). What the teacher
    has aligned over languages is in this space; hidden frames also carry what tells languages apart.

    Args:
        head: the sentence head.
    """

    def __init__(self, head: SentenceHead) -> None:
        super().__init__()
        self.head = head
        self.width = head.projection.out_features
        if not isinstance(head.pooling, SelfAttentionPooling):
            # Its weights do not come from these: distributed training must not wait for them.
            head.pooling.requires_grad_(False)

    def forward(self, frames: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """View frames (T, B, D) with padding mask (B, T) as (T, B, E), under the same mask."""
        _, weights = self.head.pooling(frames.transpose(0, 1), padding_mask)
        lengths = (~padding_mask).sum(dim=1, keepdim=True)
        # The root has no gradient at zero, where the weight of a padded frame is.
        scale = (weights * lengths + 1e-6).sqrt()
        return self.head.projection(frames).tanh() * scale.t().unsqueeze(2), padding_mask


class PooledView(nn.Module):
    """The utterance vector alone, as a sequence of one, with features of mean square one.

    Args:
        head: the sentence head.
    """

    def __init__(self, head: SentenceHead) -> None:
        super().__init__()
        self.head = head
        self.width = head.projection.out_features

    def forward(self, frames: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """View frames (T, B, D) with padding mask (B, T) as (1, B, E), of which nothing is padded."""
        vectors = self.head(frames.transpose(0, 1), padding_mask) * self.width**0.5
        mask = torch.zeros(len(vectors), 1, dtype=torch.bool, device=vectors.device)
        return vectors.to(frames.dtype).unsqueeze(0), mask


class FeatureNoise(nn.Module):
    """Gaussian noise in training, in proportion to the deviation of every feature.

    It keeps a decoder from relying on details of the encoder's output that another language has not.

    Args:
        factor: standard deviation of the noise over that of the feature in the batch.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Add noise to ``x`` (T, B, D), whose padding mask is (B, T)."""
        if not self.training or self.factor == 0.0:
            return x
        deviation = x[~padding_mask.t()].float().std(dim=0, unbiased=False)
        return x + torch.randn_like(x) * (self.factor * deviation.detach()).to(x.dtype)
