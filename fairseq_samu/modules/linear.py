"""Projections by the faster library of a CPU, forward and backward, that keep little."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_samu.modules.matrix_product import autocast_dtype, onednn_is_faster, product


class Linear(nn.Linear):
    """``torch.nn.Linear`` with the products of ``matrix_product``, in float32 on a CPU.

    Under autocast, a frozen weight is converted for the forward pass and again for the backward pass: torch
    keeps what it converted in between, half as much memory again as all frozen weights take.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Project ``input`` (..., K) to (..., N)."""
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Project ``input`` (..., K) by a weight (N, K) and a bias (N,) to (..., N)."""
    dtype = autocast_dtype(input)
    fast = (
        input.device.type == "cpu"
        and input.dtype == dtype == weight.dtype == torch.float32
        and onednn_is_faster()
    )
    converts = (
        dtype != weight.dtype
        and not weight.requires_grad
        and input.requires_grad
        and torch.is_grad_enabled()
    )
    # Of more dimensions that are not in order, torch multiplies each by a copy of the weight.
    rows = input.reshape(-1, input.size(-1))
    if fast or converts:
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(input.device.type, enabled=False):
            out: Tensor = _Projection.apply(rows.to(dtype), weight, bias)  # type: ignore[no-untyped-call]
    else:
        out = F.linear(rows, weight, bias)
    # The weight's width: where embeddings are tied and pruned, ``out_features`` is that of before.
    return out.view(*input.shape[:-1], len(weight))


class _Projection(torch.autograd.Function):
    """Rows (M, K) times a weight (N, K), which is converted to their precision, plus a bias (N,)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        to_rows, to_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if to_weight else None, weight if to_rows else None)
        return product(rows, weight.to(rows.dtype).t(), bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        to_rows, to_weight, to_bias = ctx.needs_input_grad
        return (
            product(grad, weight.to(grad.dtype)) if to_rows else None,
            product(grad.t(), rows) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


def use_fast_products(network: nn.Module) -> None:
    """Make every ``torch.nn.Linear`` inside a ``Linear``, with the same parameters under the same names."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                made = Linear(child.in_features, child.out_features, device="meta")
                made.weight, made.bias = child.weight, child.bias
                made.train(child.training)
                setattr(parent, name, made)
