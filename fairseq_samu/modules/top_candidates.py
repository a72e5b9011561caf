"""The best continuations of all hypotheses of a sentence, without a pass over what cannot be among them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Symbols whose largest logit is looked at first; short enough for few of them to be looked at again.
CHUNK = 64
#: Logits of a row that are normalised at a time, so that they stay in a processor's cache.
SLICE = 8192


class Candidates(NamedTuple):
    """Continuations, best first; all of shape (B, k).

    Attributes:
        scores: of the hypotheses with the symbol added.
        tokens: the symbols.
        beams: numbers of the hypotheses that they continue.
    """

    scores: Tensor
    tokens: Tensor
    beams: Tensor


def log_normalizers(logits: Tensor) -> Tensor:
    """Logarithm of what exponentials of logits sum up to; logits (…, V) → (…,).

    Not a number, or infinite, where logits are.
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(-1)
    # On a processor the largest probability tells the sum faster than torch's own logsumexp.
    parts = []
    for part in logits.split(SLICE, -1):
        largest = part.amax(-1)
        normalizers = largest - part.softmax(-1).amax(-1).log()
        parts.append(torch.where(largest == -torch.inf, largest, normalizers))
    return parts[0] if len(parts) == 1 else torch.stack(parts).logsumexp(0)


def top_candidates(logits: Tensor, normalizers: Tensor, scores: Tensor, k: int) -> Candidates:
    """Find the ``k`` best continuations of each sentence.

    The score of a continuation is ``(logit - normalizer) + score``, rounded in this order. An element
    among the k largest lies in one of the k chunks with the largest maxima, because rounding keeps the
    order: only those are looked at. Which of equal scores are taken, where not all can be, is unspecified,
    as it is for ``torch.topk``.

    Args:
        logits: of the next symbol, shape (B, W, V); W hypotheses a sentence.
        normalizers: shape (B, W); see ``log_normalizers``.
        scores: of the hypotheses, shape (B, W).
        k: how many; at most W x V.
    """
    count, width, symbols = logits.shape
    normalizers, scores = normalizers.unsqueeze(-1), scores.unsqueeze(-1)
    chunks = symbols // CHUNK
    if width * chunks <= k:
        flat = ((logits - normalizers) + scores).flatten(1)
        best, at = flat.topk(k)
        return Candidates(best, at.fmod(symbols), at.div(symbols, rounding_mode="trunc"))
    whole = logits[..., : chunks * CHUNK].unflatten(-1, (chunks, CHUNK))
    maxima = (whole.amax(-1) - normalizers) + scores
    at = maxima.flatten(1).topk(k).indices
    beams, numbers = at.div(chunks, rounding_mode="trunc"), at.fmod(chunks)
    sentences = torch.arange(count, device=logits.device).unsqueeze(1)
    found = whole[sentences, beams, numbers] - normalizers[sentences, beams]
    found = found + scores[sentences, beams]
    first = beams * symbols + numbers * CHUNK
    places = first.unsqueeze(-1) + torch.arange(CHUNK, device=logits.device)
    rest = (logits[..., chunks * CHUNK :] - normalizers) + scores
    tail = torch.arange(chunks * CHUNK, symbols, device=logits.device)
    tails = torch.arange(width, device=logits.device).unsqueeze(1) * symbols + tail
    values = torch.cat([found.flatten(1), rest.flatten(1)], 1)
    places = torch.cat([places.flatten(1), tails.flatten().expand(count, -1)], 1)
    best, at = values.topk(k)
    at = places.gather(1, at)
    return Candidates(best, at.fmod(symbols), at.div(symbols, rounding_mode="trunc"))
