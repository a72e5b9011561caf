"""Dropout on a CPU that remembers a byte for each number, and draws what it drops faster."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Probabilities are rounded to this many parts.
PARTS = 2**16


def share_kept(p: float) -> float:
    """Share of the numbers that ``keep_mask`` keeps."""
    return 1 - round(p * PARTS) / PARTS


def keep_mask(shape: tuple[int, ...], p: float) -> Tensor:
    """Draw which numbers of a tensor stay, on a CPU: True with probability ``share_kept(p)``.

    64 random bits serve four numbers; torch's own dropout draws a number in floating point for each.
    """
    size = prod(shape)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[:size] >= round(p * PARTS) - PARTS // 2).view(shape)


def masked(x: Tensor, keep: Tensor) -> Tensor:
    """Return ``x`` with zeros where ``keep`` is False; a product of two types would be slow."""
    return keep.to(x.dtype).mul_(x)


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, on a CPU with probabilities rounded to 1/65,536."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop; any shape."""
        return dropout(input, self.p) if self.training else input


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop numbers with probability ``p``, on a CPU rounded to 1/65,536."""
    if not 0 < p < 1 or x.device.type != "cpu":
        return F.dropout(x, p)
    out: Tensor = _Dropout.apply(x, p)  # type: ignore[no-untyped-call]
    return out


def use_fast_dropout(network: nn.Module) -> None:
    """Make every ``torch.nn.Dropout`` inside a ``Dropout`` of the same probability."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = keep_mask(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / share_kept(p)
        return masked(x, keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return masked(grad, keep).mul_(ctx.scale), None


def attention_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float
) -> Tensor:
    """Attend with dropout of the weights, on a CPU.

    Where weights are dropped, torch has no fused kernel for a CPU and keeps three matrices of weights for
    the gradient. This keeps what was dropped, a byte for each weight. It computes the weights of one
    utterance at a time, and again in the backward pass.

    Args:
        q: queries, shape (B, H, L, D).
        k: keys, shape (B, H, T, D).
        v: values, shape (B, H, T, D).
        mask: added to the scores, shape (L, T) or (B, 1, L or 1, T), or None.
        p: probability of dropping, between 0 and 1.

    Returns:
        What was found, shape (B, H, L, D).
    """
    if mask is not None:
        mask = mask.expand(len(q), 1, -1, -1)
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Attention.apply(q, k, v, mask, p)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
        keep = keep_mask((*q.shape[:3], k.size(2)), p)
        ctx.save_for_backward(q, k, v, mask, keep)
        ctx.scale = 1 / share_kept(p)
        out = torch.empty_like(q)
        for n in range(len(q)):
            weights = _weights(q[n], k[n], None if mask is None else mask[n])
            torch.mul(torch.bmm(masked(weights, keep[n]), v[n]), ctx.scale, out=out[n])
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, mask, keep = ctx.saved_tensors
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        factor = q.size(-1) ** -0.5
        for n in range(len(q)):
            weights = _weights(q[n], k[n], None if mask is None else mask[n])
            scaled = grad[n] * ctx.scale
            to_v[n] = torch.bmm(masked(weights, keep[n]).transpose(1, 2), scaled)
            to_weights = masked(torch.bmm(scaled, v[n].transpose(1, 2)), keep[n])
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            torch.mul(torch.bmm(to_scores, k[n]), factor, out=to_q[n])
            torch.mul(torch.bmm(to_scores.transpose(1, 2), q[n]), factor, out=to_k[n])
        return to_q, to_k, to_v, None, None


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Weights (H, L, T) of one utterance."""
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(q.size(-1) ** -0.5)
    return (scores if mask is None else scores.add_(mask)).softmax(-1)
