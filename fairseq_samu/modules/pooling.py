"""Poolings: a sequence of frames becomes one vector; padded frames never count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _valid(frames: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mask of the frames that count, bool (B, T)."""
    if padding_mask is None:
        return torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    return ~padding_mask


class SelfAttentionPooling(nn.Module):
    """Weighted sum of frames with weights softmax_t(w·h_t + b), over valid frames.

    Source: Safari et al. 2020 (arXiv 2008.01077), Section 2; SAMU-XLS-R's pooling (arXiv 2205.08180).

    Args:
        dim: width D of a frame.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, frames: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool (B, T, D) to (B, D); also the weights (B, T), which sum to one and are 0 where padded."""
        scores = self.score(frames).squeeze(-1).float()
        scores = scores.masked_fill(~_valid(frames, padding_mask), float("-inf"))
        weights = torch.softmax(scores, dim=-1).to(frames.dtype)
        return torch.einsum("bt,btd->bd", weights, frames), weights


class MeanPooling(nn.Module):
    """Mean over valid frames."""

    def forward(self, frames: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool (B, T, D) to (B, D); also the weights (B, T), 1/length each."""
        valid = _valid(frames, padding_mask).to(frames.dtype)
        weights = valid / valid.sum(1, keepdim=True)
        return torch.einsum("bt,btd->bd", weights, frames), weights


class MaxPooling(nn.Module):
    """Largest value of every dimension over valid frames."""

    def forward(self, frames: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool (B, T, D) to (B, D); also weights (B, T): the share of dimensions each frame won."""
        valid = _valid(frames, padding_mask).unsqueeze(-1)
        pooled, winners = frames.masked_fill(~valid, float("-inf")).max(dim=1)
        weights = torch.zeros(frames.shape[:2], dtype=frames.dtype, device=frames.device)
        share = torch.full_like(winners, 1, dtype=frames.dtype) / frames.size(-1)
        return pooled, weights.scatter_add(1, winners, share)


class TransformerQueryPooling(nn.Module):
    """A Transformer decoder that reads the frames from one learned query.

    Source: Duquenne et al. 2023 (SONAR, arXiv 2308.11466), Section 3.2: the speech encoder's attention
    pooler, a decoder fed a single begin-of-sentence token.

    Args:
        dim: width D of a frame.
        layers: decoder layers.
        heads: attention heads.
        dropout: dropout probability.
    """

    def __init__(self, dim: int, layers: int = 3, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        layer = nn.TransformerDecoderLayer(
            dim, heads, 4 * dim, dropout, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(dim))

    def forward(self, frames: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool (B, T, D) to (B, D); also uniform weights (B, T) over valid frames.

        The decoder has as many attention maps as layers and heads and no single weight a frame.
        """
        query = self.query.expand(frames.size(0), -1, -1)
        pooled = self.decoder(query, frames, memory_key_padding_mask=padding_mask).squeeze(1)
        valid = _valid(frames, padding_mask).to(frames.dtype)
        return pooled, valid / valid.sum(1, keepdim=True)
