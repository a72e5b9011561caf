"""Matrix products in float32 by the faster of the two libraries that torch has on a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

#: Multiplications below which calling oneDNN costs more than it saves.
SMALL = 2**20


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies faster in float32 than MKL, which torch takes for it.

    On AMD's processors MKL keeps to AVX2, while oneDNN makes use of AVX-512: twice as fast where measured
    (EPYC 9005). torch 1 does not offer it.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    processor = Path("/proc/cpuinfo")
    text = processor.read_text(encoding="utf-8") if processor.exists() else ""
    return "AuthenticAMD" in text and "avx512f" in text


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply ``a`` (M, K) with ``b`` (K, N) and add ``bias`` (N,), outside of autograd and autocast."""
    large = a.size(0) * b.numel() >= SMALL
    if large and a.device.type == "cpu" and a.dtype == torch.float32 and onednn_is_faster():
        a, b = _dense(a), _dense(b)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
        return out
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def _dense(matrix: Tensor) -> Tensor:
    """Return the matrix without gaps in memory, by rows or by columns; else oneDNN takes plain loops."""
    dense = matrix.is_contiguous() or matrix.t().is_contiguous()
    return matrix if dense else matrix.contiguous()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Precision in which a product with ``x`` is to be computed here."""
    kind = x.device.type
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    # torch 1 has a function for each kind of device
    if kind == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else x.dtype
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else x.dtype
