"""Group normalisation over time that does not see padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_samu.modules.padding import padding_mask


class MaskedGroupNorm(nn.Module):
    """Normalise every channel over the valid frames of its utterance.

    The first layer of wav2vec 2.0's "default" extractor is a group norm with one group a channel,
    taken over all frames: padding an utterance changes its mean and variance, hence every frame
    (facebookresearch/fairseq#3118). Here padded frames are left out, so that an utterance alone
    and in a padded batch give the same frames; without padding it equals
    ``torch.nn.GroupNorm(D, D)``, whose names the weights carry. Statistics are in float32.

    Args:
        num_channels: channels D, each its own group.
        eps: added to the variance.

    Source: Wu and He 2018 (arXiv 1803.08494), Eq. 1-6, restricted to valid frames.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: shape (B, D, T).
            lengths: valid frames, at least one a row, shape (B,).

        Returns:
            A tensor like ``x``, without meaning where padded.
        """
        valid = ~padding_mask(lengths, x.size(2)).unsqueeze(1)
        share = valid / lengths.view(-1, 1, 1)  # (B, 1, T), of the mean; 0 where padded
        wide = x.float()
        mean = (wide * share).sum(dim=2, keepdim=True)
        centred = wide - mean
        variance = (centred.square() * share).sum(dim=2, keepdim=True)
        scale = torch.rsqrt(variance + self.eps) * self.weight.float().view(1, -1, 1)
        return torch.addcmul(self.bias.float().view(1, -1, 1), centred, scale).type_as(x)
