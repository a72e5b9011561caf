"""From speech frames to a sentence embedding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_samu.modules.pooling import (
    MaxPooling,
    MeanPooling,
    SelfAttentionPooling,
    TransformerQueryPooling,
)

#: Names of the poolings.
POOLINGS = ("attention", "mean", "max", "transformer")


class SentenceHead(nn.Module):
    """Pooling → linear → tanh → L2 norm: the utterance vector that meets the teacher's.

    Source: SAMU-XLS-R (Khurana et al. 2022, arXiv 2205.08180), Section III.

    Args:
        dim: width D of a frame.
        sentence_dim: width E of the sentence embedding.
        pooling: one of ``POOLINGS``.

    Raises:
        ValueError: another pooling.
    """

    def __init__(self, dim: int, sentence_dim: int, pooling: str = "attention") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, found {pooling!r}")
        self.pooling: nn.Module
        if pooling == "attention":
            self.pooling = SelfAttentionPooling(dim)
        elif pooling == "transformer":
            self.pooling = TransformerQueryPooling(dim)
        else:
            self.pooling = MeanPooling() if pooling == "mean" else MaxPooling()
        self.projection = nn.Linear(dim, sentence_dim)

    def forward(self, frames: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Embed utterances.

        Args:
            frames: shape (B, T, D).
            padding_mask: True where padded, shape (B, T).

        Returns:
            Vectors of length one, float32, shape (B, E).
        """
        pooled, _ = self.pooling(frames, padding_mask)
        return F.normalize(self.projection(pooled).tanh().float(), dim=-1)
