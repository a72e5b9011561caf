"""Random spans for SpecAugment-like masking."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_samu.modules.padding import padding_mask


def span_mask(lengths: Tensor, size: int, prob: float, span: int) -> Tensor:
    """Draw spans of fixed length inside the valid part of every row.

    Row i gets floor(prob · length_i / span + u) spans, u uniform in [0, 1), at distinct random
    starts. Spans may overlap, so that somewhat less than ``prob`` of the row is covered; never all
    of it, and nothing of a row that is no longer than one span. All randomness comes from torch's
    generator of the tensors' device, which fairseq seeds at every update: a resumed run draws the
    same masks. (fairseq's own masks come from NumPy, unseeded in newer versions.)

    Args:
        lengths: valid positions of every row, shape (B,).
        size: positions of the padded rows.
        prob: share of the positions to cover, before overlaps.
        span: positions a span covers.

    Returns:
        A bool tensor of shape (B, size), True where masked.

    Source: Park et al. 2019 (arXiv 1904.08779), Section 2; the number of spans as in wav2vec 2.0
    (arXiv 2006.11477), Section 4.2.
    """
    batch = lengths.size(0)
    dither = torch.rand(batch, device=lengths.device)
    wanted = (lengths * (prob / span) + dither).floor().long()
    wanted = torch.minimum(wanted, (lengths - 1).div(span, rounding_mode="floor"))

    # The `wanted` smallest of random scores are the starts; scores of starts whose span would leave
    # the valid part sort behind all others.
    scores = torch.rand(batch, size, device=lengths.device)
    scores = scores.masked_fill(padding_mask(lengths - span + 1, size), 2.0)
    rank = torch.arange(size, device=lengths.device).unsqueeze(0)
    chosen = (rank < wanted.unsqueeze(1)).long()
    starts = torch.zeros_like(chosen).scatter(1, scores.argsort(dim=1), chosen)

    begun = starts.cumsum(dim=1)
    ended = torch.zeros_like(begun)
    ended[:, span:] = begun[:, :-span]
    return begun > ended
