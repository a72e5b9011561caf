"""Strided convolutions over time as matrix products, with channels last."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_samu.modules.matrix_product import autocast_dtype, product


class StridedConv(nn.Module):
    """``torch.nn.Conv1d`` without padding, for sequences of shape (B, T, C).

    Layer norms and activations around it then work on what lies together in memory: nothing is transposed.
    Where T is a multiple of the stride, every ``stride`` frames are one row of a matrix; a kernel reads a row
    and parts of the next ones, so that products of shifted rows need no copy of what windows share.

    Args:
        conv: where the parameters come from.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        (self.stride,) = conv.stride

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: shape (B, T, C), T a multiple of the stride.

        Returns:
            Shape (B, T / stride, O). Windows that reach beyond the end of their sequence are there too,
            finite and without meaning.
        """
        width, channels, kernel = self.weight.shape
        batch, frames, _ = x.shape
        dtype = autocast_dtype(x)
        weight = self.weight.to(dtype).permute(2, 1, 0).reshape(kernel * channels, width)
        bias = None if self.bias is None else self.bias.to(dtype)
        rows = x.to(dtype).reshape(batch * frames // self.stride, self.stride * channels)
        if len(weight) <= width:
            rows = _windows(rows, len(weight))  # smaller than a second product
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = _ShiftedRows.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return out.view(batch, frames // self.stride, width)


def _windows(rows: Tensor, size: int) -> Tensor:
    """Gather windows (M, size) over the numbers of rows (M, R), as if zeros followed them."""
    shifts = -(-size // rows.size(1))
    padded = F.pad(rows, (0, 0, 0, shifts - 1))
    return torch.cat([padded[n : n + len(rows)] for n in range(shifts)], 1)[:, :size]


class _ShiftedRows(torch.autograd.Function):
    """Windows over the numbers of rows (M, R), as if zeros followed, times a weight (K, O)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        first, *others = weight.split(rows.size(1))
        out = product(rows[:, : len(first)], first, bias)
        for n, piece in enumerate(others, start=1):
            out[:-n] += product(rows[n:, : len(piece)], piece)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        first, *others = weight.split(rows.size(1))
        to_rows = to_weight = None
        if wants_rows:
            to_rows = product(grad, first.t())
            if len(first) < rows.size(1):
                to_rows = F.pad(to_rows, (0, rows.size(1) - len(first)))
            for n, piece in enumerate(others, start=1):
                to_rows[n:, : len(piece)] += product(grad[:-n], piece.t())
        if wants_weight:
            pieces = [product(rows[:, : len(first)].t(), grad)]
            for n, piece in enumerate(others, start=1):
                pieces.append(product(rows[n:, : len(piece)].t(), grad[:-n]))
            to_weight = torch.cat(pieces)
        return to_rows, to_weight, grad.sum(0) if wants_bias else None
