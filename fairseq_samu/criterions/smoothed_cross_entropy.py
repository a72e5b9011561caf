"""Label-smoothed cross entropy of logits, a few rows of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Logits that are worked on at once: on a CPU what its cache holds, elsewhere enough to keep it busy.
CHUNK_IN_CACHE = 2**18
CHUNK = 2**24


def smoothed_cross_entropy(
    logits: Tensor, target: Tensor, trained: Tensor, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Cross entropy with smoothing; beside the logits nothing but their gradient is as large as they are.

    For logits z, their softmax p, a vocabulary of V words and the target y,

    .. math::
        \ell &= -(1-ε) \log p_y - \frac{ε}{V-1} \sum_{k \ne y} \log p_k \\
        \frac{\partial \ell}{\partial z_k} &= p_k - (1-ε)\,[k = y] - \frac{ε}{V-1}\,[k \ne y],

    all in single precision, whatever that of the logits. The sum of log-probabilities is that of the logits
    less V normalisers.

    Args:
        logits: shape (N, V), V > 1.
        target: words, shape (N,).
        trained: whether a row counts, shape (N,).
        smoothing: ε.

    Returns:
        The loss of every row; without gradients -log p of its target, and whether that is the first of the
        most probable words. All of shape (N,) and zero where a row does not count.
    """
    found: tuple[Tensor, Tensor, Tensor]
    found = _SmoothedCrossEntropy.apply(logits, target, trained, smoothing)  # type: ignore[no-untyped-call]
    return found


class _SmoothedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, trained: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, words = logits.shape
        others = smoothing / (words - 1)
        loss = logits.new_empty(count, dtype=torch.float32)
        nll = torch.empty_like(loss)
        correct = torch.empty_like(trained)
        for rows in _chunks(logits):
            some, wanted = logits[rows].float(), target[rows, None]
            top = some.amax(-1)
            # The largest probability is that of the largest logit; softmax is faster than logsumexp.
            normalizers = top - some.softmax(-1).amax(-1).log()
            logit = some.gather(1, wanted).squeeze(1)
            nll[rows] = normalizers - logit
            rest = (words * normalizers - some.sum(-1)) - nll[rows]
            loss[rows] = (1.0 - smoothing) * nll[rows] + others * rest
            # Finding where the largest logit stands takes longer than softmax, finding it does not.
            correct[rows] = logit.eq(top)
            tied = correct[rows].nonzero().squeeze(1)
            correct[rows][tied] = some[tied].argmax(-1).eq(target[rows][tied])
        ctx.save_for_backward(logits, target, trained)
        ctx.smoothing = smoothing
        unwanted = ~trained
        nll.masked_fill_(unwanted, 0.0)
        correct &= trained
        ctx.mark_non_differentiable(nll, correct)
        return loss.masked_fill_(unwanted, 0.0), nll, correct

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, *_unused: Any) -> tuple[Tensor | None, ...]:
        logits, target, trained = ctx.saved_tensors
        others = ctx.smoothing / (logits.size(1) - 1)
        grad = (grad * trained).unsqueeze(1)
        to_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            some = logits[rows].softmax(-1, dtype=torch.float32).sub_(others)
            more = some.new_full((1, 1), ctx.smoothing + others - 1.0)
            some.scatter_add_(1, target[rows, None], more.expand(len(some), 1))
            torch.mul(some, grad[rows], out=to_logits[rows])
        return to_logits, None, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Cut rows of logits (N, V) into some that are worked on at once."""
    size = CHUNK_IN_CACHE if logits.device.type == "cpu" else CHUNK
    step = max(1, size // logits.size(1))
    for first in range(0, len(logits), step):
        yield slice(first, first + step)
